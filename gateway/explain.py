"""Why does this request go to this tier?"""

import itertools
from dataclasses import asdict
from typing import Any

from msgspec import structs

from gateway.errors import Refusal
from gateway.policy import Policy, Rule, Step
from gateway.pricing import cost
from gateway.routing import band, band_reason, effective_verdict, first_match, permitted_route, route, steps_of
from gateway.score import reasons
from gateway.sessions import FOLLOWED, OUTPUT_TOKENS, session_tier
from gateway.store import NANO
from gateway.types import Ask, Facts, Route, Verdict


def explain(facts: Facts, verdict: Verdict | None, policy: Policy) -> dict[str, Any]:
    """The whole decision as JSON data; pure, holds no prompt text, says a refusal as part of the answer.

    Keys: policy, facts, score (value and reasons; null where nothing looks at it), rules (each with `matched` and, when
    not, `why`), route (tiers, rule, reason, and `p`, how likely chance made its first tier; or `refused`), triaged
    (whether the rule wants a verdict), verdict (null when none was given or wanted), sides (what either side of the
    threshold or each band leads to; null when nobody is asked), instead (the other side of the nearest edge; null
    without a probability), cost (US dollars by tier, and what the estimate assumes).
    """
    triaged = isinstance(try_route(facts, None, policy), Ask)
    steps = steps_of(first_match(facts, policy).id, policy)
    counts = effective_verdict(facts, verdict, policy) if triaged and verdict else None
    ways, prices = sides(facts, policy) if triaged else None, costs(facts, policy)
    return {
        "policy": policy.told(),
        "facts": told_facts(facts),
        "score": None if facts.score is None else {"value": facts.score, "reasons": list(reasons(facts.measures))},
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


def told(found: Route | Ask | Refusal) -> dict[str, Any]:
    if isinstance(found, Refusal):
        return {"refused": found.message, "status": found.status}
    if isinstance(found, Ask):
        return {"ask": found.rule, "draft": found.draft}
    tier = found.tiers[0]
    said = {"tier": tier, "tiers": list(found.tiers), "rule": found.rule, "reason": found.reason}
    return said | {"p": found.chances.get(tier, 1.0)}


def told_facts(facts: Facts) -> dict[str, Any]:
    found = {name: getattr(facts, name) for name in Facts.__struct_fields__ if name not in {"score", "measures"}}
    return found | {
        "signals": sorted(facts.signals),
        "headers": dict(facts.headers),
        "load": dict(facts.load),
        "waiting": dict(facts.waiting),
        "session": asdict(facts.session) if facts.session else None,
    }


def told_rules(facts: Facts, policy: Policy) -> list[dict[str, Any]]:
    """Every rule in order. The first that matches decides, unless the caller asked for a tier."""
    found, decided = [], facts.wish is not None
    for rule in policy.rules:
        why = rule.why_not(facts)
        found.append({"id": rule.id, "matched": why is None, "decides": why is None and not decided, "why": why})
        decided = decided or why is None
    return found


def told_verdict(verdict: Verdict, said: Verdict, steps: tuple[Step, ...]) -> dict[str, Any]:
    """`verdict` is the one that routing went by, `said` what the classifier said, whose p_complex is `raw`. `side`: the
    key of `sides` that it falls to; `threshold`: the edge nearest to p_complex; `margin`: p_complex less the threshold,
    at or above 0 on the upper side. Null where there is no label, or no probability."""
    p_complex, threshold = verdict.p_complex, nearest(steps, verdict.p_complex)[1].low
    return structs.asdict(verdict) | {
        "raw": said.p_complex,
        "side": band(steps, verdict).key if verdict.label else None,
        "threshold": threshold,
        "margin": None if p_complex is None else round(p_complex - threshold, 6),
    }


def nearest(steps: tuple[Step, ...], p_complex: float | None) -> tuple[Step, Step]:
    """The two bands that meet at the edge nearest to p_complex, the lower one first."""
    return min(itertools.pairwise(steps), key=lambda pair: abs(pair[1].low - (p_complex or 0.0)))


def instead(
    verdict: Verdict, steps: tuple[Step, ...], ways: dict[str, Any], usd: dict[str, float]
) -> dict[str, Any] | None:
    """Where the other side of the nearest edge leads, what an answer costs there (`usd`), and how much more than on the
    verdict's side that is (`usd_more`)."""
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
    found = {step.key: told(side(facts, step, rule, policy)) for step in steps_of(rule.id, policy)}
    failed = {reason: told(try_route(facts, Verdict(None, None, reason), policy)) for reason in policy.triage.otherwise}
    return found | {"otherwise": failed}


def side(facts: Facts, step: Step, rule: Rule, policy: Policy) -> Route:
    """Where a verdict in that band sends the request; no side refuses one for which there is a question."""
    there = session_tier(facts, policy, step.tier)
    return permitted_route(facts, policy, there, (rule.id, band_reason(rule, step) if there == step.tier else FOLLOWED))


def costs(facts: Facts, policy: Policy) -> dict[str, Any]:
    """US dollars that an answer would cost on each tier, with nothing cached."""
    output = OUTPUT_TOKENS if facts.max_tokens is None else facts.max_tokens
    said = "assumed" if facts.max_tokens is None else "max_tokens"
    tiers = {name: cost(tier.price, facts.context, 0, output) / NANO for name, tier in policy.tiers.items()}
    return {"usd": tiers, "input_tokens": facts.context, "output_tokens": output, "output_tokens_from": said}
