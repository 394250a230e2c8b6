"""Why does this request go to this tier?"""

import math
from typing import Any

from gateway.errors import Refusal
from gateway.policy import Bands, Policy, Rule
from gateway.routing import band, first_match, route
from gateway.types import Ask, Facts, Route, Verdict

OUTPUT_TOKENS = 500  # assumed length of an answer when the caller gives no max_tokens


def explain(facts: Facts, verdict: Verdict | None, policy: Policy) -> dict[str, Any]:
    """The whole decision as JSON data; pure, holds no prompt text, says a refusal as part of the answer.

    Keys: policy, facts, rules (each with `matched` and, when not, `why`), route (tiers, rule, reason, or `refused`),
    triaged (whether the rule wants a verdict), verdict (null when none was given or wanted), sides (what either side of
    the threshold or each band leads to; null when nobody is asked), cost (US dollars by tier, and what the estimate
    assumes).
    """
    asked = outcome(facts, None, policy)
    triaged = isinstance(asked, Ask)
    return {
        "policy": {"name": policy.name, "revision": policy.revision, "digest": policy.digest},
        "facts": told_facts(facts),
        "rules": told_rules(facts, policy),
        "route": told(outcome(facts, verdict, policy)),
        "triaged": triaged,
        "verdict": told_verdict(verdict, first_match(facts, policy), policy) if triaged and verdict else None,
        "sides": sides(facts, policy) if triaged else None,
        "cost": cost(facts, policy),
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
    return {"tier": found.tiers[0], "tiers": list(found.tiers), "rule": found.rule, "reason": found.reason}


def told_facts(facts: Facts) -> dict[str, Any]:
    found = {name: getattr(facts, name) for name in Facts.__slots__}
    return found | {
        "signals": sorted(facts.signals),
        "headers": dict(facts.headers),
        "load": dict(facts.load),
    }


def told_rules(facts: Facts, policy: Policy) -> list[dict[str, Any]]:
    """Every rule in order. The first that matched decides, unless the caller's wish went before."""
    found, decided = [], facts.wish is not None
    for rule in policy.rules:
        why = rule.why_not(facts)
        found.append({"id": rule.id, "matched": why is None, "decides": why is None and not decided, "why": why})
        decided = decided or why is None
    return found


def told_verdict(verdict: Verdict, rule: Rule, policy: Policy) -> dict[str, Any]:
    """The verdict, and where it stands on the side or in the band that it chose (`stood`)."""
    return {
        "label": verdict.label,
        "p_complex": verdict.p_complex,
        "source": verdict.source,
        "reason": verdict.reason,
        "seconds": verdict.seconds,
        "cut": verdict.cut,
        "strategy": verdict.strategy,
        "prompt": verdict.prompt,
        **stood(verdict, rule.route, policy.triage.threshold),
    }


def stood(verdict: Verdict, target: object, threshold: float) -> dict[str, Any]:
    """Of a split, `threshold` and `margin`: p_complex less the threshold, complex at or above 0. Of bands, `band` with
    its key and how far p_complex is above its lower and below its upper edge. None where there is no probability, or
    no edge."""
    p_complex = verdict.p_complex
    if not isinstance(target, Bands):
        return {"threshold": threshold, "margin": None if p_complex is None else round(p_complex - threshold, 6)}
    if verdict.label is None:
        return {"band": None}
    step = band(target, verdict)
    return {"band": {"key": step.key, "above": gap(step.low, p_complex), "below": gap(p_complex, step.high)}}


def gap(low: float | None, high: float | None) -> float | None:
    """How far `high` is above `low`; None where one of them is missing or infinite."""
    return None if low is None or high is None or math.isinf(high - low) else round(high - low, 6)


def sides(facts: Facts, policy: Policy) -> dict[str, Any]:
    """Where the request would go on either side, or in each band, and without a verdict."""
    rule = first_match(facts, policy)
    found = {name: told(outcome(facts, verdict, policy)) for name, verdict in stubs(rule).items()}
    failed = {reason: told(outcome(facts, Verdict(None, None, reason), policy)) for reason in policy.triage.otherwise}
    return found | {"otherwise": failed}


def stubs(rule: Rule) -> dict[str, Verdict]:
    """One verdict for each way that a rule can go."""
    if not isinstance(rule.route, Bands):
        return {"simple": Verdict("simple", None), "complex": Verdict("complex", None)}
    return {step.key: Verdict("complex", max(0.0, step.low)) for step in rule.route.steps}


def cost(facts: Facts, policy: Policy) -> dict[str, Any]:
    """US dollars that an answer would cost on each tier, with nothing cached."""
    output = OUTPUT_TOKENS if facts.max_tokens is None else facts.max_tokens
    said = "assumed" if facts.max_tokens is None else "max_tokens"
    tiers = {
        name: round((facts.context * tier.price.input_per_m + output * tier.price.output_per_m) / 1e6, 9)
        for name, tier in policy.tiers.items()
    }
    return {"usd": tiers, "input_tokens": facts.context, "output_tokens": output, "output_tokens_from": said}
