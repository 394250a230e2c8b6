"""Do injected faults damage exactly what they say?"""

import json
import re
import time
from collections.abc import Callable

import httpx2
import pytest

from backends.sim.faults import NONE, Fault, Faults
from tests.backends.sim.servers import HTTP, JSON, chat, events, state, triage


def fault(**values: object) -> JSON:
    """The header that asks for a fault."""
    return {"x-sim-fault": json.dumps(values)}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "BadRequestError"),
        (418, "BadRequestError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
    ],
)
def test_a_status_comes_as_an_error_object(url: str, status: int, kind: str) -> None:
    reply = chat(url, headers=fault(status=status, retry_after=7))
    assert (reply.status_code, reply.headers["retry-after"]) == (status, "7")
    assert (reply.json()["error"]["code"], reply.json()["error"]["type"]) == (status, kind)
    assert chat(url, headers={"X-Return-Error": str(status)}).status_code == status


WEAK: dict[str, Callable[[JSON], object]] = {
    "unsure": lambda choice: max(token["logprob"] for token in choice["logprobs"]["content"]) < -1.8,
    "loop": lambda choice: choice["message"]["content"].endswith(" I think that" * 9),
    "refusal": lambda choice: choice["message"]["refusal"] and choice["message"]["content"] is None,
    "filter": lambda choice: choice["finish_reason"] == "content_filter",
    "sorry": lambda choice: choice["message"]["content"].startswith("I'm sorry"),
    "empty": lambda choice: choice["message"]["content"] is None and choice["finish_reason"] == "stop",
}


@pytest.mark.parametrize("weak", WEAK)
def test_an_answer_is_weak_in_the_way_that_is_asked_for(url: str, weak: str) -> None:
    usual = chat(url, logprobs=True).json()["choices"][0]
    choice = chat(url, headers=fault(weak=weak), logprobs=True).json()["choices"][0]
    assert WEAK[weak](choice)
    assert not WEAK[weak](usual)
    assert triage(url, "hi", headers=fault(weak=weak)).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("weak", "stop", "reason"), [("refusal", "end_turn", None), ("filter", "refusal", {"reason": "content_filter"})]
)
def test_a_refusal_is_said_in_the_words_of_each_endpoint(url: str, weak: str, stop: str, reason: JSON | None) -> None:
    def ask(path: str, **body: object) -> httpx2.Response:
        return HTTP.post(f"{url}/v1/{path}", json={"max_tokens": 50, **body}, headers=fault(weak=weak))

    talk = {"messages": [{"role": "user", "content": "Explain tides"}], "thinking": {"type": "disabled"}}
    message = ask("messages", **talk).json()
    text = message["content"][0]["text"]
    assert message["stop_reason"] == stop
    told = ask("messages", **talk, stream=True).text
    assert f'"stop_reason":"{stop}"' in told
    assert "".join(json.loads(said) for said in re.findall(r'"text":("[^"]+")', told)) == text
    talk = {"input": "Explain tides", "reasoning": {"effort": "none"}}
    response = ask("responses", **talk).json()
    part = response["output"][0]["content"][0]
    assert (part.get(part["type"].removeprefix("output_")), response["incomplete_details"]) == (text, reason)
    *_, ended = events(ask("responses", **talk, stream=True).text + "data: [DONE]")
    assert ended["response"]["output"] == response["output"]
    talk = {"prompt": "Explain tides"}
    deltas = [event["choices"][0]["text"] for event in events(ask("completions", **talk, stream=True).text)]
    assert "".join(deltas) == ask("completions", **talk).json()["choices"][0]["text"]


def test_a_share_of_the_answers_is_weak(url: str) -> None:
    found = [chat(url, headers=fault(weak="empty", weak_share=0.5)).json() for _ in range(30)]
    assert 0 < sum(one["choices"][0]["message"]["content"] is None for one in found) < 30


def test_a_weakness_that_is_counted_stays_after_an_answer_that_it_passes_over(url: str) -> None:
    config = f"{url}/admin/config"
    try:
        HTTP.post(config, json={"weak": "empty", "weak_share": 0.0, "count": 2})
        assert chat(url).json()["choices"][0]["message"]["content"]
        shown = HTTP.get(config).json()
        assert (shown["weak"], shown["count"]) == ("empty", 1)
    finally:
        HTTP.delete(config)


def test_a_bad_fault_header_is_a_400(url: str) -> None:
    for header in ({"x-sim-fault": "nonsense=1"}, {"x-sim-fault": "{"}, {"X-Return-Error": "x"}):
        assert chat(url, headers=header).status_code == 400
    assert HTTP.post(f"{url}/admin/config", json={"nonsense": 1}).status_code == 400
    assert HTTP.post(f"{url}/admin/config", json={"stall": "x"}).status_code == 400


def test_configured_faults_hit_whom_they_name_and_run_out(url: str) -> None:
    config = f"{url}/admin/config"
    try:
        shown = HTTP.post(config, json={"status": 503, "only": "triage", "count": 2}).json()
        assert (shown["status"], shown["only"], shown["count"]) == (503, "triage", 2)
        assert chat(url).status_code == 200
        assert [triage(url, "hi").status_code for _ in range(3)] == [503, 503, 200]
        HTTP.post(config, json={"only": "answer", "count": None})
        assert (triage(url, "hi").status_code, chat(url).status_code) == (200, 503)
        HTTP.post(config, json={"error_rate": 0.5, "status": 500})
        codes = [chat(url).status_code for _ in range(40)]
        assert 5 <= codes.count(500) <= 35
    finally:
        assert HTTP.delete(config).json()["status"] is None
    assert chat(url).status_code == 200


def test_a_share_of_errors_is_of_500s_where_no_status_is_given() -> None:
    for faults in (Faults(25.0, 0), Faults(0.0, 0)):
        if faults.current == NONE:
            faults.update({"error_rate": 0.25})
        statuses = [faults.take(False, None).status for _ in range(1000)]
        assert set(statuses) == {None, 500}
        assert 200 < statuses.count(500) < 300


def test_a_fault_that_a_request_brings_uses_up_none_of_the_server() -> None:
    faults = Faults(0.0, 0)
    faults.update({"status": 503, "count": 1})
    assert faults.take(False, Fault(status=400, count=0)).status == 400
    assert [faults.take(False, None).status for _ in range(2)] == [503, None]


def received(url: str, body: JSON, headers: JSON) -> bytes:
    """What arrived of a stream before its connection broke; fails if it ended well."""
    got = b""
    with HTTP.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as reply:
        try:
            for part in reply.iter_raw():
                got += part
        except httpx2.TransportError:
            return got
    raise AssertionError("the stream ended well")


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_cut_stream_ends_without_its_last_chunk(url: str, how: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "request_id": f"cut-{how}"}
    got = received(url, body, fault(cut_after=3, cut_by=how, stall_after=2, stall=0.05))
    assert got.count(b"data: ") == 3
    assert b"[DONE]" not in got
    ended = next(e for e in state(url)["requests"] if e["id"] == f"cut-{how}")
    assert ended["state"] == "errored"


def test_a_cut_json_body_stays_short(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert received(url, body, fault(cut_after=0, cut_by="close")).startswith(b'{"id"')


def test_endings_may_be_missing(url: str) -> None:
    no_done = chat(url, headers=fault(no_done=True), stream=True).text
    assert "[DONE]" not in no_done
    assert '"finish_reason":"stop"' in no_done
    no_finish = events(chat(url, headers=fault(no_finish=True), stream=True).text)
    assert all(e["choices"][0]["finish_reason"] is None for e in no_finish)


def test_bodies_may_be_rubbish(url: str) -> None:
    for kind in ("garbage", "truncated"):
        reply = chat(url, headers=fault(bad_json=kind))
        assert reply.status_code == 200
        with pytest.raises(json.JSONDecodeError):
            reply.json()
    page = chat(url, headers=fault(html=True))
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html")
    with pytest.raises(json.JSONDecodeError):
        events(chat(url, headers=fault(malformed_sse=True), stream=True).text)


def test_stalls_and_drips_take_their_time(url: str) -> None:
    def took(stream: bool, **values: object) -> float:
        started = time.monotonic()
        assert chat(url, headers=fault(**values), stream=stream, max_tokens=2).status_code == 200
        return time.monotonic() - started

    assert took(False, stall_first=0.3) >= 0.3
    assert took(True, stall_after=1, stall=0.3) >= 0.3
    assert took(True, drip=0.005, drip_bytes=20) >= 0.1
    assert took(False, stall_after=1, stall=5) < 1
