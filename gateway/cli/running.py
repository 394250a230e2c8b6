"""How does a command speak with a gateway that runs?   By /admin, with the admin key."""

import asyncio
import json
from contextlib import closing
from typing import Annotated, Any

import typer

from gateway.cli.output import stop
from gateway.http1 import Client, Limits, Origin, TransportError, fetch

LIMITS = Limits(connect=5.0, first_byte=30.0, idle=30.0, total=60.0)
Url = Annotated[
    str, typer.Option("--url", envvar="GATEWAY_URL", metavar="URL", help="The gateway's address.", show_default=True)
]
Key = Annotated[
    str | None,
    typer.Option(
        "--admin-key", envvar="GATEWAY_ADMIN_KEY", metavar="KEY", help="Safer in the variable.", show_envvar=True
    ),
]
HERE = "http://127.0.0.1:8080"


def call(url: str, key: str | None, method: str, path: str, said: object = None) -> Any:
    """The gateway's JSON answer to `method path` with `said` as JSON body. Exits with 1 when it does not answer, or
    answers with an error.
    """
    if not key:
        raise stop("policy", "the admin key is needed: set GATEWAY_ADMIN_KEY")
    try:
        status, body = asyncio.run(_call(Origin.parse(url), key, f"{method} {path}", said))
    except (TransportError, ValueError) as error:
        raise stop("policy", f"{url}: {error}") from None
    try:
        found = json.loads(body)
        told = found["error"]["message"] if status >= 400 else found["digest"]  # as all that is asked here has one
    except (ValueError, KeyError, TypeError):
        raise stop(
            "policy", f"{url} answers {status}, but not as a gateway does: is it another server's address?"
        ) from None
    if status >= 400:
        raise stop("policy", f"{url} refuses ({status}): {told}")
    return found


async def _call(origin: Origin, key: str, target: str, said: object) -> tuple[int, bytes]:
    body = b"" if said is None else json.dumps(said).encode()
    lines = f"authorization: Bearer {key}", "content-type: application/json"
    with closing(Client()) as client:
        found = await fetch(client, origin, target, LIMITS, *lines, body=body)
    return found.status, found.body
