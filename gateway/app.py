"""How is all of it put together?   The composition root: the only file that knows every room."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from gateway import __version__
from gateway.admin import Guard, admin_routes
from gateway.api import LEFT, Doors
from gateway.asgi import ASGI, Front
from gateway.cache import Flights
from gateway.comparison import Comparison
from gateway.decisions import decision_routes
from gateway.dialects import DIALECTS
from gateway.drift import Drift
from gateway.errors import BadRequest, NotFound, Refusal
from gateway.facts import named, resolved
from gateway.http1 import Client
from gateway.keyfile import KeyFile
from gateway.keys import ADMIN, Keys, credentials, expired, identify
from gateway.openapi import document
from gateway.page import page_routes
from gateway.policy import Policy
from gateway.probe import Probe
from gateway.records import Records, newest
from gateway.revisions import Revisions
from gateway.settings import Settings
from gateway.shadow import Shadows
from gateway.standing import kept
from gateway.steering import Desk, steering_routes
from gateway.store import KeyRecord, Store
from gateway.telemetry import METRICS, Telemetry
from gateway.types import Caller
from gateway.upstream import Upstream
from gateway.workers import Member

CREATED = 1776988800  # the models' release, 2026-04-24, as Unix seconds

WATCHED = frozenset({"/health", "/ready", "/metrics"})
SERVED = sorted((*DIALECTS, "/v1/models"), key=len, reverse=True)


class NoKeys(Exception):
    """On an address that others can reach, the gateway would serve everyone, or nobody could administer it."""


def create_app(settings: Settings, policy: Policy, store: Store, keys: Keys, member: Member | None = None) -> Front:
    """The ASGI app; it owns `store` from its start-up to its end. `member`: this process is one worker of several."""
    telemetry = Telemetry(settings.log_exchanges, settings.trace_ratio)
    client = Client()
    upstream = Upstream(client, telemetry.meters.retries.add)
    records = Records(store, settings.records, drift := Drift(telemetry))
    shadows = Shadows(store, upstream, records, telemetry)
    comparison = Comparison(telemetry.meters.compared.add, telemetry.meters.disagreements.add)
    doors = Doors(policy, store, upstream, Flights(store), keys, telemetry, records, shadows, comparison)
    probe = Probe(client, upstream, lambda: doors.policy)
    if member:
        member.render, member.recent = telemetry.render, records.recent
    revisions = _following(settings, doors)

    running = partial(_running, doors, client, revisions, probe)

    @cache
    def rest() -> FastAPI:
        plain: Any = {"docs_url": None, "redoc_url": None, "redirect_slashes": False, "telemetry": traced(telemetry)}
        app = FastAPI(title="Tiergate", version=__version__, lifespan=lambda _: running(), **plain)
        _routes(app, doors, {"triage": probe.told, "drift": lambda: drift.told(doors.policy)}, revisions, member)
        _models(app, doors)
        guard, recent = Guard(keys, settings.admin_key), partial(_recent, records, member)
        app.include_router(admin_routes(guard, keys, lambda: doors.policy, recent))
        app.include_router(steering_routes(guard, Desk(revisions, comparison, upstream.load, recent)))
        app.include_router(page_routes(guard, client, lambda: doors.policy))
        app.include_router(decision_routes(doors, settings))
        _errors(app)
        return app

    return Front(doors, settings, rest, running, revisions.nudge)


@asynccontextmanager
async def _running(doors: Doors, client: Client, revisions: Revisions, probe: Probe) -> AsyncIterator[None]:
    """What works behind requests works within the block; with it the doors close."""
    await revisions.look()
    watches = [asyncio.create_task(revisions.run())]
    watches += [asyncio.create_task(doors.keys.file.watch())] if doors.keys.file else []
    async with probe.running():
        yield
    for watch in watches:
        watch.cancel()
    await asyncio.wait(watches)
    await _close(doors, client)


async def _close(doors: Doors, client: Client) -> None:
    """What works behind requests ends first, then what it worked on."""
    await asyncio.gather(doors.comparison.close(), doors.shadows.close())
    await doors.upstream.close()
    client.close()
    await doors.records.close()
    await doors.store.close()
    doors.telemetry.close()


def traced(telemetry: Telemetry) -> TelemetryConfig:
    """FastAPI's own spans for what it serves, save what is asked all the time: one each, without what was said."""
    tracers = telemetry.tracers
    told = TelemetryConfig(tracing=tracers is not None, metrics=False, logs=False, operation_spans=False)
    return told | TelemetryConfig(tracer_provider=tracers, exclude=lambda scope: scope["path"] in WATCHED)


def _following(settings: Settings, doors: Doors) -> Revisions:
    """What puts another policy in place of the one in `doors`; a request keeps the one that it began with."""
    telemetry, upstream, store = doors.telemetry, doors.upstream, doors.store

    def use(policy: Policy) -> None:
        doors.policy = policy
        telemetry.use(policy, partial(upstream.states, policy), lambda: store.state)

    use(doors.policy)
    return Revisions(settings.policy, doors.policy, store, use, telemetry.meters.reloads.add)


async def _recent(records: Records, member: Member | None, most: int, after: float) -> list[bytes]:
    """The newest records of all workers."""
    if member:
        return newest(await member.records(most, after), most)
    return await asyncio.to_thread(records.recent, most, after)


def across_origins(app: ASGI, settings: Settings) -> ASGI:
    """`app`, for pages of other origins too where settings say so. Keys are sent as headers, never as cookies."""
    if not settings.cors_origins:
        return app
    methods, names = ["GET", "POST"], ["*"]
    return CORSMiddleware(app, settings.cors_origins, methods, names, expose_headers=names)


async def open_to_everyone(settings: Settings, store: Store, file: KeyFile | None = None) -> bool:
    """True when callers need no key: none is configured, and only this machine can ask.

    Raises NoKeys when others could ask too, or where they can ask and nobody could administer; Overloaded when it takes
    a shared store to tell and that does not answer.
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


def _routes(
    rest: FastAPI, doors: Doors, told: Mapping[str, Callable[[], Any]], revisions: Revisions, member: Member | None
) -> None:
    """`told`: what /ready says beside what the doors do."""

    @rest.get("/health", summary="Is the process alive?")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @rest.get("/ready", summary="Can it serve?")
    async def ready(response: Response) -> dict[str, Any]:
        policy, file = doors.policy, doors.keys.file
        store, upstream = doors.store, doors.upstream
        response.status_code = 503 if doors.leaving else 200
        return {
            "status": "leaving" if doors.leaving else "ok",
            "workers": member.alive if member else 1,
            "store": store.state,
            "processes": store.processes,
            **({"keys_file": "broken" if file.problem else "ok"} if file else {}),
            "limits": kept(policy.callers, store.state),
            "policy": {"name": policy.name, "revision": policy.revision, "digest": policy.digest, **revisions.told()},
            "load": dict(upstream.load()),
            "tiers": {name: state._asdict() for name, state in upstream.states(policy).items()},
            **{name: tell() for name, tell in told.items()},
        }

    @rest.get("/metrics", summary="Metrics in Prometheus' format", response_class=PlainTextResponse)
    async def metrics() -> Response:
        body = await (member.metrics() if member else asyncio.to_thread(doors.telemetry.render))
        return Response(body, media_type=METRICS)

    rest.openapi = lambda: document(rest)  # type: ignore[method-assign]


def _models(rest: FastAPI, doors: Doors) -> None:
    async def known(request: Request) -> Caller:
        return await identify(credentials(request.headers), doors.keys, doors.policy.callers)

    @rest.get("/v1/models", summary="The names that `model` may have")
    async def models(caller: Annotated[Caller, Depends(known)]) -> dict[str, Any]:
        """`auto` and the tiers that answer this caller."""
        policy = doors.policy
        listed = (None, *policy.reach(caller.plan, caller.own.may))
        return {
            "object": "list",
            "data": [_model(name, tier, policy) for name, tier in named(policy) if tier in listed],
        }

    @rest.get("/v1/models/{model:path}", summary="One of them", dependencies=[Depends(known)])
    async def model(model: str) -> dict[str, Any]:
        """Every name that a request may have, those too that are not listed."""
        name = unquote(model)  # the connection leaves escapes alone
        return _model(name, resolved(name, doors.policy), doors.policy)


def _model(name: str, tier: str | None, policy: Policy) -> dict[str, Any]:
    told: dict[str, Any] = {"id": name, "object": "model", "created": CREATED, "owned_by": "tiergate"}
    if tier in policy.tiers:
        told |= {"root": policy.tiers[tier].model, "max_model_len": policy.tiers[tier].can.context}
    return told


def _errors(rest: FastAPI) -> None:
    """Every error is an OpenAI error object."""

    @rest.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return _told(refusal, refusal.status)

    @rest.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return _told(_unknown(request.method, request.scope["path"]), 404)
        code = "method_not_allowed" if error.status_code == 405 else None
        return _told(BadRequest(str(error.detail), code=code), error.status_code, error.headers)

    @rest.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=LEFT)  # nobody reads it

    @rest.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _told(BadRequest(str(first["msg"]), param=".".join(map(str, first["loc"][1:])) or None), 400)

    @rest.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return _told(Refusal("The gateway failed.", code="internal_error"), 500)


def _unknown(method: str, path: str) -> NotFound:
    """What most often leads to such a path is a base URL without /v1, or with more than that."""
    meant = next((one for one in SERVED if path.rstrip("/").endswith(one.removeprefix("/v1"))), None)
    advice = f"Did you mean {meant}?" if meant else "/docs tells what is served."
    return NotFound(f"Unknown path: {method} {path[:128]}. {advice}")


def _told(refusal: Refusal, status: int, headers: Mapping[str, str] | None = None) -> Response:
    own = {key.decode(): value.decode() for key, value in refusal.headers()}
    return Response(refusal.body(), status, {**own, **(headers or {})}, "application/json")
