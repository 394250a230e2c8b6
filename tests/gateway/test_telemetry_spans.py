import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.resources import Resource

from gateway.recorded import Record
from gateway.store import Line
from gateway.telemetry import Telemetry
from gateway.telemetry.otlp import REMEMBERED, REMOTE, REMOTE_KNOWN, Pairs, request, value
from gateway.telemetry.sending import trusting
from gateway.telemetry.spans import SCOPE, spans
from gateway.trace import Leg, Trace
from gateway.types import Decision, Facts, Held, Route, Usage
from loadtest.servers import Sim, until
from tests.gateway.collector import Collector, collecting, plain
from tests.gateway.identity import CERTIFICATE, KEY, pem
from tests.gateway.serving import COMPLEX, SIMPLE, Answer, body, gateway
from tests.tiers import JSON, policy_for

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
CANARY = "canary-7f3a"
DEAF = """
from gateway.recorded import Record
from gateway.telemetry import Telemetry
from gateway.trace import Trace
telemetry = Telemetry(False, 1.0)
for _ in range(3000):
    telemetry.record(Record("r1", "/v1/chat/completions", 200, 0.5, 0.001, "default@1", trace=Trace()))
"""
NOWHERE = Sim("http://127.0.0.1:1", "flash-model")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


async def traced(flash: Sim, pro: Sim, *fields: JSON, ratio: float = 1.0, **changes: Any) -> list[Answer]:
    """The answers of a gateway that traces and has ended: what it had to send is sent."""
    async with gateway(policy_for(flash, pro, **changes), trace_ratio=ratio) as gate:
        return [await gate.ask(one.get("body", body()), **one.get("headers", {})) for one in fields]


async def test_what_fastapi_serves_is_one_span_each_but_what_is_asked_all_the_time_is_none(
    flash: Sim, pro: Sim, collector: Collector
) -> None:
    async with gateway(policy_for(flash, pro), trace_ratio=1.0) as gate:
        for path in ("/openapi.json", "/v1/models", "/health", "/ready", "/metrics"):
            assert (await gate.get(path, **GIVEN)).status == 200
        assert (await gate.ask(body(model="none"))).status == 404
    span, ours = collector.spans
    scopes = {scope.scope.name: len(scope.spans) for one in collector.sent for scope in one.scope_spans}
    assert (ours.name, scopes) == ("POST /v1/chat/completions", {"fastapi": 1, "tiergate": 1})
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("GET /openapi.json", TRACE, PARENT)


def test_spans_are_told_as_the_sdk_tells_them() -> None:
    usage = Usage(10**12, None, 0, complete=True)
    began, given = Trace(), Trace(5 << 100, 77, "vendor=1")
    given.began(leg := Leg("answer", "flash", "/v1/completions", "m" * 200, "h", 65535, usage, status=503, error="é"))
    leg.ended = leg.started + 1
    ended = Record("r1", "/v1/completions", 502, 0.5, -0.001, "p 東", tier="flash", usage=usage, error="x")
    resource = Resource.create({"service.name": "t", "process.command_args": ["a", "b"]})
    kinds = ((ended, began), (ended, given), (Record("", "", 200, 0.0, None, "", stream=True, ttft=1e300), given))
    found = [span for record, trace in kinds for span in spans(record, trace, "auto", {"flash": "m"}, resource)]
    (sent,) = ExportTraceServiceRequest.FromString(request(resource, SCOPE, found)).resource_spans
    (known,) = encode_spans(found).resource_spans
    assert sent == known


@pytest.mark.parametrize("what", ["", "m" * 126, "m" * 128, "m" * 16_384, 0, 127, 128, -1, 1 << 62, True, 0.5])
def test_values_of_any_length_are_told_as_the_sdk_tells_them(what: Any) -> None:
    kind = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}[type(what)]
    assert value(what) == AnyValue(**{kind: what}).SerializeToString()


def test_of_what_comes_anew_with_each_span_no_more_is_remembered_than_may_be() -> None:
    pairs = Pairs(9)
    for at in range(REMEMBERED + 1):
        assert pairs.text({"id": str(at)}) == pairs.text({"id": str(at)})
        assert len(pairs) <= REMEMBERED


@contextmanager
def tracing() -> Iterator[Telemetry]:
    """Telemetry that traces all; at its end what it had to send is sent."""
    telemetry = Telemetry(log=False, trace_ratio=1.0)
    yield telemetry
    telemetry.close()


def end(telemetry: Telemetry, exchanges: int = 1) -> None:
    """Exchanges end: one span each."""
    for _ in range(exchanges):
        telemetry.record(Record("r1", "/v1/chat/completions", 200, 0.5, 0.001, "default@1", trace=Trace()))


def unsent(telemetry: Telemetry) -> float:
    found = re.search(rb"^gateway_traces_dropped_total (.+)$", telemetry.render(), re.MULTILINE)
    assert found
    return float(found[1])


def told(span: Span, *names: str) -> list[Any]:
    attributes = plain(span.attributes)
    return [attributes.get(name) for name in names]


async def test_an_exchange_is_a_span_in_the_callers_trace_with_one_below_it_for_each_call(
    flash: Sim, pro: Sim, collector: Collector
) -> None:
    flash.config(only="answer", stall_first=5.0)  # the draft does not come to its end
    await traced(flash, pro, {"body": body(COMPLEX), "headers": GIVEN})
    (whole, *calls), purpose = collector.spans, "gateway.call.purpose"
    assert (whole.name, whole.kind) == ("POST /v1/chat/completions", Span.SPAN_KIND_SERVER)
    assert whole.parent_span_id.hex() == PARENT
    assert {span.trace_id.hex() for span in (whole, *calls)} == {TRACE}
    assert {span.trace_state for span in (whole, *calls)} == {"vendor=1"}
    assert {(span.parent_span_id, span.kind) for span in calls} == {(whole.span_id, Span.SPAN_KIND_CLIENT)}
    names = (purpose, "gateway.tier", "gateway.call.attempt", "gateway.call.aborted")
    found = {tuple(told(span, *names)) for span in calls}
    assert found == {("classify", "flash", None, None), ("draft", "flash", 1, True), ("answer", "pro", 2, None)}
    assert {span.name for span in calls} == {"chat flash-model", "chat pro-model"}
    chosen = ("gen_ai.request.model", "gen_ai.response.model", "gateway.verdict", "gateway.draft", "gateway.rule")
    assert told(whole, *chosen) == ["auto", "pro-model", "complex", "wasted", "triaged"]
    assert told(whole, "gateway.reason", "gateway.caller", "gateway.plan") == ["complex", "anonymous", "usual"]
    assert told(whole, "gateway.verdict.reason", "gateway.verdict.source") == ["ok", "triage"]
    assert {span.status.code for span in (whole, *calls)} == {Status.STATUS_CODE_UNSET}
    assert [whole.flags, *{span.flags for span in calls}] == [REMOTE_KNOWN | REMOTE, REMOTE_KNOWN]
    answer = next(span for span in calls if span.name == "chat pro-model")
    assert 0 < told(answer, "gen_ai.response.time_to_first_chunk")[0] < 60
    assert told(answer, "gen_ai.usage.output_tokens") == told(whole, "gen_ai.usage.output_tokens") != [None]
    for span in calls:
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert answer.end_time_unix_nano <= whole.end_time_unix_nano


async def test_a_model_server_is_told_the_span_of_its_call_and_the_callers_state(
    flash: Sim, pro: Sim, collector: Collector
) -> None:
    flash.config(only="triage", stall_first=0.1)  # else the verdict may drop the draft before it was sent
    await traced(flash, pro, {"body": body(COMPLEX), "headers": GIVEN})
    ids = {span.span_id.hex() for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT}
    seen = [entry["headers"] for tier in (flash, pro) for entry in tier.state()["requests"]]
    assert {entry["traceparent"] for entry in seen} == {f"00-{TRACE}-{span}-01" for span in ids}
    assert {entry["tracestate"] for entry in seen} == {"vendor=1"}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("ratio", "headers"),
    [(0.0, GIVEN), (1.0, {"traceparent": GIVEN["traceparent"][:-1] + "0"}), (1e-9, {})],
    ids=["tracing is off", "the caller does not sample", "chance"],
)
async def test_an_exchange_that_is_not_sampled_leaves_nothing_and_tells_nobody(
    flash: Sim, pro: Sim, collector: Collector, ratio: float, headers: JSON
) -> None:
    await traced(flash, pro, {"headers": headers}, ratio=ratio)
    assert collector.bodies == []
    assert not any("traceparent" in entry["headers"] for entry in flash.state()["requests"])


async def test_a_long_stream_makes_no_more_spans_than_a_short_one(flash: Sim, pro: Sim, collector: Collector) -> None:
    fields = body(COMPLEX, stream=True, max_tokens=200, ignore_eos=True)
    answer = (await traced(flash, pro, {"body": fields}, callers={"plans": {"usual": {"fields": ["ignore_eos"]}}}))[0]
    assert len(answer.events()) > 200
    assert len(collector.spans) == 4
    first, stream = told(collector.spans[0], "gen_ai.response.time_to_first_chunk", "gen_ai.request.stream")
    assert first > 0
    assert stream is True


async def test_failover_is_one_span_for_each_attempt_and_says_what_failed(
    flash: Sim, pro: Sim, collector: Collector
) -> None:
    await traced(NOWHERE, pro, {"body": body(model="flash")})
    flash.config(status=500)
    await traced(flash, pro, {"body": body(model="flash")})
    connect, second, refused, fourth = [span for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT]
    names = ("gateway.call.purpose", "gateway.call.attempt", "error.type", "http.response.status_code")
    assert connect.end_time_unix_nano <= second.start_time_unix_nano
    assert told(refused, "gateway.call.aborted") == [None], "it ended by itself"
    assert [told(span, "gateway.tier") for span in (connect, second, refused, fourth)] == [["flash"], ["pro"]] * 2
    assert [told(span, *names) for span in (connect, refused)] == [
        ["answer", 1, "connect", None],
        ["answer", 1, "500", 500],
    ]
    assert [told(span, *names) for span in (second, fourth)] == [["failover", 2, None, 200]] * 2
    assert [span.status.code for span in (connect, second)] == [Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]


async def test_who_is_refused_has_a_span_without_calls(flash: Sim, pro: Sim, collector: Collector) -> None:
    await traced(flash, pro, {"body": body(model=CANARY)}, {"body": b"{"})
    names = ("error.type", "http.response.status_code", "gen_ai.request.model")
    unknown, broken = collector.spans
    assert told(unknown, *names) == ["model_not_found", 404, "other"]
    assert told(broken, *names) == ["invalid_json", 400, None]
    assert unknown.status.code == Status.STATUS_CODE_UNSET, "a caller's mistake is no failure of the gateway"


@pytest.mark.parametrize(
    ("status", "whole", "error"),
    [(399, "ERROR", None), (400, "UNSET", "400"), (499, "UNSET", "499"), (500, "ERROR", "500")],
)
def test_a_call_fails_from_400_on_and_an_exchange_by_an_error_that_is_not_the_callers(
    status: int, whole: str, error: str | None
) -> None:
    trace, path = Trace(), "/v1/chat/completions"
    trace.began(Leg("answer", "flash", path, "m", "h", 1, Usage(complete=True), status=status))
    costs = [Line("flash", "answer", False, 10, 0, 5, money) for money in (2_000_000, 500_000)]
    decision = Decision(
        Facts("auto", "ann", "usual"), None, Route(("flash",), "all", "rule"), held=Held("broken", "5xx", 0.1)
    )
    ended = Record(
        "r1", path, status, 0.5, 0.001, "p", error="upstream_failed", trace=trace, costs=costs, decision=decision,
        user="u7",
    )  # fmt: skip
    exchange, call = spans(ended, trace, "auto", {}, Resource({}))
    assert exchange.status.status_code.name == whole
    assert (call.attributes or {}).get("error.type") == error
    assert (exchange.attributes or {})["gateway.cost_usd"] == 0.0025
    assert (exchange.attributes or {})["user.id"] == "u7"
    assert (exchange.attributes or {})["gateway.holdback"] == "broken"
    assert (exchange.end_time or 0) - (exchange.start_time or 0) == pytest.approx(0.5e9, abs=1e3)
    assert exchange.start_time == pytest.approx(time.time_ns(), abs=60e9)


async def test_no_word_of_prompt_or_answer_is_sent(flash: Sim, pro: Sim, collector: Collector) -> None:
    fields = body(f"{SIMPLE} {CANARY}", user=CANARY, metadata={"x": CANARY})
    answer = (await traced(flash, pro, {"body": fields, "headers": {**GIVEN, "cookie": CANARY}}, {"body": fields}))[0]
    sent = b"".join(collector.bodies)
    assert CANARY.encode() not in sent
    assert answer.json()["choices"][0]["message"]["content"].encode() not in sent


async def test_what_a_caller_writes_into_a_tracestate_is_no_line_in_the_log(
    flash: Sim, pro: Sim, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    await traced(
        flash, pro, {"headers": GIVEN | {"tracestate": CANARY}}, {"headers": GIVEN | {"tracestate": "a=1,a=2"}}
    )
    assert {span.trace_state for span in collector.spans} == {""}
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []


def test_the_environment_says_where_spans_go_how_and_who_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", found.url + "/else")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "zone=eu,service.name=theirs")
        with tracing() as telemetry:
            end(telemetry)
    assert found.paths == ["/else"]
    assert found.headers[0].items() >= {
        ("api-key", "a b"),
        ("content-type", "application/x-protobuf"),
        ("content-encoding", "gzip"),
    }
    (sent,) = found.sent
    assert plain(sent.resource.attributes).items() >= {("service.name", "mine"), ("zone", "eu")}
    assert sent.scope_spans[0].scope.name == "tiergate"


def test_who_sends_spans_has_a_name_if_nobody_gives_one(collector: Collector) -> None:
    with tracing() as telemetry:
        end(telemetry)
    assert plain(collector.sent[0].resource.attributes)["service.name"] == "tiergate"


def test_what_a_collector_cannot_take_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting(503) as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        with tracing() as telemetry:
            end(telemetry)
            until(lambda: len(found.bodies) > 0)
        assert len(found.spans) == 1
    assert unsent(telemetry) == 0


def test_what_a_collector_refuses_is_dropped_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with collecting(400) as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        with tracing() as telemetry:
            end(telemetry, 2)
    assert found.bodies == []
    assert unsent(telemetry) == 2
    assert caplog.messages == ["spans: 2 were not taken: status 400"]


def test_a_variable_that_cannot_be_used_is_told_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with collecting() as found:
        wrong = {"COMPRESSION": "zstd", "TIMEOUT": "soon", "CLIENT_CERTIFICATE": "/no/such/file"}
        for name, value in {"ENDPOINT": found.url, **wrong}.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
        with tracing() as telemetry:
            end(telemetry)
        assert "content-encoding" not in found.headers[0]
        trusting()
    assert (len(found.spans), len(caplog.messages)) == (1, 3)
    for name, message in zip(("TIMEOUT", "COMPRESSION", "CLIENT_KEY"), caplog.messages, strict=True):
        assert name in message


def test_a_collector_that_wants_to_be_left_alone_for_longer_than_there_is_time_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collecting(503, alone=60) as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        with tracing() as telemetry:
            end(telemetry)
    assert found.bodies == []
    assert unsent(telemetry) == 1


def test_spans_go_over_tls_to_whom_a_trusted_certificate_names_and_show_one_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both, trusted = tmp_path / "identity.pem", tmp_path / "ca.pem"
    trusted.write_text(pem("CERTIFICATE", CERTIFICATE))
    both.write_text(pem("PRIVATE KEY", KEY) + pem("CERTIFICATE", CERTIFICATE))
    identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_cert_chain(both)
    identity.load_verify_locations(trusted)
    identity.verify_mode = ssl.CERT_REQUIRED
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    for given, own, taken in (("", str(both), 0), (str(trusted), "", 0), (str(trusted), str(both), 1)):
        with collecting(tls=identity) as found:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", given)
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", own)
            with tracing() as telemetry:
                end(telemetry)
        assert (len(found.spans), unsent(telemetry)) == (taken, 1 - taken)


def test_a_collector_that_never_answers_holds_up_neither_exchanges_nor_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{deaf.getsockname()[1]}"}
        told |= {"OTEL_EXPORTER_OTLP_TIMEOUT": "60", "OTEL_BSP_SCHEDULE_DELAY": "10"}
        subprocess.run([sys.executable, "-c", DEAF], env=os.environ | told, check=True, timeout=50)


def test_telemetry_holds_no_more_in_memory_than_it_uses() -> None:
    code = "import sys, gateway.telemetry as t\nfor ratio in (0.0, 1.0): t.Telemetry(False, ratio); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    off, on = (told.split() for told in ran.stdout.splitlines())
    assert [name for name in off if name.startswith(("opentelemetry.sdk.trace", "gateway.telemetry.sending"))] == []
    assert [name for name in on if name.startswith(("requests", "urllib3", "google.protobuf"))] == []
    assert {"gateway.telemetry.sending"} <= {*on}
