"""Which tiers may a caller use, and which one answers where the chosen one may or can not?"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from gateway.errors import BadRequest, Forbidden, QuotaUsed
from gateway.policy import Policy, Tier
from gateway.sessions import CALLER
from gateway.types import Facts, Route

T = TypeVar("T")
NEEDS = ("tools", "json_schema", "vision", "token_ids")
WISHED = {
    "name": "asked for by name",
    "header": "asked for by header",
    "metadata": "asked for by metadata",
    "path": "nothing to judge",
}


def cached(function: Callable[..., T], facts: Facts, policy: Policy, *given: Hashable) -> T:
    """`function(facts, policy, *given)`, cached by the facts that it depends on; not for prompts that are too long for
    some tier."""
    if facts.context > policy.context:
        return function(facts, policy, *given)
    needs = (facts.tools, facts.json_schema, facts.vision, facts.token_ids)
    looked = (facts.plan, facts.may, facts.capped, facts.api, *needs)
    found: T = policy.once(_alike, function, looked, given)
    return found


def _alike(function: Callable[..., T], looked: tuple[Any, ...], given: tuple[Hashable, ...], policy: Policy) -> T:
    plan, may, capped, api, tools, json_schema, vision, ids = looked
    facts = Facts(
        "", "", plan, api, tools=tools, json_schema=json_schema, vision=vision, token_ids=ids, capped=capped, may=may
    )
    return function(facts, policy, *given)


def permitted(facts: Facts, policy: Policy) -> Sequence[str]:
    """The tiers that a caller may use, as they rank. A plan that this policy does not know has the first one."""
    return policy.reach(facts.plan, facts.may)


def reachable(facts: Facts, policy: Policy) -> Sequence[str]:
    """The tiers that this request may use, as they rank."""
    allowed = permitted(facts, policy)
    return allowed[:1] if facts.capped else allowed


def wished_route(facts: Facts, policy: Policy, wish: str, wished_by: str | None) -> Route:
    """The route of a caller's wish; going down is always allowed. Raises Forbidden above the plan's cap."""
    allowed = permitted(facts, policy)
    tier = {"fast": allowed[0], "best": allowed[-1]}.get(wish, wish)
    ranks = tuple(policy.tiers)
    if ranks.index(tier) <= ranks.index(allowed[-1]):
        return permitted_route(facts, policy, tier, (CALLER, WISHED.get(wished_by or "", "asked for")))
    raise Forbidden(
        f"Plan {facts.plan} may not use tier {tier}; the highest it may use is {allowed[-1]}.",
        param="model" if wished_by == "name" else None,
        code="tier_not_permitted",
    )


def permitted_route(facts: Facts, policy: Policy, tier: str, said: tuple[str, str]) -> Route:
    """The route for a tier that `said` (rule, reason) chose, once permitted (`permit`), with its failover."""
    chosen, change = permit(facts, policy, tier)
    rule, reason = said
    return Route((chosen, *failover_tiers(facts, policy, chosen)), rule, change or reason)


def permitted_tier(facts: Facts, policy: Policy, tier: str) -> str:
    """`tier`, or the tier that answers in its place; see `permit`."""
    return cached(permit, facts, policy, tier)[0]


def permit(facts: Facts, policy: Policy, tier: str) -> tuple[str, str | None]:
    """`tier` and None if the caller may use it and it has what the request needs; else the tier that answers in its
    place, and why. Raises BadRequest when no tier has what the request needs, QuotaUsed when only one that the caller's
    budget or share rules out has it."""
    allowed, ranks = reachable(facts, policy), tuple(policy.tiers)
    at, moved = ranks.index(tier) - ranks.index(allowed[0]), None
    if at < 0:
        at, moved = 0, "floor"
    elif at >= len(allowed):
        at, moved = len(allowed) - 1, facts.capped or "capped"
    missing = lacks(facts, policy.tiers[allowed[at]])
    if missing is None:
        return allowed[at], moved
    for other in (*allowed[at + 1 :], *reversed(allowed[:at])):
        if lacks(facts, policy.tiers[other]) is None:
            return other, f"needs {missing}"
    if facts.capped and any(lacks(facts, policy.tiers[other]) is None for other in permitted(facts, policy)):
        raise QuotaUsed(f"The {facts.capped} that is left does not reach a tier that has {missing}.")
    if missing == "context":
        raise too_long(facts, [policy.tiers[name] for name in allowed])
    message = f"No tier that plan {facts.plan} may use has what this request needs: {missing}."
    raise BadRequest(message, param=param(missing, facts.api))


def too_long(facts: Facts, tiers: Sequence[Tier]) -> BadRequest:
    """OpenAI's code, and the words of Anthropic's API: by either, clients know to shorten the conversation."""
    most = max(tier.can.context for tier in tiers if lacks(facts, tier) == "context")
    told = f"The prompt is too long: {facts.context} tokens > {most} maximum, by estimate, for plan {facts.plan}."
    return BadRequest(told, param=param("context", facts.api), code="context_length_exceeded")


def lacks(facts: Facts, tier: Tier) -> str | None:
    """The first thing that the request needs and the tier does not have; None: the tier can answer it."""
    if not tier.serves(facts.api):
        return f"the {facts.api} API"
    for need in NEEDS if facts.tools or facts.json_schema or facts.vision or facts.token_ids else ():
        if getattr(facts, need) and not tier.has(need):
            return need
    return "context" if facts.context > tier.can.context else None


def param(need: str, api: str) -> str:
    """The request field that asks for `need`."""
    if need.endswith(" API"):
        return "model"
    told = {"tools": "tools", "json_schema": "response_format", "token_ids": "prompt"}.get(need, "messages")
    return "input" if api in ("embeddings", "responses") and told in ("prompt", "messages") else told


def failover_tiers(facts: Facts, policy: Policy, chosen: str) -> tuple[str, ...]:
    """The tiers to try when `chosen` fails: those that the policy names and that may answer the request."""
    allowed = reachable(facts, policy)
    tiers = dict.fromkeys(policy.failover.tiers.get(chosen, ()))
    return tuple(t for t in tiers if t != chosen and t in allowed and lacks(facts, policy.tiers[t]) is None)
