"""How is the gateway assembled?   The composition root: the only file that knows every room."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware

from gateway.allowance import key_routes
from gateway.asgi import ASGI, Front, Lazy
from gateway.cache import Flights
from gateway.certificate import Life
from gateway.comparison import Comparison
from gateway.doors import Doors
from gateway.drift import Drift
from gateway.http1 import Client
from gateway.key_records import ADMIN, expired
from gateway.keyfile import KeyFile
from gateway.keys import Keys
from gateway.memory import allowed
from gateway.policy import Policy
from gateway.probe import Probe
from gateway.recorded import newest
from gateway.records import Records
from gateway.retries import Retries
from gateway.revisions import Revisions
from gateway.served import Served
from gateway.settings import Settings
from gateway.shadow import Shadows
from gateway.status import ERRORS, Prefixes, model_routes, status_routes
from gateway.store import KeyRecord, Store
from gateway.telemetry import Telemetry
from gateway.uploads import Uploads
from gateway.upstream import Upstream
from gateway.workers import Member

PART = 6  # a sixth of the memory is for bodies: an exchange takes three times its body, six times if it has an emoji
LAZY = ("/admin/", "/docs", "/openapi.json", "/ui", "/v1/feedback", "/v1/route")  # prefixes of gateway.lazy's paths


class NoKeys(Exception):
    """Others could reach the gateway, and it has no caller's key or no admin key."""


def create_app(settings: Settings, policy: Policy, store: Store, keys: Keys, member: Member | None = None) -> Front:
    """The ASGI app; it owns `store` from its start-up to its end. `member`: this process is one of several workers."""
    telemetry = Telemetry(settings.log_exchanges, settings.trace_ratio)
    client = Client()
    upstream = Upstream(client, telemetry.meters.retries.add)
    records = Records(store, settings.records, drift := Drift(telemetry))
    shadows = Shadows(store, upstream, records, telemetry)
    retries = Retries(store, records)
    meters = telemetry.meters
    comparison = Comparison(meters.compared.add, meters.disagreements.add, meters.canary.add)
    uploads = Uploads(settings.bodies or allowed() // PART // settings.workers)
    doors = Doors(
        policy, store, upstream, Flights(store), keys, telemetry, records, shadows, retries, comparison, uploads
    )
    probe = Probe(client, upstream, lambda: doors.policy)
    served = Served(client, lambda: doors.policy)
    if member:
        member.render, member.recent = telemetry.render, records.recent
    revisions = _following(settings, doors, drift)

    running = partial(_running, doors, client, revisions, probe, served)

    def later() -> ASGI:
        from gateway.lazy import lazy_app  # noqa: PLC0415  imports FastAPI

        return lazy_app(doors, settings, client, revisions, partial(_recent, records, member))

    told: dict[str, Callable[[], Any]] = {"triage": probe.told, "models": served.told}
    told["drift"] = lambda: drift.told(doors.policy)
    routes = status_routes(doors, told, revisions, member) + model_routes(doors) + key_routes(doors)
    rest = Starlette(
        routes=[*routes, Prefixes(LAZY, Lazy(later))], exception_handlers=ERRORS, lifespan=lambda _: running()
    )
    rest.router.redirect_slashes = False
    front = Front(doors, settings, rest, running, revisions.nudge)
    telemetry.watch(files := _files(settings, front, revisions))
    if "certificate" in files:
        told["certificate"] = lambda: front.certificate.state if front.certificate else "ok"
        telemetry.expires(lambda: front.certificate.life if front.certificate else Life())
    return front


def _files(settings: Settings, front: Front, revisions: Revisions) -> dict[str, Callable[[], object]]:
    """For each file that the gateway follows or writes, what tells what is wrong with it; a false value: nothing is."""
    doors, keys = front.doors, front.doors.keys.file
    found: dict[str, Callable[[], object]] = {"policy": lambda: revisions.problems}
    if keys:
        found["keys"] = lambda: keys.problem
    if settings.records:
        found["records"] = lambda: doors.records.failing
    if settings.tls_cert:
        found["certificate"] = lambda: front.certificate and front.certificate.problem
    return found


@asynccontextmanager
async def _running(
    doors: Doors, client: Client, revisions: Revisions, probe: Probe, served: Served
) -> AsyncIterator[None]:
    """Runs the background tasks within the block; at its end everything is closed."""
    await revisions.look()
    watches = [asyncio.create_task(revisions.run()), asyncio.create_task(served.run())]
    watches += [asyncio.create_task(doors.keys.file.watch())] if doors.keys.file else []
    async with probe.running():
        yield
    for watch in watches:
        watch.cancel()
    await asyncio.wait(watches)
    await _close(doors, client)


async def _close(doors: Doors, client: Client) -> None:
    """Ends background work first, then what it works on."""
    await asyncio.gather(doors.comparison.close(), doors.shadows.close(), doors.retries.close())
    await doors.upstream.close()
    client.close()
    await doors.records.close()
    await doors.store.close()
    doors.telemetry.close()


def _following(settings: Settings, doors: Doors, drift: Drift) -> Revisions:
    """Watches the policy's file and replaces the policy in `doors`; a request keeps the policy it began with."""
    telemetry, upstream, store = doors.telemetry, doors.upstream, doors.store

    def use(policy: Policy) -> None:
        doors.policy = policy
        telemetry.use(policy, partial(upstream.states, policy), lambda: store.state)
        drift.use(policy)

    use(doors.policy)
    return Revisions(settings.policy, doors.policy, store, use, telemetry.meters.reloads.add)


async def _recent(records: Records, member: Member | None, most: int, after: float) -> list[bytes]:
    """The newest records of all workers."""
    if member:
        return newest(await member.records(most, after), most)
    return await asyncio.to_thread(records.recent, most, after)


def across_origins(app: ASGI, settings: Settings) -> ASGI:
    """`app`, with CORS where settings name other origins. Keys are sent as headers, never as cookies."""
    if not settings.cors_origins:
        return app
    methods, names = ["GET", "POST"], ["*"]
    return CORSMiddleware(app, settings.cors_origins, methods, names, expose_headers=names)


async def open_to_everyone(settings: Settings, store: Store, file: KeyFile | None = None) -> bool:
    """True when callers need no key: none is configured, and only this machine can reach the gateway.

    Raises NoKeys where others can reach it and there is no caller's key or no admin key; Overloaded where that depends
    on a shared store which does not answer.
    """
    callers = bool(settings.api_key or file)
    admin = settings.admin_key is not None or bool(file and _active(ADMIN, file.records()))
    if callers and (settings.loopback or admin):
        return False
    kept = await store.list_keys()
    callers, admin = callers or any(record.id != ADMIN for record in kept), admin or _active(ADMIN, kept)
    if settings.loopback:
        return not callers
    if not callers:
        raise NoKeys(
            f"no API key is configured and the gateway would listen on {settings.host}: create one with "
            "`tiergate keys create NAME --redis URL` (or --file FILE) or set GATEWAY_API_KEY, or bind to 127.0.0.1"
        )
    if not admin:
        raise NoKeys(
            f"no admin key is configured and the gateway would listen on {settings.host}: create one with "
            "`tiergate keys admin --redis URL` (or --file FILE) or set GATEWAY_ADMIN_KEY (openssl rand -hex 32), "
            "or bind to 127.0.0.1"
        )
    return False


def _active(key_id: str, records: Iterable[KeyRecord]) -> bool:
    return any(record.id == key_id and record.revoked is None and not expired(record) for record in records)
