"""Why does this request go to this tier?"""

import itertools
from dataclasses import replace
from typing import Any

from gateway.errors import Refusal
from gateway.policy import Bands, Policy, Rule
from gateway.routing import first_match, route
from gateway.types import Ask, Facts, Route, Verdict

OUTPUT_TOKENS = 500  # assumed length of an answer when the caller gives no max_tokens


def explain(facts: Facts, verdict: Verdict | None, policy: Policy) -> dict[str, Any]:
    """The whole decision as JSON data; pure, holds no prompt text, says a refusal as part of the answer.

    Keys: policy, facts, rules (each with `matched` and, when not, `why`), route (tiers, rule, reason, and `p`, how
    likely chance made its first tier; or `refused`), triaged (whether the rule wants a verdict), verdict (null when
    none was given or wanted), sides (what either side of the threshold leads to; null when nobody is asked), instead
    (the other side of the nearest threshold; null without a probability), cost (US dollars by tier, and what the
    estimate assumes).
    """
    triaged = isinstance(outcome(facts, None, policy), Ask)
    judged = verdict if triaged else None
    ways, prices = sides(facts, policy) if triaged else None, cost(facts, policy)
    return {
        "policy": {"name": policy.name, "revision": policy.revision, "digest": policy.digest},
        "facts": told_facts(facts),
        "rules": told_rules(facts, policy),
        "route": told(outcome(facts, verdict, policy)),
        "triaged": triaged,
        "verdict": told_verdict(facts, judged, policy) if judged else None,
        "sides": ways,
        "instead": instead(facts, judged, policy, ways, prices["usd"]) if judged and ways else None,
        "cost": prices,
    }


def outcome(facts: Facts, verdict: Verdict | None, policy: Policy) -> Route | Ask | Refusal:
    """What routing says, a refusal included."""
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
    found = {name: getattr(facts, name) for name in Facts.__slots__}
    return found | {
        "signals": sorted(facts.signals),
        "headers": dict(facts.headers),
        "load": dict(facts.load),
        "waiting": dict(facts.waiting),
    }


def told_rules(facts: Facts, policy: Policy) -> list[dict[str, Any]]:
    """Every rule in order. The first that matched decides, unless the caller's wish went before."""
    found, decided = [], facts.wish is not None
    for rule in policy.rules:
        why = rule.why_not(facts)
        found.append({"id": rule.id, "matched": why is None, "decides": why is None and not decided, "why": why})
        decided = decided or why is None
    return found


def told_verdict(facts: Facts, verdict: Verdict, policy: Policy) -> dict[str, Any]:
    """`threshold` is the one that p_complex is nearest to, `margin` p_complex less that: at or above 0 is above it."""
    p_complex = verdict.p_complex
    threshold, _, _ = nearest(facts, p_complex, policy)
    return {
        "label": verdict.label,
        "p_complex": p_complex,
        "source": verdict.source,
        "reason": verdict.reason,
        "seconds": verdict.seconds,
        "cut": verdict.cut,
        "threshold": threshold,
        "margin": None if p_complex is None else round(p_complex - threshold, 6),
    }


def nearest(facts: Facts, p_complex: float | None, policy: Policy) -> tuple[float, str, str]:
    """The threshold that is nearest to p_complex, and the names of the sides below and above it."""
    rule = first_match(facts, policy)
    if not isinstance(rule.route, Bands):
        return policy.triage.threshold, "simple", "complex"
    pairs = itertools.pairwise(rule.route.steps)
    edges = [(end, below, above) for (end, below, _), (_, above, _) in pairs]
    return min(edges, key=lambda edge: abs(edge[0] - (p_complex or 0.0)))


def instead(
    facts: Facts, verdict: Verdict, policy: Policy, ways: dict[str, Any], usd: dict[str, float]
) -> dict[str, Any] | None:
    """Where the other side of the nearest threshold leads, and what that costs; `usd_more` than the verdict's side."""
    if verdict.p_complex is None or verdict.label is None:
        return None
    threshold, below, above = nearest(facts, verdict.p_complex, policy)
    here, there = (above, below) if verdict.p_complex >= threshold else (below, above)
    if "tier" not in ways[here] or "tier" not in ways[there]:
        return None
    tier, costs = ways[there]["tier"], usd[ways[there]["tier"]]
    return {"side": there, "tier": tier, "usd": costs, "usd_more": round(costs - usd[ways[here]["tier"]], 9)}


def sides(facts: Facts, policy: Policy) -> dict[str, Any]:
    """Where the request would go on either side, or in each band, and without a verdict; nothing is explored."""
    rule, facts = first_match(facts, policy), replace(facts, chance=1.0)
    found = {name: told(outcome(facts, verdict, policy)) for name, verdict in stubs(rule).items()}
    failed = {reason: told(outcome(facts, Verdict(None, None, reason), policy)) for reason in policy.triage.otherwise}
    return found | {"otherwise": failed}


def stubs(rule: Rule) -> dict[str, Verdict]:
    """One verdict for each way that a rule can go."""
    if not isinstance(rule.route, Bands):
        return {"simple": Verdict("simple", None), "complex": Verdict("complex", None)}
    low = 0.0
    found: dict[str, Verdict] = {}
    for end, key, _ in rule.route.steps:
        found[key] = Verdict("complex", low)
        low = end
    return found


def cost(facts: Facts, policy: Policy) -> dict[str, Any]:
    """US dollars that an answer would cost on each tier, with nothing cached."""
    output = OUTPUT_TOKENS if facts.max_tokens is None else facts.max_tokens
    said = "assumed" if facts.max_tokens is None else "max_tokens"
    tiers = {
        name: round((facts.context * tier.price.input_per_m + output * tier.price.output_per_m) / 1e6, 9)
        for name, tier in policy.tiers.items()
    }
    return {"usd": tiers, "input_tokens": facts.context, "output_tokens": output, "output_tokens_from": said}
