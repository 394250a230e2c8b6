"""Which tiers does a wish, a rule or a verdict choose?"""

import math
from collections.abc import Sequence
from typing import overload

from msgspec.structs import replace

from gateway.calibration import row
from gateway.policy import LOCAL, Bands, Policy, Rule, Split, Step, Tier
from gateway.routing.reach import cached, failover_tiers, permitted_route, permitted_tier, wished_route
from gateway.sessions import FOLLOWED, session_tier
from gateway.types import Ask, Facts, Label, Route, Verdict

DOUBTFUL = 0.95  # local score from which no draft starts: so high, as a wasted draft costs little and a missed one much
IDLE_SHARE = 0.75  # a quarter of a tier's places stays free for answers that are sure to be needed


@overload
def route(facts: Facts, verdict: Verdict, policy: Policy) -> Route: ...
@overload
def route(facts: Facts, verdict: None, policy: Policy) -> Route | Ask: ...
def route(facts: Facts, verdict: Verdict | None, policy: Policy) -> Route | Ask:
    """The tiers to try for a request, or an Ask when the rule wants a verdict that could change the outcome.

    The caller's wish decides (rule id "caller"); without one, the first rule that matches. A rule that wants a verdict
    takes the tier of its label; of a failed one, the tier that `otherwise` names for the failure, which is the route's
    reason (with "local ..." where the score decides in its place). The result may be changed, which the reason tells:
        session          the conversation stays on another tier
        budget, share    a used-up limit keeps the caller on its lowest tier, whatever it wishes
        capped, floor    the tier is above or below what the caller may use
        needs ...        the tier lacks what the request needs: the next one up that has it, else the next one down
        explored         the rule sends some requests another way, by `facts.chance`

    Raises Forbidden for a wish above the cap, BadRequest when no permitted tier has what the request needs.
    """
    if facts.wish is not None:
        return cached(wished_route, facts, policy, facts.wish, facts.wished_by)
    rule = first_match(facts, policy)
    if isinstance(rule.route, str):
        return cached(permitted_route, facts, policy, rule.route, (rule.id, "rule"))
    ways = without_verdict(facts, policy, rule.id) if facts.session else cached(without_verdict, facts, policy, rule.id)
    if isinstance(ways, Route):
        return ways
    if verdict is None:
        return Ask(rule.id, draft_tier(facts, policy, ways[0]), early_tier(facts, policy, ways[-1]))
    verdict = effective_verdict(facts, verdict, policy)
    if verdict.label is None:
        tier = permitted_tier(facts, policy, session_tier(facts, policy, tier_without_verdict(verdict, policy)))
        return Route((tier, *failover_tiers(facts, policy, tier)), rule.id, verdict.reason)
    tier, said = verdict_tier(rule, verdict, policy)
    there = session_tier(facts, policy, tier) if facts.session else tier
    found = cached(permitted_route, facts, policy, there, said if there == tier else (rule.id, FOLLOWED))
    return explored(facts, policy, rule, found) if rule.explore else found


def without_verdict(facts: Facts, policy: Policy, name: str) -> Route | tuple[str, ...]:
    """What the rule of that id decides before there is a verdict: a Route if every verdict leads to the same tier, else
    the permitted tier for each of its outcomes, the simplest case first."""
    rule = ruling(name, policy)
    ways = tuple(session_tier(facts, policy, tier) for tier in rule_tiers(rule))
    tier, *others = tiers = tuple(permitted_tier(facts, policy, tier) for tier in ways)
    if any(other != tier for other in others):
        return tiers
    return Route((tier, *failover_tiers(facts, policy, tier)), name, either_way(facts, rule, ways, tier))


def either_way(facts: Facts, rule: Rule, ways: Sequence[str], tier: str) -> str:
    """The reason of a route that needs no verdict, as all outcomes of the rule (`ways`) lead to `tier`."""
    if facts.capped and set(ways) != {tier}:
        return facts.capped
    return FOLLOWED if set(ways) == {tier} != set(rule_tiers(rule)) else f"both ways {tier}"


def first_match(facts: Facts, policy: Policy) -> Rule:
    """The rule that decides; a loaded policy ends with one that matches every request."""
    for rule in policy.rules:
        if rule.matches(facts):
            break
    return rule


def ruling(name: str, policy: Policy) -> Rule:
    """The rule of that id."""
    return next(rule for rule in policy.rules if rule.id == name)


def rule_tiers(rule: Rule) -> tuple[str, ...]:
    """The tiers that a rule may choose, the simplest case first."""
    if isinstance(rule.route, Split):
        return (rule.route.simple, rule.route.complex)
    return tuple(rule.route.p_complex.values()) if isinstance(rule.route, Bands) else (rule.route,)


def effective_verdict(facts: Facts, verdict: Verdict, policy: Policy) -> Verdict:
    """The verdict to route by: with the calibration's p_complex where the policy names one. A failed verdict, where
    `otherwise` says local, is replaced by one from the local score (source local; the reason stays)."""
    layer, local = policy.calibration, verdict.label is None
    if local and (facts.score is None or fallback(verdict, policy) != LOCAL):
        return verdict
    if not local and (layer is None or verdict.p_complex is None):
        return verdict
    p = layer.p(row(facts.score, verdict.p_complex, facts.measures)) if layer else facts.score or 0.0
    label: Label = "complex" if p >= policy.triage.threshold else "simple"
    return replace(verdict, label=label, p_complex=p, source=LOCAL if local else verdict.source)


def verdict_tier(rule: Rule, verdict: Verdict, policy: Policy) -> tuple[str, tuple[str, str]]:
    """The tier that a labelled verdict chooses, with rule and reason."""
    step = band(policy.once(steps_of, rule.id), verdict)
    reason = band_reason(rule, step)
    return step.tier, (rule.id, f"{verdict.reason}, local {reason}" if verdict.source == LOCAL else reason)


def band_reason(rule: Rule, step: Step) -> str:
    """The reason of a route that a band chose."""
    return f"p_complex {step.key}" if isinstance(rule.route, Bands) else step.key


def steps_of(name: str, policy: Policy) -> tuple[Step, ...]:
    """The bands, or the two sides, that a verdict chooses from; none where the rule of that id wants no verdict."""
    target = ruling(name, policy).route
    return () if isinstance(target, str) else bands(target, policy.triage.threshold)


def bands(target: Split | Bands, threshold: float) -> tuple[Step, ...]:
    """The bands of p_complex as they rise; the two sides of a split are bands that meet at the threshold."""
    if isinstance(target, Bands):
        return target.steps
    low, high = target.simple, target.complex
    return (Step(-math.inf, threshold, "simple", low), Step(threshold, math.inf, "complex", high))


def band(steps: tuple[Step, ...], verdict: Verdict) -> Step:
    """The band of a labelled verdict. A label without a probability means the outermost band of its side: the first
    one for simple, the last one for complex."""
    if verdict.p_complex is None:
        return steps[-1 if verdict.label == "complex" else 0]
    for step in steps:
        if verdict.p_complex < step.high:
            break
    return step


def explored(facts: Facts, policy: Policy, rule: Rule, found: Route) -> Route:
    """`found` or, with the probability `rule.explore`, one of the rule's other tiers; with the probability of each
    (its propensity). The other tiers too are limited to what the caller is permitted.
    """
    chosen = found.tiers[0]
    sides = dict.fromkeys(permitted_tier(facts, policy, session_tier(facts, policy, tier)) for tier in rule_tiers(rule))
    others = [tier for tier in sides if tier != chosen]
    share = rule.explore / len(others)
    chances = {chosen: 1 - rule.explore, **dict.fromkeys(others, share)}
    at = int(facts.chance / share)
    if at >= len(others):
        return Route(found.tiers, found.rule, found.reason, chances)
    return Route((others[at], *failover_tiers(facts, policy, others[at])), rule.id, "explored", chances)


def fallback(verdict: Verdict, policy: Policy) -> str:
    """What `otherwise` says for a verdict's reason: a tier or LOCAL; the first tier where it says nothing."""
    given = {str(reason): tier for reason, tier in policy.triage.otherwise.items()}
    return given.get(verdict.reason, next(iter(policy.tiers)))


def tier_without_verdict(verdict: Verdict, policy: Policy) -> str:
    """The tier that answers without a verdict; the first one where the score was to decide and there is none."""
    given = fallback(verdict, policy)
    return next(iter(policy.tiers)) if given == LOCAL else given


def draft_tier(facts: Facts, policy: Policy, tier: str) -> str | None:
    """`tier`, the one for the simplest case, if `speculate` lets it start its answer before the verdict.

    when_idle: with the draft and the question both under way, the tier still has a quarter of its places free, and the
    local score does not say complex.
    """
    if policy.triage.speculate == "always":
        return tier
    idle = policy.triage.speculate == "when_idle" and has_room(facts, policy.tiers[tier], tier, 2)
    return tier if idle and (facts.score is None or facts.score < DOUBTFUL) else None


def early_tier(facts: Facts, policy: Policy, tier: str) -> str | None:
    """`tier`, the one for the hardest case, if it may start before the verdict: for what looks hard beyond doubt."""
    rules = policy.triage.early
    if rules is None or facts.score is None or facts.score < rules.score:
        return None
    return tier if has_room(facts, policy.tiers[tier], tier, 1) else None


def has_room(facts: Facts, tier: Tier, name: str, calls: int) -> bool:
    """Whether a quarter of the tier's places stays free with so many calls more."""
    return facts.load.get(name, 0) + calls <= IDLE_SHARE * tier.limits.max_inflight
