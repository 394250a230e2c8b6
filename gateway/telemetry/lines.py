"""What is written of an exchange?   One line of JSON."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.recorded import Record
from gateway.types import Held, Verdict
from gateway.usage import Booked, booked

_encoder = msgspec.json.Encoder()


class LogLine(msgspec.Struct, frozen=True):
    """The log line of an exchange: what was decided and how long it took, no text of prompt or answer. UNSET is left
    out.

    `at`: when it ended, in seconds since 1970. `chosen` is the tier that was to answer, `tier` the one that did.
    `booked`: what the caller pays for. `user`: who asked behind its key, where the policy says how that is known.
    """

    at: float
    request_id: str
    trace_id: str | None
    path: str
    status: int
    error: str | None
    caller: str | None
    plan: str | None
    model: str | None
    stream: bool
    chosen: str | None
    tier: str | None
    rule: str | None
    reason: str | None
    cache: str
    policy: str
    seconds: float
    ttft: float | None
    overhead: float | None
    draft: str | None
    won: float | None
    holdback: Held | None
    tokens: tuple[int | None, int | None, int | None] | None
    budget: dict[str, Any] | UnsetType
    verdict: Verdict | UnsetType
    booked: Booked | UnsetType
    user: str | UnsetType


def line(record: Record, model: str | None, at: float) -> LogLine:
    """The line of an exchange that ended `at`. `model`: the model's name as it may be told."""
    caller, route, decision, usage = record.caller, record.route, record.decision, record.usage
    trace_id = f"{record.trace.id:032x}" if record.trace else None
    name, plan = (caller.name, caller.plan) if caller else (None, None)
    chosen, rule, reason = (route.tiers[0], route.rule, route.reason) if route else (None, None, None)
    ttft = None if record.ttft is None else _microseconds(record.ttft)
    overhead = None if record.overhead is None else _microseconds(record.overhead)
    tokens = (usage.prompt, usage.cached, usage.completion) if usage else None
    draft, won, held = None, None, None
    budget: dict[str, Any] | UnsetType = UNSET
    verdict: Verdict | UnsetType = UNSET
    if decision:
        draft, held, facts = decision.draft, decision.held, decision.facts
        won = _microseconds(decision.won) if draft == "kept" else None
        if facts.budget:
            budget = {"used": round(facts.budget_used, 6), "then": facts.budget, "of": facts.budget_of}
        if decision.verdict:
            verdict = replace(decision.verdict, seconds=_microseconds(decision.verdict.seconds))
    return LogLine(  # by position: so many take six times as long by name
        at, record.id, trace_id, record.path, record.status, record.error, name, plan, model, record.stream, chosen,
        record.tier, rule, reason, record.cache, record.policy, _microseconds(record.seconds), ttft, overhead, draft,
        won, held, tokens, budget, verdict, booked(record.costs) or UNSET, record.user or UNSET,
    )  # fmt: skip


def _microseconds(seconds: float) -> float:
    """As round() does, in a tenth of its steps."""
    return int(seconds * 1e6 + 0.5) / 1e6


def text(lines: Sequence[LogLine]) -> str:
    """Whole lines of JSON."""
    return _encoder.encode_lines(lines).decode()
