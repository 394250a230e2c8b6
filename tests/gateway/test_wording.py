import json
from typing import Any

import pytest

from gateway.sse import event
from gateway.wording import Wording, said


def seen(*chunks: Any, stream: bool = True) -> Wording:
    found = Wording()
    for chunk in chunks:
        data = json.dumps(chunk).encode()
        found.see(event(data) if stream else data, stream)
    return found


def test_tokens_are_counted_by_their_log_probabilities_or_one_an_event() -> None:
    token = {"logprob": -1, "top_logprobs": [{"logprob": -1.25}, {"logprob": -1}, {"logprob": -3}]}
    told = seen(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "ab"}, "logprobs": {"content": [token, token]}}]},
        {"choices": [{"delta": {"reasoning": "c"}}]},
        {"choices": [{"delta": {"tool_calls": [{}]}, "finish_reason": "tool_calls"}]},
    )
    assert (told.tokens, told.text, told.calls, told.finish) == (4, "ab", {0: ["", ""]}, "tool_calls")
    assert (told.logprobs, told.margins) == ([-1, -1], [0.25, 0.25])


def test_log_probabilities_that_no_token_has_are_in_no_mean() -> None:
    for key in ("logprob", "top_logprobs"):
        token = {"logprob": -1, "top_logprobs": []} | {key: 1e308 if key == "logprob" else [{"logprob": -1e308}] * 2}
        told = seen({"choices": [{"delta": {"content": "ab"}, "logprobs": {"content": [token, token]}}]})
        assert (told.text, told.tokens, told.logprobs, told.margins) == ("ab", 1, [], []), (
            "the words count all the same"
        )


def test_text_completions_are_read_as_chat_is() -> None:
    logprobs = {"token_logprobs": [None, -2.0], "top_logprobs": [None, {"a": -2.0, "b": -2.5}]}
    told = seen({"choices": [{"text": "x y", "logprobs": logprobs, "finish_reason": "stop"}]}, stream=False)
    assert (told.text, told.logprobs, told.margins, told.finish) == ("x y", [-2.0], [0.5], "stop")


@pytest.mark.parametrize(
    "data", [b"", b"data: nonsense\n\n", b": ping\n\n", b'data: {"choices": 5}\n\n', b"data: [DONE]\n\n"]
)
def test_what_cannot_be_read_says_nothing(data: bytes) -> None:
    found = Wording()
    found.see(data, True)
    assert (found.text, found.tokens, found.finish) == ("", 0, "" if data else "end")


def test_the_last_event_of_a_piece_is_seen_whatever_ends_its_lines() -> None:
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        found = Wording()
        found.see(b'data: {"choices":[{"delta":{"content":"a"}}]}' + end, True)
        assert (found.text, found.tokens) == ("a", 1)


def test_a_stream_says_what_its_json_answer_does() -> None:
    names = {"name": "list", "arguments": "{}"}, {"name": "search", "arguments": '{"q": "a"}'}
    first, rest = {"name": "search", "arguments": '{"q":'}, {"arguments": ' "a"}'}
    told = seen(
        {"choices": [{"delta": {"content": "look"}}]},
        {"choices": [{"delta": {"content": "ing"}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": names[0]}, {"index": 1, "function": first}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 1, "function": rest}]}, "finish_reason": "tool_calls"}]},
    )
    message = {"content": "looking", "tool_calls": [{"function": one} for one in names]}
    same = seen({"choices": [{"message": message, "finish_reason": "tool_calls"}]}, stream=False)
    assert (told.text, told.calls, told.whole) == (same.text, same.calls, same.whole)
    assert told.calls == {0: ["list", "{}"], 1: ["search", '{"q": "a"}']}


def test_a_stream_that_refused_at_some_point_refused() -> None:
    deltas: list[dict[str, str]] = [{"refusal": "I will"}, {"content": ""}, {}]
    told = seen(*({"choices": [{"delta": delta}]} for delta in deltas), {"choices": [{"finish_reason": "stop"}]})
    assert (told.refused, told.whole) == (True, True)


@pytest.mark.parametrize(("finish", "whole"), [("stop", True), ("tool_calls", True), ("length", False), (None, False)])
def test_an_answer_is_whole_when_it_ended_before_its_longest(finish: str | None, whole: bool) -> None:
    data = json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": finish}]}).encode()
    assert said(data, stream=False).whole is whole
