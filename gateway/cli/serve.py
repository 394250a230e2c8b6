"""How does the gateway start?"""

import asyncio
import atexit
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvicorn

from gateway.app import NoKeys, across_origins, create_app, open_to_everyone
from gateway.certificate import loaded
from gateway.cli.settings import InvalidSettings, misspelt, read_settings
from gateway.embedded import NotInstalled, embedded
from gateway.errors import Overloaded
from gateway.keyfile import KeyFile
from gateway.keys import Keys
from gateway.policy import Policy, PolicyError, packaged, read_document
from gateway.revisions import History
from gateway.server import Server, bind
from gateway.settings import Settings
from gateway.store import Store, open_store, where
from gateway.telemetry import Outlet
from gateway.verify import attempted
from gateway.workers import Failed, Member, Supervisor

PolicyFile = Annotated[Path | None, typer.Option(help="Policy file; else the one that ships with the program.")]
KeysFile = Annotated[Path | None, typer.Option(help="File of keys, made by `tiergate keys create --file`.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on [default: 8080]")]
Workers = Annotated[int | None, typer.Option(help="Processes on the port; several share a store [default: 1]")]
Http = Annotated[
    str | None, typer.Option(help="`fast`: completions without ASGI in between; or `asgi` [default: fast]")
]
log = logging.getLogger("gateway")
T = TypeVar("T")
PATIENCE = 3.0  # seconds for the store to answer at the start
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
YOUNG = 20_000  # objects between two collections; an answered request leaves some hundred and no cycle
Redis = Annotated[
    str | None,
    typer.Option(
        "--redis",
        help="redis://, redis+cluster:// or redis+sentinel:// URL, or `embedded` for a Valkey of our own; else memory.",
    ),
]


def serve(  # noqa: PLR0913, PLR0917  each is a flag
    policy: PolicyFile = None,
    host: Host = None,
    port: Port = None,
    redis: Redis = None,
    keys: KeysFile = None,
    workers: Workers = None,
    http: Http = None,
) -> None:
    """Serve the gateway."""
    flags = {"policy": policy, "host": host, "port": port, "redis_url": redis}
    flags |= {"keys_file": keys, "workers": workers, "http": http}
    try:
        settings = read_settings(flags)
    except InvalidSettings as error:
        stop(str(error))
    for told, meant in misspelt(os.environ):
        typer.echo(f"{told}; {meant}, if that is meant", err=True)
    _loop(run(settings) if settings.workers == 1 else supervise(settings))


async def run(settings: Settings, member: Member | None = None, served: str | None = None) -> None:
    """Serve until SIGINT or SIGTERM; as one of several workers (`member`) until the supervisor says so. Exits with a
    message when it may not or cannot start.

    `served`: the name of the policy that is served already.
    """
    async with shared(settings) as given:
        store = opened(given.redis_url)
        policy, keys = await permitted(given, store, served)
        known = addressed(given, keys)
        followed = known.model_copy(update={"policy": known.policy or packaged()})
        app = create_app(followed, policy, store, keys, member)
        server = Server(app, across_origins(app, known), member.serving if member else None)
        if member:
            member.hear(server.leave, app.reload)
        else:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, app.reload)
        _settle()
        try:
            held = bind(known, shared=member is not None)
        except OSError as error:
            stop(f"cannot listen on {known.authority}: {error}")
        store_at = where(given.redis_url) if given.redis_url else "in memory"
        log.warning("policy: %s is in force on %s, store %s", policy, known.authority, store_at)
        await server.serve(held)


async def supervise(settings: Settings) -> None:
    """Several processes on one port, until SIGINT or SIGTERM."""
    if settings.redis_url is None:
        stop("several workers need a store that they share: give --redis URL or --redis embedded")
    if settings.records:
        stop(
            "GATEWAY_RECORDS is a file of one process; with several workers keep decisions in the store: record.stream"
        )
    async with shared(settings) as known:
        store = opened(known.redis_url)
        policy, _ = await permitted(known, store)
        await store.close()
        try:
            for probe in bind(known, shared=False):
                probe.close()  # nobody else listens
            held = bind(known, shared=True)  # keeps the port while workers come and go
            port = held[0].getsockname()[1]
            await Supervisor(known.model_copy(update={"port": port}), partial(work, policy.name)).run()
        except OSError as error:
            stop(f"cannot listen on {known.authority}: {error}")
        except Failed as failed:
            stop(str(failed))


def work(policy: str, settings: Settings, line: socket.socket) -> None:
    """What one of several processes does; it may take the place of one that served the policy of this name."""
    try:
        _loop(_work(policy, settings, line))
    except typer.Exit as said:
        raise SystemExit(said.exit_code) from None


async def _work(policy: str, settings: Settings, line: socket.socket) -> None:
    async with contextlib.aclosing(await Member.join(line)) as member:
        await run(settings, member, policy)


@contextlib.asynccontextmanager
async def shared(settings: Settings) -> AsyncIterator[Settings]:
    """The settings. For `--redis embedded`, a Valkey of our own runs until the block ends, and they hold its URL."""
    if settings.redis_url != "embedded":
        yield settings
        return
    async with contextlib.AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(embedded())
        except (NotInstalled, TimeoutError) as error:
            stop(str(error))
        yield settings.model_copy(update={"redis_url": url})


async def permitted(settings: Settings, store: Store, served: str | None = None) -> tuple[Policy, Keys]:
    """The policy, and the keys of callers. Exits with a message when the gateway may not start."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        stop("GATEWAY_TLS_CERT and GATEWAY_TLS_KEY belong together")
    try:
        if settings.tls_cert and settings.tls_key:
            loaded(settings.tls_cert, settings.tls_key)
    except OSError as error:
        stop(f"cannot use the certificate {error}")
    try:
        policy = await usable(settings.policy or packaged(), store, served)
        file = KeyFile(settings.keys_file) if settings.keys_file else None
        everyone = await in_time(lambda: open_to_everyone(settings, store, file))
        return policy, Keys(store, settings.api_key, everyone, file)
    except (PolicyError, NoKeys) as error:
        stop(str(error))
    except Overloaded:
        place = where(settings.redis_url or "")
        stop(f"the store at {place}, which has the API keys, does not answer: start it, or correct GATEWAY_REDIS_URL")


async def in_time(ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What the store says. One that is busy, as where everything starts at once, has PATIENCE seconds; Overloaded is
    raised after that."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await ask()
        except Overloaded:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(0.1)


async def usable(path: Path, store: Store, served: str | None = None) -> Policy:
    """The policy in the file. Where that is wrong: the one of its name, or of the name that other workers serve
    (`served`), that was in force last by the store and still passes its checks. Exits with a message where there is
    none.
    """
    found = attempted(path)
    if found.policy:
        return found.policy
    name, one = served or named(found.files[str(path)] or ""), None
    with contextlib.suppress(Overloaded):
        one = await in_time(History(store, name).last) if name else None
    before = attempted(path, one.text, calibration=one.calibration).policy if one else None
    if not before:
        kept = f"Put it right: tiergate policy check {path}. (No policy {name!r} that was in force before is stored.)"
        stop("\n".join([*map(str, found.problems), *([kept] if name else [])]))
    return before


def named(text: str) -> str | None:
    """The name that the text of a policy gives itself, even if the rest is no YAML; None: none."""
    line = next((line for line in text.splitlines() if line.startswith("name:")), "{}")
    try:
        name = read_document(line, "", os.environ).data.get("name")
    except PolicyError:
        return None
    return name if isinstance(name, str) else None


def addressed(settings: Settings, keys: Keys) -> Settings:
    """The settings, with the Host names that are served. Where nobody needs a key these are only this machine's: a web
    page whose own host name resolves to this machine (DNS rebinding) could call the gateway, but its requests carry
    that name as Host.
    """
    if not keys.everyone or settings.hosts:
        return settings
    own = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.model_copy(update={"hosts": (*LOOPBACK, own)})


def _loop(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` to its end, on uvloop where it is installed. Log lines begin with the time, in UTC."""
    logging.Formatter.converter = time.gmtime
    out = Outlet(sys.__stderr__)
    atexit.register(out.close)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ", stream=out)
    asked = uvicorn.Config("", loop="auto", log_config=None)
    made: Callable[[], asyncio.AbstractEventLoop] | None = asked.get_loop_factory()
    with asyncio.Runner(loop_factory=made) as runner:
        runner.run(main)


def _settle() -> None:
    """Keep garbage collection cheap: objects made at the start are never scanned again, and later scans are rarer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 100)


def opened(url: str | None) -> Store:
    """The store at `url`, or one in memory."""
    try:
        return open_store(url)
    except ValueError as error:
        stop(f"--redis {where(url or '')}: {error}")


def stop(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
