import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.json_format import Parse  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.telemetry.sender import MOST, Sender
from loadtest.servers import Sim
from tests.gateway.collector import Collector, collecting
from tests.gateway.serving import COMPLEX, SIMPLE, Answer, body, gateway
from tests.tiers import JSON, policy_for, until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
CANARY = "canary-7f3a"
NOWHERE = Sim("http://127.0.0.1:1", "flash-model")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


def traced(flash: Sim, pro: Sim, *fields: JSON, ratio: float = 1.0, **changes: Any) -> list[Answer]:
    """The answers of a gateway that traces and has ended: what it had to send is sent."""

    async def main() -> list[Answer]:
        async with gateway(policy_for(flash, pro, **changes), trace_ratio=ratio) as gate:
            return [await gate.ask(one.get("body", body()), **one.get("headers", {})) for one in fields]

    return asyncio.run(main())


def told(span: JSON, *names: str) -> list[Any]:
    return [span["attributes"].get(name) for name in names]


def test_an_exchange_is_a_span_in_the_callers_trace_with_one_below_it_for_each_call(
    flash: Sim, pro: Sim, collector: Collector
) -> None:
    flash.config(only="answer", stall_first=5.0)  # the draft does not come to its end
    traced(flash, pro, {"body": body(COMPLEX), "headers": GIVEN})
    (whole, *calls), purpose = collector.spans, "gateway.call.purpose"
    assert (whole["name"], whole["kind"], whole["parentSpanId"]) == ("POST /v1/chat/completions", 2, PARENT)
    assert {span["traceId"] for span in (whole, *calls)} == {TRACE}
    assert {(span["parentSpanId"], span["kind"]) for span in calls} == {(whole["spanId"], 3)}
    names = (purpose, "gateway.tier", "gateway.call.attempt", "gateway.call.aborted")
    found = {tuple(told(span, *names)) for span in calls}
    assert found == {("classify", "flash", None, None), ("draft", "flash", 1, True), ("answer", "pro", 2, None)}
    assert {span["name"] for span in calls} == {"chat flash-model", "chat pro-model"}
    chosen = ("gen_ai.request.model", "gen_ai.response.model", "gateway.verdict", "gateway.draft", "gateway.rule")
    assert told(whole, *chosen) == ["auto", "pro-model", "complex", "wasted", "triaged"]
    answer = next(span for span in calls if span["name"] == "chat pro-model")
    assert told(answer, "gen_ai.usage.output_tokens") == told(whole, "gen_ai.usage.output_tokens") != [None]
    for span in calls:
        assert int(whole["startTimeUnixNano"]) <= int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
    assert int(answer["endTimeUnixNano"]) <= int(whole["endTimeUnixNano"])


def test_a_model_server_is_told_the_span_of_its_call_and_the_callers_state(
    flash: Sim, pro: Sim, collector: Collector
) -> None:
    traced(flash, pro, {"body": body(COMPLEX), "headers": GIVEN})
    ids = {span["spanId"] for span in collector.spans if span["kind"] == 3}
    seen = [entry["headers"] for tier in (flash, pro) for entry in tier.state()["requests"]]
    assert {entry["traceparent"] for entry in seen} == {f"00-{TRACE}-{span}-01" for span in ids}
    assert {entry["tracestate"] for entry in seen} == {"vendor=1"}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("ratio", "headers"),
    [(0.0, GIVEN), (1.0, {"traceparent": GIVEN["traceparent"][:-1] + "0"}), (1e-9, {})],
    ids=["tracing is off", "the caller does not sample", "chance"],
)
def test_an_exchange_that_is_not_sampled_leaves_nothing_and_tells_nobody(
    flash: Sim, pro: Sim, collector: Collector, ratio: float, headers: JSON
) -> None:
    traced(flash, pro, {"headers": headers}, ratio=ratio)
    assert collector.bodies == []
    assert not any("traceparent" in entry["headers"] for entry in flash.state()["requests"])


def test_a_long_stream_makes_no_more_spans_than_a_short_one(flash: Sim, pro: Sim, collector: Collector) -> None:
    fields = body(COMPLEX, stream=True, max_tokens=200, ignore_eos=True)
    answer = traced(flash, pro, {"body": fields}, callers={"plans": {"usual": {"fields": ["ignore_eos"]}}})[0]
    assert len(answer.events()) > 200
    assert len(collector.spans) == 4
    whole = collector.spans[0]["attributes"]
    assert whole["gen_ai.response.time_to_first_chunk"] > 0
    assert whole["gen_ai.request.stream"] is True


def test_failover_is_one_span_for_each_attempt_and_says_what_failed(flash: Sim, pro: Sim, collector: Collector) -> None:
    traced(NOWHERE, pro, {"body": body(model="flash")})
    flash.config(status=500)
    traced(flash, pro, {"body": body(model="flash")})
    connect, second, refused, fourth = [span for span in collector.spans if span["kind"] == 3]
    names = ("gateway.call.purpose", "gateway.call.attempt", "error.type", "http.response.status_code")
    assert [told(span, "gateway.tier") for span in (connect, second, refused, fourth)] == [["flash"], ["pro"]] * 2
    assert [told(span, *names) for span in (connect, refused)] == [
        ["answer", 1, "connect", None],
        ["answer", 1, "500", 500],
    ]
    assert [told(span, *names) for span in (second, fourth)] == [["failover", 2, None, 200]] * 2
    assert [span.get("status") for span in (connect, second)] == [{"code": 2}, None]


def test_who_is_refused_has_a_span_without_calls(flash: Sim, pro: Sim, collector: Collector) -> None:
    traced(flash, pro, {"body": body(model=CANARY)}, {"body": b"{"})
    names = ("error.type", "http.response.status_code", "gen_ai.request.model")
    unknown, broken = collector.spans
    assert told(unknown, *names) == ["model_not_found", 404, "other"]
    assert told(broken, *names) == ["invalid_json", 400, None]
    assert "status" not in unknown, "a caller's mistake is no failure of the gateway"


def test_no_word_of_prompt_or_answer_is_sent(flash: Sim, pro: Sim, collector: Collector) -> None:
    fields = body(f"{SIMPLE} {CANARY}", user=CANARY, metadata={"x": CANARY})
    answer = traced(flash, pro, {"body": fields, "headers": {**GIVEN, "cookie": CANARY}}, {"body": fields})[0]
    sent = b"".join(collector.bodies).decode()
    assert CANARY not in sent
    assert answer.json()["choices"][0]["message"]["content"] not in sent


def test_what_is_sent_is_what_the_protocol_says(flash: Sim, pro: Sim, collector: Collector) -> None:
    traced(flash, pro, {"body": body(COMPLEX), "headers": GIVEN})
    (sent,) = collector.bodies
    fields = json.loads(sent)
    for span in fields["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for name in ("traceId", "spanId", "parentSpanId"):  # in OTLP's JSON hex, in Protobuf's base64
            span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    request = Parse(json.dumps(fields), ExportTraceServiceRequest())
    (scope,) = request.resource_spans[0].scope_spans
    kinds = {span.kind for span in scope.spans}
    assert kinds == {Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT}
    assert {span.trace_state for span in scope.spans} == {"vendor=1"}
    assert collector.paths == ["/v1/traces"]
    assert collector.headers[0]["content-type"] == "application/json"


def test_the_environment_says_where_spans_go_and_who_sends_them() -> None:
    with collecting() as found:
        environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": found.url + "/else", "OTEL_SERVICE_NAME": "mine"}
        environ |= {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b", "OTEL_RESOURCE_ATTRIBUTES": "zone=eu,x"}
        sender = Sender(environ, [0.0])
        sender.put([{"name": "one"}])
        sender.close()
    assert (found.paths, found.headers[0]["api-key"]) == (["/else"], "a b")
    told = json.loads(found.bodies[0])["resourceSpans"][0]["resource"]["attributes"]
    assert {pair["key"]: pair["value"]["stringValue"] for pair in told}.items() >= {
        ("service.name", "mine"),
        ("zone", "eu"),
    }


def test_what_a_collector_cannot_take_is_sent_again_in_order(caplog: pytest.LogCaptureFixture) -> None:
    dropped = [0.0]
    with collecting(503, 429) as found:
        sender = Sender({"OTEL_EXPORTER_OTLP_ENDPOINT": found.url}, dropped, period=0.01)
        sender.put([{"name": "one", "attributes": []}])
        sender.put([{"name": "two", "attributes": []}])
        until(lambda: len(found.bodies) > 0)
        sender.close()
    names = [span["name"] for span in json.loads(found.bodies[0])["resourceSpans"][0]["scopeSpans"][0]["spans"]]
    assert names == ["one", "two"]
    assert dropped == [0.0]
    troubled, well = [record.message for record in caplog.records]
    assert troubled.endswith("(status 503)")
    assert well.endswith("takes spans again")


def test_what_a_collector_refuses_or_nobody_takes_is_dropped_and_counted() -> None:
    refused, piled = [0.0], [0.0]
    with collecting(400) as found:
        sender = Sender({"OTEL_EXPORTER_OTLP_ENDPOINT": found.url}, refused, period=0.01)
        sender.put([{"name": "one"}])
        until(lambda: refused == [1.0])
        sender.close()
    assert found.bodies == []
    sender = Sender({"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE.url}, piled, period=0.01)
    for _ in range(MOST + 7):
        sender.put([{"name": "one"}])
    sender.close()
    assert piled[0] >= 7
