"""What may a caller know of its own key?   GET /v1/key: what it may do and what is left of that; without FastAPI."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.doors import Doors
from gateway.errors import Overloaded
from gateway.keys import bearer, credentials, identify
from gateway.policy import Budget, Plan, serving, spelled
from gateway.pricing import terms
from gateway.store import NANO, Admitted, resets


def key_routes(doors: Doors) -> list[Route]:
    async def key(request: Request) -> Response:
        authorization, policy = credentials(request.headers), doors.policy
        caller = await identify(authorization, doors.keys, policy.callers)
        found = doors.keys.identified("" if doors.keys.everyone else f"Bearer {bearer(authorization)}")
        own = terms(caller, serving(caller.id, policy))
        try:
            standing = await doors.store.look(caller.id, own.limits)
        except Overloaded:
            standing = None
        told = {"id": caller.id, "name": caller.name, "plan": caller.plan, "expires": found and found.until}
        return JSONResponse({**told, "models": ["auto", *own.reach], **allowance(own.plan, standing)})

    return [Route("/v1/key", key)]


def allowance(plan: Plan, standing: Admitted | None) -> dict[str, Any]:
    """The caller's limits, each with what is `left` of it; None: the store does not tell. A limit that is none is
    None."""
    requests, tokens, share = plan.requests_per_minute, plan.tokens_per_minute, plan.pro_share
    return {
        "requests": {"per_minute": requests, "left": standing and standing.remaining},
        "tokens": tokens and {"per_minute": tokens, "left": standing and max(0, tokens - standing.tokens)},
        "concurrency": plan.concurrency,
        "pro_share": share and {"max": share.max, "window": spelled(share.window)},
        "budget": plan.budget and _budget(plan.budget, standing),
    }


def _budget(budget: Budget, standing: Admitted | None) -> dict[str, Any]:
    """`used` and `left` in dollars; what calls hold that are not over is used. `resets`: Unix seconds."""
    used = standing and standing.money / NANO
    left = standing and max(0, round(budget.usd * NANO) - standing.money) / NANO
    window = budget.window if isinstance(budget.window, str) else spelled(budget.window)
    told = {"usd": budget.usd, "used": used, "left": left, "window": window}
    return {**told, "resets": resets(budget.window), "then": budget.then}
