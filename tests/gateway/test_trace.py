import time
from collections.abc import Mapping

import pytest

from gateway.trace import Leg, Trace, sampled
from gateway.types import Usage

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
IGNORED = {
    "nothing": "",
    "version ff": "ff" + PARENT[2:],
    "capitals": PARENT.upper(),
    "no trace": f"00-{'0' * 32}-00f067aa0ba902b7-01",
    "no span": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    "more than version 00 has": PARENT + "-00",
    "a line break": PARENT + "\r\nx: y",
    "too short": PARENT[:-1],
}


def trace(headers: Mapping[str, str], ratio: float = 0.0) -> Trace:
    found = sampled(headers, ratio)
    assert found
    return found


def leg() -> Leg:
    return Leg("answer", "flash", "/v1/chat/completions", "m", "h", 80, Usage())


def test_a_caller_who_traces_is_traced_whatever_the_ratio() -> None:
    found = trace({"traceparent": PARENT})
    assert f"{found.id:032x}-{found.parent:016x}" == PARENT[3:-3]
    assert found.span != found.parent


def test_a_caller_who_does_not_sample_is_not_traced_whatever_the_ratio() -> None:
    assert sampled({"traceparent": PARENT[:-1] + "0"}, 1.0) is None


def test_flags_and_members_of_later_versions_are_looked_over() -> None:
    assert f"{trace({'traceparent': '01' + PARENT[2:-2] + '03-more'}).id:032x}" in PARENT


@pytest.mark.parametrize("given", IGNORED.values(), ids=IGNORED.keys())
def test_what_is_no_traceparent_counts_as_none(given: str) -> None:
    assert sampled({"traceparent": given}, 0.0) is None
    found = trace({"traceparent": given, "tracestate": "a=b"}, 1.0)
    assert (found.parent, found.state) == (None, "")


def test_the_ratio_of_all_others_is_traced() -> None:
    found = [sampled({}, 0.2) for _ in range(5000)]
    assert 800 < sum(trace is not None for trace in found) < 1200
    assert len({trace.id for trace in found if trace}) == sum(trace is not None for trace in found)


def test_a_call_is_told_the_trace_its_own_span_and_the_state() -> None:
    found, call = trace({"traceparent": PARENT, "tracestate": "rojo=1,congo=2"}), leg()
    lines = found.began(call).decode().split("\r\n")
    assert lines == [f"traceparent: {PARENT[:36]}{call.id:016x}-01", "tracestate: rojo=1,congo=2", ""]
    assert found.legs == [call]


@pytest.mark.parametrize("state", ["a=b\r\nx: y", "a=\xe9", "a=" + "b" * 600])
def test_a_state_that_is_no_header_goes_nowhere(state: str) -> None:
    assert b"tracestate" not in trace({"traceparent": PARENT, "tracestate": state}).began(leg())


def test_times_since_1970_follow_from_the_epoch() -> None:
    found = trace({}, 1.0)
    assert abs(found.epoch + time.perf_counter_ns() - time.time_ns()) < 50_000_000
