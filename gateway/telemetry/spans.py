"""How does a traced exchange look as spans?   One for the exchange, one for each call to a model server.

They are made of the exchange's record when it has ended: while it runs, only times are taken. No prompt and no answer
is in them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gateway import __version__
from gateway.recorded import Record
from gateway.store import NANO
from gateway.telemetry import names
from gateway.trace import Counted, Leg, Trace
from gateway.types import Decision

Attributes = dict[str, Any]  # of text, numbers and truth; what is None is not told
SCOPE = InstrumentationScope("tiergate", __version__)
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
STATUS = {False: Status(StatusCode.UNSET), True: Status(StatusCode.ERROR)}  # by whether it failed


def spans(
    record: Record, trace: Trace, model: str | None, served: Mapping[str, str], resource: Resource
) -> Iterator[ReadableSpan]:
    """The spans of an exchange. `model`: its name as it may be told; `served`: by tier; `resource`: whose they are."""
    made = partial(ReadableSpan, resource=resource, instrumentation_scope=SCOPE)
    state = TraceState.from_header([trace.state]) if trace.state else None
    context = partial(SpanContext, trace.id, trace_flags=SAMPLED, trace_state=state)
    whole, end = context(trace.span, is_remote=False), trace.started + record.seconds
    yield made(
        f"POST {record.path}",
        whole,
        context(trace.parent, is_remote=True) if trace.parent else None,
        kind=SpanKind.SERVER,
        attributes=exchange(record, model, served),
        status=STATUS[bool(record.error) and not 400 <= record.status < 500],
        start_time=_at(trace, trace.started),
        end_time=_at(trace, end),
    )
    for leg, purpose, attempt in _attempts(trace.legs):
        told = call(leg, purpose, attempt)
        yield made(
            f"{told[names.OPERATION]} {leg.model}",
            context(leg.id, is_remote=False),
            whole,
            kind=SpanKind.CLIENT,
            attributes=told,
            status=STATUS[names.ERROR in told],
            start_time=_at(trace, leg.started),
            end_time=_at(trace, leg.ended or end),
        )


def _at(trace: Trace, time: float) -> int:
    """Nanoseconds since 1970."""
    return trace.epoch + int(time * 1e9)


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
            names.COST: sum([cost.money for cost in record.costs]) / NANO,
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
    return {
        names.INPUT_TOKENS: usage.prompt,
        names.CACHED_TOKENS: usage.cached,
        names.OUTPUT_TOKENS: usage.completion,
    }


def _told(attributes: Attributes) -> Attributes:
    """These, without what is None."""
    for name in [*attributes]:
        if attributes[name] is None:
            del attributes[name]
    return attributes
