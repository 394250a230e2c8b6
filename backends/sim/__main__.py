"""python -m backends.sim"""

import asyncio
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backends.sim.app import Simulator
from backends.sim.settings import parser, settings


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with the transport in the scope's state, which a simulated TCP reset needs."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.app_state: dict[str, Any] = {**self.app_state, "transport": transport}


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    args = parser().parse_args()
    made = settings(args)
    # uvicorn logs every early return of the application as an error; a simulated cut is one, so only critical is shown.
    try:
        uvicorn.run(Simulator(made), host=args.host, port=args.port, http=Protocol, log_level="critical", ws="none",
                    access_log=False, timeout_graceful_shutdown=1, backlog=4096, server_header=False)  # fmt: skip
    except SystemExit:  # as uvicorn ends where it cannot begin
        sys.exit(f"cannot listen on {args.host}:{args.port}")


if __name__ == "__main__":
    main()
