"""What is written of an exchange?   One line of JSON."""

import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.recorded import Record


def line(record: Record, model: str | None) -> dict[str, Any]:
    """The log line of an exchange: what was decided and what it took, never what was said."""
    route, decision, usage = record.route, record.decision, record.usage
    found: dict[str, Any] = {
        "request_id": record.id,
        "trace_id": f"{record.trace.id:032x}" if record.trace else None,
        "path": record.path,
        "status": record.status,
        "error": record.error,
        "caller": record.caller.name if record.caller else None,
        "plan": record.caller.plan if record.caller else None,
        "model": model,
        "stream": record.stream,
        "tier": record.tier,
        "rule": route.rule if route else None,
        "reason": route.reason if route else None,
        "cache": record.cache,
        "policy": record.policy,
        "seconds": _microseconds(record.seconds),
        "ttft": _microseconds(record.ttft),
        "overhead": _microseconds(record.overhead),
        "draft": decision.draft if decision else None,
        "won": _microseconds(decision.won) if decision and decision.draft == "kept" else None,
        "holdback": msgspec.to_builtins(decision.held) if decision else None,
        "tokens": [usage.prompt, usage.cached, usage.completion] if usage else None,
    }
    if decision and decision.facts.budget:
        facts = decision.facts
        found["budget"] = {"used": round(facts.budget_used, 6), "then": facts.budget, "of": facts.budget_of}
    if decision and decision.verdict:
        verdict = decision.verdict
        found["verdict"] = {"label": verdict.label, "p_complex": verdict.p_complex, "reason": verdict.reason}
        found["verdict"] |= {"source": verdict.source, "seconds": _microseconds(verdict.seconds), "cut": verdict.cut}
        found["verdict"] |= {"strategy": verdict.strategy, "prompt": verdict.prompt}
    return found


def _microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


class Lines:
    """Writes to what is standard output at that moment."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        try:
            sys.stdout.write(self._encoder.encode_lines(lines).decode())
            sys.stdout.flush()
        except (OSError, ValueError) as error:  # a closed pipe loses lines, not answers
            print(f"{len(lines)} exchange lines were not written: {error}", file=sys.stderr)
