"""How do the gateway and the simulated tiers start?"""

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from pydantic import ValidationError

from gateway.app import NoKeys, create_app, open_to_everyone
from gateway.cli.policy import packaged
from gateway.embedded import NotInstalled, embedded
from gateway.errors import Overloaded
from gateway.fast import FastConnection
from gateway.keyfile import KeyFile
from gateway.keys import SHORTEST_KEY
from gateway.policy import PolicyError
from gateway.protocol import Connection
from gateway.reload import checked
from gateway.settings import Settings
from gateway.store import open_store

PolicyFile = Annotated[Path | None, typer.Option(help="Policy file; else the one that ships with the program.")]
KeysFile = Annotated[Path | None, typer.Option(help="File of keys, made by `tiergate keys create --file`.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on [default: 8080]")]
Http = Annotated[
    str | None, typer.Option(help="`fast`: completions without ASGI in between; or `asgi` [default: fast]")
]
DRAIN = 600  # seconds that open answers have to end after SIGTERM; a second SIGTERM ends them at once
YOUNG = 20_000  # objects between two collections; a request leaves some hundred and no cycle
Redis = Annotated[
    str | None,
    typer.Option(
        "--redis",
        help="redis://, redis+cluster:// or redis+sentinel:// URL, or `embedded` for a Valkey of our own; else memory.",
    ),
]


def serve(  # noqa: PLR0913, PLR0917  (typer makes each option a parameter)
    policy: PolicyFile = None,
    host: Host = None,
    port: Port = None,
    redis: Redis = None,
    keys: KeysFile = None,
    http: Http = None,
) -> None:
    """Serve the gateway."""
    flags = {"policy": policy, "host": host, "port": port, "redis_url": redis, "keys_file": keys, "http": http}
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        stop("\n".join(f"{_variable(found['loc'])}: {found['msg']}" for found in error.errors(include_input=False)))
    with asyncio.Runner(loop_factory=_loops()) as runner:
        runner.run(run(settings))


def _variable(place: tuple[int | str, ...]) -> str:
    return f"GATEWAY_{'_'.join(map(str, place)).upper()}"


async def run(settings: Settings) -> None:
    """Until SIGINT or SIGTERM. Exits with a message when the gateway may not or cannot start."""
    try:
        policy = checked(settings.policy or packaged())
        file = KeyFile(settings.keys_file) if settings.keys_file else None
    except PolicyError as error:
        stop(str(error))
    if settings.api_key is not None and len(settings.api_key) < SHORTEST_KEY:
        stop(f"GATEWAY_API_KEY has {len(settings.api_key)} characters; at least {SHORTEST_KEY} are needed")
    async with contextlib.AsyncExitStack() as stack:
        url = settings.redis_url
        if url == "embedded":
            try:
                url = await stack.enter_async_context(embedded())
            except (NotInstalled, TimeoutError) as error:
                stop(str(error))
        store = open_store(url)
        try:
            everyone = await open_to_everyone(settings, store, file)
        except NoKeys as error:
            stop(str(error))
        except Overloaded:
            stop("the store does not answer: without it nobody knows the API keys")
        app = create_app(settings, policy, store, everyone, file)
        config: dict[str, Any] = {"host": settings.host, "port": settings.port, "ws": "none"}
        config |= {
            "http": partial(FastConnection, app) if settings.http == "fast" else partial(Connection, settings),
            "access_log": False,
            "server_header": False,
            "log_level": "warning",
            "timeout_graceful_shutdown": DRAIN,
            "proxy_headers": False,
        }
        server = uvicorn.Server(uvicorn.Config(app, **config))
        _settle()
        await server.serve()
        if not server.started:
            raise typer.Exit(1)


def _loops() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one."""
    return uvicorn.Config("", loop="auto").get_loop_factory()


def _settle() -> None:
    """What is there at the start stays: the collector need not look through it again, nor look for cycles so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 100)


def sim(context: typer.Context) -> None:
    """Serve a simulated vLLM; all flags go to it (`tiergate sim --help` lists them)."""
    os.execv(sys.executable, [sys.executable, "-m", "backends.sim", *context.args])  # noqa: S606


def stop(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
