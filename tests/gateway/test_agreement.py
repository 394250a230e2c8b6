"""What counts as the same answer, and that nothing else is claimed."""

import json
import time

import pytest

from gateway.agreement import DEEP, agreement
from gateway.wording import Wording, said
from tests.tiers import JSON


def whole(text: str = "", finish: str = "stop", **message: object) -> Wording:
    choice = {"message": {"content": text, **message}, "finish_reason": finish}
    return said(json.dumps({"choices": [choice]}).encode(), stream=False)


def called(name: str, **arguments: object) -> JSON:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


@pytest.mark.parametrize(
    ("one", "other", "figure"),
    [
        ("It is Canberra.", "it is  canberra", 1.0),
        ("**42**", "42", 1.0),
        ("Ａｂｃ", "abc", 1.0),
        ("the answer is 41", "the answer is 42", 0.75),
        ("red green", "blue", 0.0),
        ("red red red", "red", 0.5),
        ("北京是首都", "北京市是首都", 10 / 11),
        ("", "", 1.0),
        ("", "words", 0.0),
        ('{"a": 1, "b": [1, 2]}', '{ "b": [2, 1], "a": 1 }', 1.0),
        ('{"a": 1}', '{"b": 1}', 0.5),
        ('{"a": 1}', '{"a": -1}', 0.5),
        ("{}", "[]", 0.0),
        ('{"a": 1}', "a: 1", 1.0),
    ],
)
def test_the_figure_is_the_part_of_the_words_that_both_have(one: str, other: str, figure: float) -> None:
    assert agreement(whole(one), whole(other)) == pytest.approx(figure)
    assert agreement(whole(other), whole(one)) == pytest.approx(figure)


def test_json_is_looked_into_as_deep_as_answers_are() -> None:
    one, other = ("[" * 900 + ",".join(["1"] * 3900 + [last]) + "]" * 900 for last in "12")
    assert agreement(whole(one), whole(other)) == DEEP / (DEEP + 1)


def test_tool_calls_agree_by_their_arguments_and_not_with_words() -> None:
    one = whole(tool_calls=[called("search", q="a", n=3)], finish="tool_calls")
    same = whole(tool_calls=[called("search", n=3, q="A")], finish="tool_calls")
    near = whole(tool_calls=[called("search", q="b", n=3)], finish="tool_calls")
    other = whole(tool_calls=[called("delete", q="a", n=3)], finish="tool_calls")
    assert agreement(one, same) == 1.0
    assert 0 < (agreement(one, near) or 0) < 1
    assert agreement(one, other) == 0.0
    assert agreement(one, whole("search a 3")) == 0.0


def test_arguments_that_are_no_json_or_not_there_agree_with_their_like() -> None:
    def bare(arguments: str | None) -> Wording:
        return whole(tool_calls=[{"function": {"name": "f", "arguments": arguments}}], finish="tool_calls")

    assert agreement(bare("{a"), bare("{a")) == 1.0
    assert agreement(bare("{a"), bare("{b")) == 0.0
    assert agreement(bare(None), bare("")) == 1.0
    nameless = whole(tool_calls=[{}], finish="tool_calls")
    assert (agreement(nameless, nameless), agreement(nameless, bare(""))) == (1.0, 0.0)


def test_who_calls_a_tool_and_who_does_not_agree_in_nothing_though_their_words_are_the_same() -> None:
    calls, talks = whole("let me see", tool_calls=[called("search")]), whole("let me see")
    assert agreement(calls, talks) == agreement(talks, calls) == 0.0


def test_a_refusal_agrees_with_refusals_only() -> None:
    assert agreement(whole("no", refusal="I will not"), whole("no")) == 0.0
    assert agreement(whole("no", finish="content_filter"), whole("no", refusal="I will not")) == 1.0


def test_of_a_cut_answer_nothing_is_said() -> None:
    assert agreement(whole("a b", finish="length"), whole("a b")) is None
    assert agreement(Wording("a b"), whole("a b")) is None
    assert agreement(said(b"{", stream=False), whole()) is None


def test_a_completion_says_its_text() -> None:
    found = said(json.dumps({"choices": [{"text": "abc", "finish_reason": "stop"}]}).encode(), stream=False)
    assert agreement(found, whole("ABC")) == 1.0


def test_no_number_in_a_call_takes_a_hundred_times_as_long_to_compare_as_another() -> None:
    def seconds(number: str) -> float:
        one = whole(tool_calls=[{"function": {"name": "f", "arguments": f"[{','.join([number] * 1500)}]"}}])
        started = time.thread_time()
        assert agreement(one, one) == 1.0
        return time.thread_time() - started

    assert min(seconds("1e300") for _ in range(5)) < 3 * min(seconds("1.5") for _ in range(5))
