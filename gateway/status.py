"""How is the gateway doing, and which models does it have?   /health, /ready, /metrics and /v1/models, without
FastAPI."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api import LEFT
from gateway.dialects import CHAT, DIALECTS
from gateway.doors import Doors
from gateway.errors import BadRequest, NotFound, Refusal
from gateway.facts import resolved
from gateway.keys import credentials, identify
from gateway.policy import Policy, Price, serving
from gateway.revisions import Revisions
from gateway.standing import enforcement
from gateway.telemetry import METRICS
from gateway.workers import Member

CREATED = 1776988800  # the models' release, 2026-04-24, as Unix seconds
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SERVED = sorted((*DIALECTS, "/v1/models", "/v1/key"), key=len, reverse=True)


def status_routes(
    doors: Doors, told: Mapping[str, Callable[[], Any]], revisions: Revisions, member: Member | None
) -> list[Route]:
    """/health, /ready and /metrics. `told`: further members of /ready, each worked out when it is asked."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        policy, file = doors.policy, doors.keys.file
        store, upstream = doors.store, doors.upstream
        found = {
            "status": "leaving" if doors.leaving else "ok",
            "workers": member.alive if member else 1,
            "store": store.state,
            "processes": store.processes,
            **({"keys_file": "broken" if file.problem else "ok"} if file else {}),
            "limits": enforcement(policy.callers, store.state),
            "policy": policy.told() | revisions.told(),
            "load": dict(upstream.load()),
            "tiers": {name: state._asdict() for name, state in upstream.states(policy).items()},
            **{name: tell() for name, tell in told.items()},
        }
        return JSONResponse(found, 503 if doors.leaving else 200)

    async def metrics(_: Request) -> Response:
        body = await (member.metrics() if member else asyncio.to_thread(doors.telemetry.render))
        return Response(body, media_type=METRICS)

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]


def model_routes(doors: Doors) -> list[Route]:
    """/v1/models and /v1/models/{model}, for callers: the names that a request's `model` may have."""

    async def known(request: Request) -> tuple[Policy, Sequence[str]]:
        """The policy that serves the caller, and the tiers that answer it."""
        policy = doors.policy
        caller = await identify(credentials(request.headers), doors.keys, policy.callers)
        policy = serving(caller.id, policy)
        return policy, policy.reach(caller.plan, caller.own.may)

    async def listed(request: Request) -> Response:
        """`auto` and the tiers that answer this caller. Aliases and served names work unlisted."""
        policy, reach = await known(request)
        found = [_model(name, policy, reach) for name in ("auto", *reach)]
        return JSONResponse({"object": "list", "data": found})

    async def one(request: Request) -> Response:
        """Every name that a request may have, those too that are not listed."""
        policy, reach = await known(request)
        name = unquote(request.path_params["model"])  # the connection leaves escapes alone
        return JSONResponse(_model(name, policy, reach))

    return [Route("/v1/models", listed), Route("/v1/models/{model:path}", one)]


def _model(name: str, policy: Policy, reach: Sequence[str]) -> dict[str, Any]:
    """A model as vLLM and OpenRouter tell it; agents shorten conversations by its context, and price answers by
    `pricing`. For `auto` the context is the largest of the caller's tiers (`reach`) that chat, since a prompt goes to
    one that has room for it; who answered, the answer's `model` says. Raises NotFound."""
    told: dict[str, Any] = {"id": name, "object": "model", "created": CREATED, "owned_by": "tiergate"}
    wish = resolved(name, policy)
    if wish in policy.tiers:
        tier = policy.tiers[wish]
        return told | {"root": tier.model, **_context(tier.can.context), **_pricing(tier.price)}
    tiers = [policy.tiers[tier] for tier in reach]
    longest = max((tier.can.context for tier in tiers if tier.serves("chat")), default=None)
    return told if longest is None else told | _context(longest)


def _context(tokens: int) -> dict[str, int]:
    """Under the names that clients look for."""
    return {"max_model_len": tokens, "context_length": tokens}


def _pricing(price: Price) -> dict[str, dict[str, str]]:
    """US dollars a token, as text; nothing where there is no price."""
    if not (price.output_per_m or price.input_per_m):
        return {}
    dollars = (price.input_per_m, price.output_per_m, price.cached_input_per_m)
    told = [f"{dollar / 1e6:.12f}".rstrip("0").rstrip(".") for dollar in dollars]
    return {"pricing": dict(zip(("prompt", "completion", "input_cache_read"), told, strict=True))}


class Prefixes(BaseRoute):
    """Hands all paths that begin with one of `prefixes` to `app`, which answers 404 for those that it does not have."""

    def __init__(self, prefixes: tuple[str, ...], app: ASGIApp) -> None:
        self._prefixes, self._app = prefixes, app

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return Match.FULL if scope["path"].startswith(self._prefixes) else Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def refused(_: Request, refusal: Any) -> Response:
    return answered(refusal, refusal.status)


async def failed(request: Request, error: Any) -> Response:
    if error.status_code == 404:
        path = request.scope["path"]
        found = [one.answers for served, one in DIALECTS.items() if path.startswith(f"{served}/")]
        body = (found or [DIALECTS[CHAT].answers])[0].error(_unknown(request.method, path))
        return Response(body, 404, media_type="application/json")
    if error.status_code == 405:
        refusal = BadRequest(f"This path does not take {request.method[:16]}.", code="method_not_allowed")
        return answered(refusal, 405, {"allow": ", ".join(_methods(request))})
    return answered(BadRequest(str(error.detail)), error.status_code, error.headers)


def _methods(request: Request) -> list[str]:
    """All that the path takes: each of its routes knows its own only. HEAD comes here as GET."""

    def taken(name: str) -> bool:
        asked = {**request.scope, "method": "GET" if name == "HEAD" else name}
        return any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)

    return list(filter(taken, METHODS))


def _unknown(method: str, path: str) -> NotFound:
    """Mostly a client's base URL lacks /v1, or has more than that: the path that it must have meant is suggested."""
    meant = next((one for one in SERVED if path.rstrip("/").endswith(one.removeprefix("/v1"))), None)
    advice = f"Did you mean {meant}?" if meant else "/docs tells what is served."
    return NotFound(f"Unknown path: {method} {path[:128]}. {advice}")


async def left(_: Request, __: Any) -> Response:
    return Response(status_code=LEFT)  # nobody reads it


async def broken(_: Request, __: Any) -> Response:
    return answered(Refusal("The gateway failed.", code="internal_error"), 500)


ERRORS: dict[Any, Any] = {Refusal: refused, HTTPException: failed, ClientDisconnect: left, Exception: broken}


def answered(refusal: Refusal, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Every error is an OpenAI error object."""
    own = {key.decode(): value.decode() for key, value in refusal.headers()}
    return Response(refusal.body(), status, {**own, **(headers or {})}, "application/json")
