"""How does a traced exchange look as spans?   One for the exchange, one for each call to a model server.

They are made of the exchange's record when it has ended: while it runs, only times are taken. No prompt and no answer
is in them. Attributes have OpenTelemetry's names, those of github.com/open-telemetry/semantic-conventions-genai (which
are "in development") and of semantic-conventions 1.44; ours begin with `gateway.`.
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
from gateway.telemetry.meters import OPERATIONS, PROVIDER
from gateway.trace import Counted, Leg, Trace
from gateway.types import Decision

Attributes = dict[str, Any]  # of text, numbers (times in seconds) and truth; what is None is not told
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
            f"{told['gen_ai.operation.name']} {leg.model}",
            context(leg.id, is_remote=False),
            whole,
            kind=SpanKind.CLIENT,
            attributes=told,
            status=STATUS["error.type" in told],
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
            "http.request.method": "POST",
            "http.route": record.path,
            "http.response.status_code": record.status,
            "error.type": record.error,
            "gen_ai.operation.name": OPERATIONS.get(record.path, "_OTHER"),
            "gen_ai.request.model": model,
            "gen_ai.request.stream": record.stream,
            "gen_ai.response.model": served.get(record.tier or ""),
            "gen_ai.response.time_to_first_chunk": record.ttft,
            "gateway.request_id": record.id,
            "gateway.caller": caller.name if caller else None,
            "gateway.plan": caller.plan if caller else None,
            "user.id": record.user,
            "gateway.policy": record.policy,
            "gateway.tier": record.tier,
            "gateway.rule": route.rule if route else None,
            "gateway.reason": route.reason if route else None,
            "gateway.cache": record.cache,
            "gateway.overhead": record.overhead,
            "gateway.cost_usd": sum([cost.money for cost in record.costs]) / NANO,
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
    """What is told of a call to a model server. `purpose`: classify, draft, answer, or failover (an answer after a
    failed one); `attempt`: from 1, of the calls for an answer. Aborted: by us, before the answer was complete."""
    usage, error = leg.usage, _error(leg)
    cut = attempt is not None and error is None and leg.ended is not None and not usage.complete
    first = leg.first - leg.started if leg.first else None
    return _told(
        {
            "gen_ai.operation.name": OPERATIONS.get(leg.path, "_OTHER"),
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": leg.model,
            "server.address": leg.host,
            "server.port": leg.port,
            "http.response.status_code": leg.status,
            "error.type": error,
            "gen_ai.response.time_to_first_chunk": first,
            "gateway.tier": leg.tier,
            "gateway.call.purpose": purpose,
            "gateway.call.attempt": attempt,
            "gateway.call.aborted": cut or None,
        }
        | _used(usage)
    )


def _decided(decision: Decision) -> Attributes:
    verdict, held = decision.verdict, decision.held
    found: Attributes = {"gateway.draft": decision.draft, "gateway.holdback": held.outcome if held else None}
    if verdict:
        found |= {"gateway.verdict": verdict.label, "gateway.verdict.p_complex": verdict.p_complex}
        found |= {"gateway.verdict.reason": verdict.reason, "gateway.verdict.source": verdict.source}
    return found


def _used(usage: Counted | None) -> Attributes:
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.prompt,
        "gen_ai.usage.cache_read.input_tokens": usage.cached,
        "gen_ai.usage.output_tokens": usage.completion,
    }


def _told(attributes: Attributes) -> Attributes:
    """These, without what is None."""
    for name in [*attributes]:
        if attributes[name] is None:
            del attributes[name]
    return attributes
