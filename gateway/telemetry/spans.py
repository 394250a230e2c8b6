"""How does a traced exchange look as spans?   One for the exchange, one for each call to a model server.

They are made of the exchange's record when it has ended: while it runs, only times are taken. No prompt and no answer
is in them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.recorded import Record
from gateway.store import NANO
from gateway.telemetry import names
from gateway.trace import Counted, Leg, Trace
from gateway.types import Decision

Attributes = dict[str, Any]  # of text, numbers and truth; what is None is not told
SERVER, CLIENT = 2, 3  # kinds of spans
FAILED = 2  # a span's status


def spans(record: Record, trace: Trace, model: str | None, served: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The spans of an exchange as OTLP's JSON has them. `model`: its name as it may be told; `served`: by tier."""
    end = trace.started + record.seconds
    found = _span(trace, trace.span, f"POST {record.path}", SERVER, exchange(record, model, served))
    if trace.parent is not None:
        found["parentSpanId"] = f"{trace.parent:016x}"
    yield _timed(found, trace, trace.started, end, bool(record.error) and not 400 <= record.status < 500)
    for leg, purpose, attempt in _attempts(trace.legs):
        told = call(leg, purpose, attempt)
        found = _span(trace, leg.id, f"{told[names.OPERATION]} {leg.model}", CLIENT, told)
        found["parentSpanId"] = f"{trace.span:016x}"
        yield _timed(found, trace, leg.started, leg.ended or end, names.ERROR in told)


def exchange(record: Record, model: str | None, served: Mapping[str, str]) -> Attributes:
    """What is told of an exchange."""
    route, caller = record.route, record.caller
    return _told(
        {
            names.METHOD: "POST",
            names.HTTP_ROUTE: record.path,
            names.STATUS: record.status,
            names.ERROR: record.error,
            names.OPERATION: names.OPERATIONS.get(record.path, names.OTHER),
            names.REQUEST_MODEL: model,
            names.REQUEST_STREAM: record.stream,
            names.RESPONSE_MODEL: served.get(record.tier or ""),
            names.FIRST_CHUNK: record.ttft,
            names.REQUEST_ID: record.id,
            names.CALLER: caller.name if caller else None,
            names.PLAN: caller.plan if caller else None,
            names.POLICY: record.policy,
            names.TIER: record.tier,
            names.RULE: route.rule if route else None,
            names.REASON: route.reason if route else None,
            names.CACHE: record.cache,
            names.OVERHEAD: record.overhead,
            names.COST: sum(cost.money for cost in record.costs) / NANO,
        }
        | (_decided(record.decision) if record.decision else {})
        | _used(record.usage)
    )


def _attempts(legs: Sequence[Leg]) -> Iterator[tuple[Leg, str, int | None]]:
    """Each call, what it was for, and which attempt at an answer it was, from 1."""
    answers, failing = 0, False
    for leg in legs:
        if leg.kind == "triage":
            yield leg, "classify", None
            continue
        answers += 1
        yield leg, "failover" if failing and leg.kind == "answer" else leg.kind, answers
        failing = failing or _error(leg) is not None


def _error(leg: Leg) -> str | None:
    return leg.error if leg.status is None or leg.status < 400 else str(leg.status)


def call(leg: Leg, purpose: str, attempt: int | None) -> Attributes:
    """What is told of a call to a model server."""
    usage, error = leg.usage, _error(leg)
    cut = attempt is not None and error is None and leg.ended is not None and not usage.complete
    first = leg.first - leg.started if leg.first else None
    return _told(
        {
            names.OPERATION: names.OPERATIONS.get(leg.path, names.OTHER),
            names.FLAVOUR: names.PROVIDER,
            names.REQUEST_MODEL: leg.model,
            names.SERVER: leg.host,
            names.PORT: leg.port,
            names.STATUS: leg.status,
            names.ERROR: error,
            names.FIRST_CHUNK: first,
            names.TIER: leg.tier,
            names.PURPOSE: purpose,
            names.ATTEMPT: attempt,
            names.ABORTED: cut or None,
        }
        | _used(usage)
    )


def _decided(decision: Decision) -> Attributes:
    verdict, held = decision.verdict, decision.held
    found: Attributes = {names.DRAFT: decision.draft, names.HOLDBACK: held.outcome if held else None}
    if verdict:
        found |= {names.VERDICT: verdict.label, names.P_COMPLEX: verdict.p_complex}
        found |= {names.VERDICT_REASON: verdict.reason, names.VERDICT_SOURCE: verdict.source}
    return found


def _used(usage: Counted | None) -> Attributes:
    if usage is None:
        return {}
    counts = (usage.prompt, usage.cached, usage.completion)
    return dict(zip((names.INPUT_TOKENS, names.CACHED_TOKENS, names.OUTPUT_TOKENS), counts, strict=True))


def _told(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}


def _span(trace: Trace, span: int, name: str, kind: int, told: Attributes) -> dict[str, Any]:
    found: dict[str, Any] = {"traceId": f"{trace.id:032x}", "spanId": f"{span:016x}", "name": name, "kind": kind}
    if trace.state:
        found["traceState"] = trace.state
    return found | {"attributes": pairs(told)}


def _timed(found: dict[str, Any], trace: Trace, start: float, end: float, failed: bool) -> dict[str, Any]:
    times = {"startTimeUnixNano": trace.epoch + int(start * 1e9), "endTimeUnixNano": trace.epoch + int(end * 1e9)}
    found |= {name: str(time) for name, time in times.items()}  # 64 bits are text in JSON
    return found | ({"status": {"code": FAILED}} if failed else {})


def pairs(attributes: Attributes) -> list[dict[str, Any]]:
    """Attributes as OTLP's JSON has them."""
    return [{"key": name, "value": _value(value)} for name, value in attributes.items()]


def _value(value: str | bool | float) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}
