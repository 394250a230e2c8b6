"""What is kept of a decision whose answer has ended, and how does it become a line?   No prompt text."""

import time
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from gateway.ids import fingerprint
from gateway.policy import Policy
from gateway.recorded import Chosen, Outcome, Record, Recorded, Seen, Used
from gateway.types import Caller, Decision

HEADER = 128  # characters of a header's value that are kept


class KeptDecision(msgspec.Struct, gc=False):
    """A decision whose answer ended `at`. Its line is made on demand: most are read by nobody."""

    at: float
    id: str
    caller: str
    policy: str
    seen: Seen
    decision: Decision
    tier: str | None
    skips: str | None
    status: int
    seconds: float
    ttft: float | None
    used: Used | None
    outcome: Outcome | None = None
    conversation: str = ""

    def line(self) -> bytes:
        return msgspec.json.encode(self.recorded())

    def recorded(self) -> Recorded:
        decision, route = self.decision, self.decision.route
        tier, chances = route.tiers[0], dict(route.chances)
        return Recorded(
            id=self.id,
            caller=self.caller,
            conversation=self.conversation,
            at=round(self.at, 3),
            policy=self.policy,
            seen=self.seen,
            facts=cast("dict[str, Any]", decision.facts),  # encoded it is one
            verdict=decision.verdict,
            held=decision.held,
            route=Chosen(tier, chances.get(tier, 1.0), route.tiers, route.rule, route.reason, chances),
            tier=self.tier,
            skips=self.skips,
            status=self.status,
            seconds=round(self.seconds, 6),
            ttft=self.ttft,
            used=self.used,
            outcome=self.outcome,
        )


def to_keep(record: Record, caller: Caller, decision: Decision, policy: Policy) -> KeptDecision:
    """What is kept of a decision whose answer ends now. Tokens only where the server counted the whole answer."""
    usage = record.usage
    return KeptDecision(
        time.time(),
        record.id,
        caller.id,
        record.policy,
        policy.once(seen),
        _cut(decision) if decision.facts.headers else decision,
        record.tier,
        policy.skips(record.tier),
        record.status,
        record.seconds,
        record.ttft,
        Used(usage.prompt, usage.cached, usage.completion) if usage and usage.complete else None,
    )


def seen(policy: Policy) -> Seen:
    """What `policy` makes the gateway look at."""
    patterns = {name: policy.signals[name].pattern for name in policy.watched_signals}
    prints = {name: fingerprint(text) for name, text in patterns.items()}
    starts = dict.fromkeys(policy.holdback.tiers, policy.holdback.looks) if policy.holdback else {}
    table = policy.table.digest if policy.table else ""
    kept = policy.sessions is not None
    return Seen(prints, policy.watched_headers, tuple(policy.tiers), policy.question, kept, table, starts)


def _cut(decision: Decision) -> Decision:
    """The decision with header values, which callers write, cut to HEADER characters."""
    headers = {name: value[:HEADER] for name, value in decision.facts.headers.items()}
    return replace(decision, facts=replace(decision.facts, headers=headers))
