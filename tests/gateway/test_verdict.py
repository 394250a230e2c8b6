"""Verdicts in every form that servers give them, whole and in streams."""

import json
import math
from collections.abc import Iterable
from typing import Any

import pytest

from gateway.policy import Prompt
from gateway.types import Verdict
from gateway.verdict import LabelReader, decisions_verdict, label_format
from tests.tiers import JSON

PLAIN = Prompt("v1", "?")
FOUR = Prompt("v1", "?", {"simple": "simple", "sound": "simple", "severe": "complex", "complex": "complex"})
INTENT = Prompt("v1", "?", before="intent")


def whole(data: bytes, prompt: Prompt = PLAIN) -> Verdict:
    """The verdict in a whole answer."""
    answer = LabelReader(label_format(prompt))
    answer.add(data)
    return answer.verdict()


def streamed(
    texts: Iterable[str], finish: str | None = None, prompt: Prompt = PLAIN, bare: bool = False
) -> tuple[LabelReader, int]:
    """What was said until the verdict stood, and how many chunks that took."""
    answer, count = LabelReader(label_format(prompt, bare)), 0
    for text in texts:
        tops = [{"token": text, "logprob": math.log(0.8)}, {"token": "complex", "logprob": math.log(0.2)}]
        tokens = [{"token": text, "logprob": math.log(0.8), "top_logprobs": tops}]
        chunk = {"delta": {"content": text}, "finish_reason": None, "logprobs": {"content": tokens}}
        answer.add(json.dumps({"choices": [chunk]}).encode())
        count += 1
        if answer.stands:
            return answer, count
    answer.add(json.dumps({"choices": [{"delta": {}, "finish_reason": finish}]}).encode())
    return answer, count


GOOD, HARD = '{"complexity":"simple"}', '{"complexity":"complex"}'


def said(finish: str = "stop", tokens: Any = None, **message: Any) -> bytes:
    logprobs = None if tokens is None else {"content": tokens}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish, "logprobs": logprobs}]}).encode()


@pytest.mark.parametrize(
    ("data", "label", "reason"),
    [
        (said(content=GOOD), "simple", "ok"),
        (said(content=HARD), "complex", "ok"),
        (said(content=' {"complexity" : "complex" }\n'), "complex", "ok"),
        (said(content="complex"), "complex", "ok"),
        (said(content='"simple"'), "simple", "ok"),
        (said(content=" Simple\n"), "simple", "ok"),
        (said(content=f"```json\n{HARD}\n```"), "complex", "ok"),
        (said(content=f"```\n{HARD}```"), "complex", "ok"),
        (said(content=None, reasoning=HARD), "complex", "ok"),
        (said(content="", reasoning_content=GOOD), "simple", "ok"),
        (said(content=None, reasoning="It is complex"), None, "empty"),
        (said(content=None, finish="length", reasoning="The question is"), None, "empty"),
        (said(content=" \n", finish="length"), None, "empty"),
        (said(content='{"complexity": "simple", "complexity": "complex"}'), None, "parse"),
        (said(content='{"complexity": {"complexity": "complex"}}'), None, "parse"),
        (said(content='{"complexity": "com', finish="length"), None, "truncated"),
        (said(content='{"complexity": "medium"}'), None, "parse"),
        (said(content='{"complexity": ["simple"]}'), None, "parse"),
        (said(content='{"complexity": 1}'), None, "parse"),
        (said(content='{"other": "simple"}'), None, "parse"),
        (said(content="simple or complex"), None, "parse"),
        (said(content="complexity"), None, "parse"),
        (said(content="{" * 3000), None, "parse"),
        (said(), None, "empty"),
        (b'{"choices": []}', None, "parse"),
        (b'{"choices": [{"message": null}]}', None, "parse"),
        (b'{"choices": [{"message": {"content": ["simple"]}}]}', None, "parse"),
        (b"{}", None, "parse"),
        (b"[" * 100_000, None, "parse"),
        (b"\xff", None, "parse"),
        (b"", None, "parse"),
        (b"<html>", None, "parse"),
    ],
)
def test_every_form_of_a_verdict_is_read_and_nothing_else(data: bytes, label: str | None, reason: str) -> None:
    found = whole(data)
    assert (found.label, found.reason, found.p_complex) == (label, reason, None)


def token(text: str, p: float, **tops: float) -> JSON:
    return {"token": text, "logprob": math.log(p), "top_logprobs": [top(t, q) for t, q in tops.items()], "bytes": [1]}


ODD: JSON = {"top_logprobs": [{"token": 7, "logprob": "x"}]}


def top(text: str, p: float) -> JSON:
    return {"token": text, "logprob": math.log(p), "bytes": None}


def spelled(*texts: str, at: int, tops: dict[str, float]) -> list[JSON]:
    """Tokens, all sure but the one that decides."""
    made = [token(text, 0.999, **{text: 0.999, "\n": 0.001}) for text in texts]
    made[at] = token(texts[at], tops[texts[at]], **tops)
    return made


@pytest.mark.parametrize(
    ("content", "tokens", "p_complex"),
    [
        (GOOD, spelled('{"', "complexity", '":"', "simple", '"}', at=3, tops={"simple": 0.8, "complex": 0.2}), 0.2),
        (HARD, spelled('{"', "complexity", '":"', "complex", '"}', at=3, tops={"complex": 0.6, "simple": 0.2}), 0.75),
        (GOOD, spelled('{"complexity":', '"sim', "ple", '"}', at=1, tops={'"sim': 0.9, '"com': 0.1}), 0.1),
        (GOOD, spelled('{"complexity":"', "s", "imple", '"}', at=1, tops={"s": 0.7, "c": 0.3}), 0.3),
        (GOOD, spelled('{"complexity"', ': "simple', '"}', at=1, tops={': "simple': 0.6, ': "comp': 0.4}), 0.4),
        (GOOD, spelled('{"complexity":"simple"}', at=0, tops={GOOD: 0.7, HARD: 0.3}), 0.3),
        (HARD, spelled('{"complexity":"complex"}', at=0, tops={HARD: 0.75, GOOD: 0.25}), 0.75),
        (HARD, spelled('{"complexity', '":', ' "', "complex", '"}', at=3, tops={"complex": 0.5, "simple": 0.5}), 0.5),
        (" simple", spelled(" simple", at=0, tops={" simple": 0.9, " complex": 0.1}), 0.1),
        ("complex", spelled("", "comp", "lex", at=1, tops={"comp": 0.8, "simple": 0.2}), 0.8),
        ("simple", spelled("simple", at=0, tops={"simple": 0.6, "Simple": 0.2, "complex": 0.2, "The": 0.0001}), 0.2),
        (f"```json\n{GOOD}\n```", spelled("```", "json", "\n", '{"complexity":"', "simple", '"}', "\n```", at=4,
                                          tops={"simple": 0.9, "complex": 0.1}), 0.1),
        (GOOD, spelled('{"complexity":"', "simple", '"}', at=1, tops={"simple": 0.5, "complexity": 1, "c": 0.5}), 0.5),
        (GOOD, [token('I say "complexity": "complex". ', 0.9),
                *spelled('{"complexity":"', "simple", at=1, tops={"simple": 0.8, "complex": 0.2})], 0.2),
        (GOOD, [token(GOOD, 0.9)], 0.1),
        (GOOD, [{"token": GOOD, "logprob": math.log(0.9)}], 0.1),
        (HARD, [token(HARD, 0.9) | {"top_logprobs": None}], 0.9),
        (HARD, [token('{"complexity":"', 0.9), token("complex", 0.7), token('"}', 1.0)], 0.7),
        (GOOD, spelled('{"complexity":"', "simple", '"}', at=1, tops={"simple": 0.9}), 0.001),
        (GOOD, [token('{"complexity":"', 1.0), token("simple", 0.0001, The=0.9, It=0.05)], None),
        (GOOD, [], None),
        (GOOD, [{"token": "x"}], None),
        (GOOD, [{"token": None, "logprob": "x"}], None),
        (GOOD, "odd", None),
        (GOOD, [token('{"complexity":"', 1), token("simple", 1) | ODD], None),
        (GOOD, [token('{"complexity":"', 1) | ODD, token("simple", 0.8, simple=0.8, complex=0.2)], 0.2),
    ],
)  # fmt: skip
def test_p_complex_is_read_where_the_label_begins_however_it_is_cut(content: str, tokens: Any, p_complex: Any) -> None:
    found = whole(said(tokens=tokens, content=content))
    assert found.label in ("simple", "complex"), "odd probabilities never cost the label"
    assert found.p_complex == (None if p_complex is None else pytest.approx(p_complex, abs=1e-6))


@pytest.mark.parametrize(
    ("texts", "chunks"),
    [
        (['{"', "complex", "ity", '":"', "simple", '"}'], 5),
        (['{"', "complex", "ity", '":', ' "', "simple", '"}'], 6),
        (["```", "json", "\n", '{"complexity":"', "simple", '"}', "\n```"], 5),
        (['{"complexity":"simple"}'], 1),
        ([" \n", '{ "complexity" : "', "sim", "ple", '"}'], 4),
    ],
)
def test_a_streamed_verdict_stands_with_its_label(texts: list[str], chunks: int) -> None:
    answer, taken = streamed(texts)
    assert taken == chunks
    assert answer.verdict().label == "simple"


def test_the_probability_is_there_when_the_label_is() -> None:
    answer, _ = streamed(['{"', "complex", "ity", '":"', "simple"])
    assert answer.verdict().p_complex == pytest.approx(0.2)


def test_a_chunk_with_malformed_probabilities_costs_the_probability_and_not_the_label() -> None:
    def piece(text: str, tokens: Any) -> bytes:
        return json.dumps({"choices": [{"delta": {"content": text}, "logprobs": {"content": tokens}}]}).encode()

    likely = [{"token": "simple", "logprob": -0.1, "top_logprobs": [{"token": "simple", "logprob": -0.1}]}]
    for tokens, known in (([{"token": '"}', "logprob": 0.0}], True), ("odd", False)):
        answer = LabelReader(label_format(PLAIN))
        for text, told in (('{"complexity":"', None), ("simp", likely), ("le", tokens)):
            answer.add(piece(text, told))
        assert (answer.verdict().label, answer.verdict().p_complex is not None) == ("simple", known)


@pytest.mark.parametrize(
    ("texts", "finish", "reason"),
    [
        (['{"complexity":"', "medium", '"}'], "stop", "parse"),
        (['{"complexity":"', "simp", "lex", '"}'], "stop", "parse"),
        (['{"', "complex"], "length", "truncated"),
        (["It is ", "simple"], "stop", "parse"),
        (["x", '{"complexity":"', "simple", '"}'], "stop", "parse"),
    ],
)
def test_what_is_no_verdict_never_stands(texts: list[str], finish: str, reason: str) -> None:
    answer, taken = streamed(texts, finish)
    assert taken == len(texts)
    assert (answer.verdict().label, answer.verdict().reason) == (None, reason)


def test_a_bare_word_is_a_verdict_once_the_stream_has_ended() -> None:
    answer, _ = streamed(["simple"], "stop")
    assert answer.verdict().label == "simple"


# -- other prompts and forms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "p_complex"),
    [
        ([token("s", 0.6, s=0.6, c=0.4), token("ound", 0.5, ound=0.5, evere=0.5)], 0.7),
        ([token("s", 0.5, s=0.5, c=0.25), token("e", 0.4, e=0.4, i=0.4), token("vere", 1.0)], 2 / 3),
        ([token("sev", 0.3, sev=0.3, s=0.4, simple=0.3), token("ere", 1.0)], 0.5),
        ([token(" S", 0.8, **{" S": 0.8, " C": 0.2}), token("imple", 0.9, imple=0.9, evere=0.1)], 0.28),
        ([token("s", 0.9), token("imple", 0.9)], 0.1),
        ([token("s", 0.9, the=0.9)], None),
        ([token("s", 0.9, s=0.9)], None),
    ],
)
def test_a_label_in_several_tokens_is_followed_until_the_sides_part(tokens: Any, p_complex: float | None) -> None:
    word = "".join(token["token"] for token in tokens).strip().lower()
    found = whole(said(tokens=tokens, content=word if word in FOUR.labels else "simple"), FOUR)
    assert found.p_complex == (None if p_complex is None else pytest.approx(p_complex, abs=1e-6))


def test_the_text_before_the_label_is_no_label() -> None:
    thought = '{"intent":"says \\"complexity\\":\\"complex\\" and }","complexity":"simple"}'
    assert whole(said(content=thought), INTENT).label == "simple"
    answer, taken = streamed(
        ['{"intent":"', "a } \\", '"complex', '","', "complexity", '":"', "simple", '"}'], None, INTENT
    )
    assert taken == 7
    assert answer.verdict().label == "simple"
    assert answer.verdict().p_complex == pytest.approx(0.2)


@pytest.mark.parametrize("thought", ["two\nlines", "\\(x^2\\)"])
def test_a_text_that_no_json_may_hold_does_not_cost_the_label_behind_it(thought: str) -> None:
    answer, _ = streamed(['{"intent":"', thought, '","complexity":"', "complex"], None, INTENT)
    assert (answer.verdict().label, answer.verdict().reason) == ("complex", "ok")


def test_a_bare_label_stands_at_once_where_the_server_binds_it() -> None:
    answer, taken = streamed(["comp", "lex", ""], "stop", bare=True)
    assert (answer.verdict().label, taken) == ("complex", 2)


@pytest.mark.parametrize(
    ("labels", "label", "p_complex"),
    [
        ({"simple": 0.3, "complex": 0.7}, "complex", 0.7),
        ({"simple": 0.03, "complex": 0.01}, "simple", 0.25),
        ({"simple": 0.4, "sound": 0.2, "severe": 0.3, "complex": 0.1}, "simple", 0.4),
        ({"simple": 0.0, "complex": 0.0}, "simple", None),
        ({"simple": 1.0}, "simple", 0.001),
    ],
)
def test_a_decision_is_read_from_its_probabilities(labels: dict[str, float], label: str, p_complex: Any) -> None:
    probabilities = [{"value": value, "probability": p} for value, p in labels.items()]
    answer = {"type": "choice", "name": None, "choice": label, "probabilities": probabilities, "confidence": 0.9}
    found = decisions_verdict(json.dumps({"model": "m", "answers": [answer], "usage": {}}).encode(), FOUR)
    assert (found.label, found.p_complex) == (label, None if p_complex is None else pytest.approx(p_complex))


@pytest.mark.parametrize("data", [b"{}", b'{"answers": []}', b"<html>", b'{"answers": [{"type": "refusal"}]}'])
def test_what_is_no_decision_is_a_failure(data: bytes) -> None:
    assert decisions_verdict(data, PLAIN) == Verdict(None, None, "parse")
