"""Why does this request go to this tier?"""

import itertools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, TypedDict

from msgspec import Meta, structs

from gateway.errors import Refusal
from gateway.policy import Policy, Rule, Step
from gateway.pricing import cost
from gateway.routing import band, band_reason, effective_verdict, first_match, permitted_route, route, steps_of
from gateway.score import reasons
from gateway.sessions import FOLLOWED, OUTPUT_TOKENS, session_tier
from gateway.store import NANO
from gateway.types import Ask, Facts, Route, Verdict


class Way(TypedDict, total=False):
    """Where a request goes: `tiers` to try in order, the first as `tier`, by `rule` for `reason`, and `p`, how likely
    chance made the first one. Else what it is `refused` with, and the `status`. Else the rule that wants a verdict
    first (`ask`), and its `draft`'s tier."""

    tier: str
    tiers: list[str]
    rule: str
    reason: str
    p: float
    refused: str
    status: int
    ask: str
    draft: str | None


class ToldScore(TypedDict):
    """The local score, from 0 (looks simple) to 1, and what weighed most in it."""

    value: float
    reasons: list[str]


class ToldRule(TypedDict):
    """`why`: the first matcher that does not hold."""

    id: str
    matched: bool
    decides: bool
    why: str | None


class ToldVerdict(TypedDict):
    """The verdict that routing went by. `raw`: the classifier's own p_complex. `side`: the key of `sides` that it falls
    to; `threshold`: the edge nearest to p_complex; `margin`: p_complex less the threshold, at or above 0 on the upper
    side. null where there is no label, or no probability."""

    label: str | None
    p_complex: float | None
    reason: str
    source: str
    seconds: float
    cut: bool
    strategy: str
    prompt: str
    raw: float | None
    side: str | None
    threshold: float
    margin: float | None


class Instead(TypedDict):
    """The other side of the nearest edge: the tier that it leads to, what an answer costs there, and how much more than
    on the verdict's side that is (US dollars)."""

    side: str
    tier: str
    usd: float
    usd_more: float


class Costs(TypedDict):
    """US dollars that an answer would cost on each tier, with nothing cached, and what that assumes."""

    usd: dict[str, float]
    input_tokens: int
    output_tokens: int
    output_tokens_from: str


_WAYS = {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Way"}}
Sides = Annotated[dict[str, Any], Meta(extra_json_schema=_WAYS | {"properties": {"otherwise": _WAYS}})]


class Explanation(TypedDict):
    """The whole decision; holds no prompt text. `score`: null where nothing looks at it. `triaged`: whether the rule
    wants a verdict. `verdict`: null when none was given or wanted. `sides`: the ways that either side of the threshold
    or each band leads to, and under `otherwise` what becomes of each failure; null when nobody is asked. `instead`:
    null without a probability."""

    policy: dict[str, str]
    facts: dict[str, Any]
    score: ToldScore | None
    rules: list[ToldRule]
    route: Way
    triaged: bool
    verdict: ToldVerdict | None
    sides: Sides | None
    instead: Instead | None
    cost: Costs


def explain(facts: Facts, verdict: Verdict | None, policy: Policy) -> Explanation:
    """The whole decision as JSON data; pure, says a refusal as part of the answer."""
    triaged = isinstance(try_route(facts, None, policy), Ask)
    steps = steps_of(first_match(facts, policy).id, policy)
    counts = effective_verdict(facts, verdict, policy) if triaged and verdict else None
    ways, prices = sides(facts, policy) if triaged else None, costs(facts, policy)
    return {
        "policy": policy.told(),
        "facts": told_facts(facts),
        "score": None if facts.score is None else {"value": facts.score, "reasons": [*reasons(facts.measures)]},
        "rules": told_rules(facts, policy),
        "route": told(try_route(facts, verdict, policy)),
        "triaged": triaged,
        "verdict": told_verdict(counts, verdict, steps) if counts and verdict else None,
        "sides": ways,
        "instead": instead(counts, steps, ways, prices["usd"]) if counts and ways else None,
        "cost": prices,
    }


def try_route(facts: Facts, verdict: Verdict | None, policy: Policy) -> Route | Ask | Refusal:
    """What `route` returns, or the Refusal that it raises."""
    try:
        return route(facts, verdict, policy)
    except Refusal as refusal:
        return refusal


def told(found: Route | Ask | Refusal) -> Way:
    if isinstance(found, Refusal):
        return {"refused": found.message, "status": found.status}
    if isinstance(found, Ask):
        return {"ask": found.rule, "draft": found.draft}
    tier = found.tiers[0]
    p = found.chances.get(tier, 1.0)
    return {"tier": tier, "tiers": list(found.tiers), "rule": found.rule, "reason": found.reason, "p": p}


def told_facts(facts: Facts) -> dict[str, Any]:
    found = {name: getattr(facts, name) for name in Facts.__struct_fields__ if name not in {"score", "measures"}}
    return found | {
        "signals": sorted(facts.signals),
        "headers": dict(facts.headers),
        "load": dict(facts.load),
        "waiting": dict(facts.waiting),
        "session": asdict(facts.session) if facts.session else None,
    }


def told_rules(facts: Facts, policy: Policy) -> list[ToldRule]:
    """Every rule in order. The first that matches decides, unless the caller asked for a tier."""
    found: list[ToldRule] = []
    decided = facts.wish is not None
    for rule in policy.rules:
        why = rule.why_not(facts)
        found.append({"id": rule.id, "matched": why is None, "decides": why is None and not decided, "why": why})
        decided = decided or why is None
    return found


def told_verdict(verdict: Verdict, said: Verdict, steps: tuple[Step, ...]) -> ToldVerdict:
    """`verdict` is the one that routing went by, `said` what the classifier said."""
    p_complex, threshold = verdict.p_complex, nearest(steps, verdict.p_complex)[1].low
    return {
        "label": verdict.label,
        "p_complex": p_complex,
        "reason": verdict.reason,
        "source": verdict.source,
        "seconds": verdict.seconds,
        "cut": verdict.cut,
        "strategy": verdict.strategy,
        "prompt": verdict.prompt,
        "raw": said.p_complex,
        "side": band(steps, verdict).key if verdict.label else None,
        "threshold": threshold,
        "margin": None if p_complex is None else round(p_complex - threshold, 6),
    }


def nearest(steps: tuple[Step, ...], p_complex: float | None) -> tuple[Step, Step]:
    """The two bands that meet at the edge nearest to p_complex, the lower one first."""
    return min(itertools.pairwise(steps), key=lambda pair: abs(pair[1].low - (p_complex or 0.0)))


def instead(
    verdict: Verdict, steps: tuple[Step, ...], ways: Mapping[str, Any], usd: Mapping[str, float]
) -> Instead | None:
    if verdict.p_complex is None or verdict.label is None:
        return None
    here = band(steps, verdict)
    below, above = nearest(steps, verdict.p_complex)
    there = below if here is above else above
    tier, before = ways[there.key]["tier"], usd[ways[here.key]["tier"]]
    return {"side": there.key, "tier": tier, "usd": usd[tier], "usd_more": round(usd[tier] - before, 9)}


def sides(facts: Facts, policy: Policy) -> dict[str, Any]:
    """Where the request would go on either side, or in each band, and without a verdict; nothing is explored."""
    rule, facts = first_match(facts, policy), structs.replace(facts, chance=1.0)
    found: dict[str, Any] = {step.key: told(side(facts, step, rule, policy)) for step in steps_of(rule.id, policy)}
    failed = {reason: told(try_route(facts, Verdict(None, None, reason), policy)) for reason in policy.triage.otherwise}
    return found | {"otherwise": failed}


def side(facts: Facts, step: Step, rule: Rule, policy: Policy) -> Route:
    """Where a verdict in that band sends the request; no side refuses one for which there is a question."""
    there = session_tier(facts, policy, step.tier)
    return permitted_route(facts, policy, there, (rule.id, band_reason(rule, step) if there == step.tier else FOLLOWED))


def costs(facts: Facts, policy: Policy) -> Costs:
    output = OUTPUT_TOKENS if facts.max_tokens is None else facts.max_tokens
    said = "assumed" if facts.max_tokens is None else "max_tokens"
    tiers = {name: cost(tier.price, facts.context, 0, output) / NANO for name, tier in policy.tiers.items()}
    return {"usd": tiers, "input_tokens": facts.context, "output_tokens": output, "output_tokens_from": said}
