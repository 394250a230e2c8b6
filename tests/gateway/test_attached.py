import json

import pytest

from gateway.attached import explained_events, explained_json, explanation, our_lines, paid_line
from gateway.done import nothing
from gateway.errors import Refusal
from gateway.reply import Reply
from gateway.types import ChatRequest, Route
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, asked, body
from tests.tiers import policy_for

FLASH, PRO = Sim("http://127.0.0.1:1", "f"), Sim("http://127.0.0.1:2", "p")
POLICY = policy_for(FLASH, PRO)
TOLD = {"tier": "flash"}
REQUEST = asked(body(stream=True))
TEXT = asked({"prompt": "x", "stream": True}, "/v1/completions")


def events(data: bytes, request: ChatRequest = REQUEST) -> bytes:
    return explained_events(data, request, "f", TOLD)


@pytest.mark.parametrize(
    ("sent", "kind"), [(REQUEST, "chat.completion.chunk"), (TEXT, "text_completion")], ids=["chat", "text"]
)
@pytest.mark.parametrize(
    ("before", "done"),
    [
        (b"", b"data: [DONE]\n\n"),
        (b"", b"data:[DONE]\n\n"),
        (b'data: {"a": 1}\n\n', b"data: [DONE]\n\n"),
        (b'data: {"a": 1}\r\n\r\n', b"data: [DONE]\r\n\r\n"),
        (b'data: {"a": "data: [DONE]"}\n\n: note\n\n', b"data: [DONE]\n\n"),
    ],
)
def test_the_decision_comes_right_before_the_end(before: bytes, done: bytes, sent: ChatRequest, kind: str) -> None:
    found = events(before + done, sent)
    assert found.startswith(before)
    assert found.endswith(done)
    chunk = json.loads(found[len(before) : -len(done)].removeprefix(b"data: "))
    assert chunk.keys() == {"id", "object", "created", "model", "choices", "route"}
    assert (chunk["id"], chunk["route"], chunk["choices"]) == (sent.id, TOLD, [])
    assert (chunk["object"], chunk["model"], type(chunk["created"])) == (kind, "f", int)


@pytest.mark.parametrize(
    "data", [b'data: {"a": "x data: [DONE]"}\n\n', b"event: end\ndata: [DONE]\n\n", b"", b": [DONE]\n\n"]
)
def test_an_event_is_never_torn(data: bytes) -> None:
    assert events(data) == data


@pytest.mark.parametrize("data", [b"[]", b'"x"', b'{"a": 1, "a": 2}', b"garbage", b""])
def test_an_answer_that_is_no_plain_object_passes_as_it_is(data: bytes) -> None:
    assert explained_json(data, TOLD) == data


def test_an_answers_other_bytes_do_not_change() -> None:
    data = b'{ "id" : 1.0,\n "choices":[ ] }'
    found = explained_json(data, TOLD)
    assert json.loads(found) == {"id": 1.0, "choices": [], "route": TOLD}
    assert data[2:] in found


@pytest.mark.parametrize(("path", "more"), [(CHAT, b""), ("/v1/messages", b"request-id: x\r\n")])
def test_what_was_refused_before_anything_was_decided_has_all_headers_too(path: str, more: bytes) -> None:
    assert our_lines("x", path, POLICY, None, 0.0) == (
        b"x-request-id: x\r\nx-gateway-overhead-ms: 0.000\r\nx-route-tier: none\r\nx-route-rule: none\r\n"
        b"x-route-reason: none\r\nx-route-policy: %b\r\nx-route-cache: bypass\r\n%b" % (POLICY.version.encode(), more)
    )


def test_headers_are_printable_whatever_a_rule_is_called() -> None:
    reply = Reply.refused(Refusal("x"))
    reply.route = Route(("flash",), "rule", "needs\r\nx-evil: 1 é")
    found = dict(line.split(b": ", 1) for line in our_lines("id", CHAT, POLICY, reply, 0.0012345).splitlines())
    assert found[b"x-route-reason"] == b"needs??x-evil: 1 ?"
    assert found[b"x-route-tier"] == b"none"
    assert found[b"x-gateway-overhead-ms"] == b"1.234"
    assert found[b"x-route-policy"] == POLICY.version.encode()


@pytest.mark.parametrize(
    ("tier", "status", "told"),
    [("flash", 200, b"x-answer-usd: 0.000000000\r\n"), ("flash", 400, b""), ("pro", 200, b""), ("", 502, b"")],
)
def test_a_whole_answer_says_what_it_cost_where_its_tier_has_a_price(tier: str, status: int, told: bytes) -> None:
    priced = policy_for(FLASH, PRO, tiers={"flash": {"price": {"output_per_m": 1.0}}, "pro": {"price": {}}})
    assert paid_line(REQUEST, Reply(status, [], b"{}", False, tier, nothing), priced) == told


def test_a_remembered_answer_is_explained_by_what_is_remembered() -> None:
    reply = Reply.refused(Refusal("x"))
    reply.tier, reply.cache, reply.route = "pro", "hit", Route(("pro",), "triaged", "cache")
    found = explanation(REQUEST, reply, POLICY, 0.001)
    assert found["route"] == {"tier": "pro", "rule": "triaged", "reason": "cache"}
    assert found["answer_usd"] == 0.0
    assert found["policy"] == {"name": POLICY.name, "revision": POLICY.revision, "digest": POLICY.digest}
    assert (found["tier"], found["cache"], found["overhead_ms"], found["draft"]) == ("pro", "hit", 1.0, "none")
