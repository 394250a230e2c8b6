"""For replay: who would have answered, had the start of a recorded answer been judged by other rules?   Pure."""

from gateway.holdback.hold import may_escalate
from gateway.holdback.signs import doubtful
from gateway.policy import Policy
from gateway.recorded import Recorded
from gateway.types import Facts

FIGURES = ("mean_logprob", "margin")  # signs whose figures are recorded, so that other bounds can be tried on them


def answered(one: Recorded) -> str:
    """The tier that answered for the chosen one: itself, or the one that hold-back escalated to."""
    escalated = one.held is not None and one.held.outcome == "escalated"
    return one.tier or one.route.tier if escalated else one.route.tier


def watches(tier: str, facts: Facts, policy: Policy) -> bool:
    """Whether `policy` would judge the start of the tier's answer, if the request lets it."""
    rules = policy.holdback
    return rules is not None and tier in rules.tiers and may_escalate(tier, facts, tier, rules, policy)


def unrecorded(one: Recorded, policy: Policy) -> str | None:
    """What `policy` looks at in the start of the recorded answer and the record lacks, in words; None: nothing."""
    rules, tier = policy.holdback, one.route.tier
    if rules is None or not watches(tier, one.read_facts(), policy):
        return None
    starts = one.seen.starts if one.seen else None
    looked = (starts or {}).get(tier)
    if looked == rules.looks:
        return None
    return f"{tier}'s starts ({rules.looks}; seen was {looked or 'none'})"


def again(one: Recorded, policy: Policy) -> str:
    """The tier that answers under `policy` where that chooses the recorded tier and lacks nothing (`unrecorded`)."""
    rules, tier, held = policy.holdback, one.route.tier, one.held
    if rules is None or held is None or held.outcome == "broken" or not watches(tier, one.read_facts(), policy):
        return tier
    if held.outcome == "escalated" and held.reason not in FIGURES:
        return rules.to
    return rules.to if doubtful(held.figures, rules.escalate_when) else tier
