"""One entry for both forms, told faithfully or not at all."""

import json
from typing import Any

import pytest

from gateway.cache.entry import Entry
from gateway.cache.form import BARE, WITH_USAGE, assembled, converted, unrolled
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, body, gateway
from tests.tiers import JSON, policy_for

HEAD: JSON = {"id": "c1", "object": "chat.completion", "created": 5, "model": "m", "system_fingerprint": "f"}
USAGE: JSON = {"prompt_tokens": 1, "total_tokens": 3, "completion_tokens": 2, "x_details": {"kept": 1}}
LOGPROBS: JSON = {"content": [{"token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": []}]}
CALLS: list[JSON] = [
    {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"id": "t2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
]


def whole(*messages: JSON, **more: Any) -> JSON:
    choices = [
        {"index": at, "message": {"role": "assistant", **message}, "logprobs": None, "finish_reason": "stop"}
        for at, message in enumerate(messages)
    ]
    return HEAD | {"choices": choices, "usage": USAGE} | more


def chunk(delta: JSON, index: int = 0, finish: str | None = None, **more: Any) -> JSON:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
    return HEAD | {"object": "chat.completion.chunk", "choices": [choice]}


def stream(*chunks: JSON) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks) + b"data: [DONE]\n\n"


def turned(answer: JSON) -> JSON | None:
    """Through a stream and back."""
    events = unrolled(json.dumps(answer).encode(), with_usage=True)
    found = assembled(events, b"null") if events else None
    told: JSON | None = json.loads(found) if found else None
    return told


TEXT = {**HEAD, "object": "text_completion", "usage": USAGE}
TEXT["choices"] = [{"index": 0, "text": "Hi", "logprobs": None, "finish_reason": "length", "stop_reason": 7}]
SCORED = whole({"content": "a"})
SCORED["choices"][0]["logprobs"] = LOGPROBS


@pytest.mark.parametrize(
    "answer",
    [
        whole({"content": "Hi \u2028 \U0001f600"}),
        whole({"content": ""}),
        whole(
            {"content": "a", "reasoning": "b"},
            {"content": "c", "reasoning_content": "d"},
            {"content": None, "refusal": "e"},
        ),
        whole({"content": None, "tool_calls": CALLS}),
        SCORED,
        TEXT,
    ],
    ids=["text", "empty", "n, thoughts and a refusal", "tool calls", "logprobs", "text completion"],
)
def test_an_answer_comes_back_from_a_stream_as_it_was(answer: JSON) -> None:
    assert turned(answer) == answer


def test_a_stream_is_put_together_by_choice_and_tool_index() -> None:
    def call(index: int, **function: str) -> JSON:
        return {"tool_calls": [{"index": index, "function": function}]}

    first = [
        {"tool_calls": [{"index": at, **CALLS[at], "function": {"name": name, "arguments": ""}}]}
        for at, name in enumerate("fg")
    ]
    data = stream(
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": ""}, 1),
        chunk(first[0]),
        chunk({"content": "x"}, 1),
        chunk(call(0, arguments='{"a":')),
        chunk(first[1]),
        chunk(call(0, arguments=" 1}")),
        chunk({"content": "y"}, 1, "stop", stop_reason="y"),
        chunk(call(1, arguments="{}"), finish="tool_calls") | {"obfuscation": "zz"},
        HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": USAGE},
    )
    found = json.loads(assembled(b": a comment\n\n" + data, b"null") or b"")
    assert found == whole({"content": None, "tool_calls": CALLS}, {"content": "xy"}) | {
        "choices": [
            {**whole({"content": None, "tool_calls": CALLS})["choices"][0], "finish_reason": "tool_calls"},
            {**whole({}, {"content": "xy"})["choices"][1], "stop_reason": "y"},
        ]
    }


END = chunk({}, finish="stop")


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk({"content": "a"})],
        [chunk({"content": "a"}), END, END],
        [chunk({"content": "a", "novel": 1}), END],
        [chunk({"content": "a"}) | {"novel": 1}, END],
        [chunk({"content": "a"}, token_ids=[1]), END],
        [chunk({"content": "a"}), END | {"id": "c2"}],
        [chunk({"tool_calls": [{"index": 0, "id": "t", "function": {"arguments": "{}"}}]}), END],
        [chunk({"tool_calls": [{"id": "t", "function": {"name": "f"}}]}), END],
        [{"error": {"message": "no"}}],
        [HEAD | {"choices": []}],
        [],
    ],
)
def test_a_stream_that_json_cannot_tell_is_a_miss(chunks: list[JSON]) -> None:
    assert assembled(stream(*chunks), json.dumps(USAGE).encode()) is None


@pytest.mark.parametrize(
    "change",
    [{"novel": 1}, {"object": "list"}, {"usage": None}, {"choices": [{"index": 0}]}, {"prompt_logprobs": [None]}],
)
def test_json_that_a_stream_cannot_tell_is_a_miss(change: JSON) -> None:
    assert turned(whole({"content": "a"}) | change) is None
    assert turned(whole({"content": "a", "annotations": [1]})) is None


def test_without_its_usage_a_stream_is_no_json() -> None:
    data = stream(chunk({"content": "a"}), END)
    assert assembled(data, b"null") is None
    assert json.loads(assembled(data, json.dumps(USAGE).encode()) or b"") == whole({"content": "a"})


def test_usage_is_told_in_a_stream_only_when_asked_for() -> None:
    events = stream(chunk({"content": "a"}), END)
    entry = Entry(BARE, b"text/event-stream", json.dumps(USAGE).encode(), "flash", "r", events)
    assert converted(entry, BARE) == events
    told = [json.loads(part[6:]) for part in (converted(entry, WITH_USAGE) or b"").split(b"\n\n")[:-2]]
    assert [one.get("usage", "absent") for one in told] == [None, None, None, USAGE]
    assert told[-1]["choices"] == []
    back = Entry(WITH_USAGE, b"", b"null", "flash", "r", converted(entry, WITH_USAGE) or b"")
    assert b"usage" not in (converted(back, BARE) or b"usage")
    assert converted(entry, b'{"continuous_usage_stats":true}') is None


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
ASKED: list[tuple[str, JSON]] = [
    (CHAT, {"logprobs": True, "top_logprobs": 2, "n": 2}),
    (CHAT, {"tools": [TOOL], "tool_choice": "required"}),
    (CHAT, {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}),
    ("/v1/completions", {}),
]


def plain(value: Any) -> Any:
    """Without nulls and empty lists, and without what differs from one generation to the next."""
    if isinstance(value, dict):
        found = {key: plain(one) for key, one in value.items() if key not in ("id", "created")}
        return {key: one for key, one in found.items() if one not in (None, [])}
    return [plain(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("path", "fields"), ASKED)
async def test_what_was_remembered_in_one_form_is_what_a_server_says_in_the_other(
    flash: Sim, pro: Sim, path: str, fields: JSON
) -> None:
    policy = policy_for(flash, pro, caching={"ttl": "1m", "when": {"tools": True}})
    asked = {"model": "flash", "temperature": 0, "seed": 1, "max_tokens": 40, **fields}
    asked |= {"prompt": "Hi"} if path != CHAT else {"messages": body("Hi")["messages"]}
    streamed = asked | {"stream": True}
    async with gateway(policy) as one, gateway(policy) as other:
        said = await one.ask(asked, path)
        events = await other.ask(streamed, path)
        seen = len(flash.seen())
        for form, gate, first in ((streamed, one, said), (asked, other, events)):
            found = await gate.ask(form, path)
            assert found.headers["x-route-cache"] == "hit"
            fresh = events if gate is one else said
            assert found.headers["content-type"].split(";")[0] == fresh.headers["content-type"].split(";")[0]
            assert (await gate.ask({**form, "stream": not form.get("stream")}, path)).data == first.data
        assert plain((await other.ask(asked, path)).json()) == plain(said.json())
        assert len(flash.seen()) == seen
