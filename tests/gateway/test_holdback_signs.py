import dataclasses
import json
import tracemalloc
from typing import Any

import pytest

from gateway.fields import Fields
from gateway.holdback.opening import unprobed
from gateway.holdback.signs import LOOP, TURNS, doubtful, figures, loops, over, shown, violates
from gateway.policy import Holdback, Most, PolicyError, Weak, load_policy
from gateway.wording import Wording

ANY: dict[str, Any] = {"type": "json_object"}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": ["integer", "null"]},
        "role": {"enum": ["cook", "driver", 12]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "free": {"anyOf": [{"type": "string"}]},
    },
    "required": ["name", "role"],
    "additionalProperties": False,
}
GOOD = [
    {
        "name": 'A"b\\ \n\u00e9\U0001f600',
        "age": -3,
        "role": "cook",
        "tags": ["x", ""],
        "free": {"of": [1.5e-7, None, True]},
    },
    {"name": "", "role": 12, "age": None},
    {"role": "driver", "tags": [], "name": "n"},
]


def wanted(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_no_beginning_of_what_fits_is_a_violation(indent: int | None, ascii_only: bool) -> None:
    for value in GOOD:
        text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
        for at in range(len(text) + 1):
            assert not violates(Wording(text[:at]), wanted(PERSON)), text[:at]
            assert not violates(Wording(text[:at]), ANY)
            assert not violates(Wording(text[:at], finish="length"), ANY), "cut by the caller's own limit"
        assert not violates(Wording(text, finish="stop"), wanted(PERSON))


@pytest.mark.parametrize(
    "text",
    [
        "Sure",
        "```json",
        "[",
        "[1",
        "12",
        '{"name": "a"}}',
        '{"name" "',
        "{'name'",
        '{"name": NaN',
        '{"name": "a",}',
        '{"other": 1',
        '{"name": 5,',
        '{"age": 1.5,',
        '{"age": true',
        '{"role": "nurse",',
        '{"tags": ["a", 1,',
    ],
)
def test_what_can_no_longer_fit_is_a_violation_at_once(text: str) -> None:
    assert violates(Wording(text), wanted(PERSON))
    assert not violates(Wording(text), {"type": "text"})
    assert not violates(Wording(text), {})


def test_what_ends_before_it_is_whole_is_a_violation() -> None:
    for text in ('{"name": "a"', '{"name": "a"}', "", '{"name": "a", "role": 1}'):
        assert violates(Wording(text, finish="stop"), wanted(PERSON)), text
    assert not violates(Wording('{"role": 1'), wanted(PERSON)), "it may become 12"
    assert violates(Wording("[false"), wanted({"items": {"enum": [True]}})), "this can become nothing else"
    assert violates(Wording("[1"), ANY), "nor a list an object"


def test_a_number_may_have_a_fraction_and_an_object_of_a_list_may_still_become_it() -> None:
    assert not violates(Wording("1.5", finish="stop"), wanted({"type": "number"}))
    assert violates(Wording("1.5", finish="stop"), wanted({"type": "integer"}))
    assert not violates(Wording("1.0", finish="stop"), wanted({"type": "integer"}))
    assert not violates(Wording('{"a": 1'), wanted({"enum": [{"a": 12}]}))


@pytest.mark.parametrize(
    "schema",
    [None, True, 7, [], {"type": 3}, {"type": ["no such"]}, {"enum": "x"}, {"items": 1}, {"required": [["a"], 1]}],
)
def test_a_schema_that_says_nothing_we_know_fits_everything(schema: Any) -> None:
    for value in (1, "x", None, [1], {"a": 1}, True):
        assert not violates(Wording(json.dumps(value), finish="stop"), wanted(schema))
    assert not violates(Wording("1", finish="stop"), {"type": "json_schema", "json_schema": 5})


LETTERS = "".join(map(chr, range(0x4E00, 0x4E51)))  # one more than the longest unit has


@pytest.mark.parametrize(
    "unit", ["the ", "I think that ", "我认为", "да ", "ни да ни нет, ", "ありがとう。", "x\n", "ha", LETTERS[1:]]
)
def test_a_loop_is_seen_in_any_script(unit: str) -> None:
    assert loops(unit * max(TURNS, -(-LOOP // len(unit))))
    assert loops("Well, first of all: " + unit * 40)
    assert loops("Well, first of all: " + unit * 40 + unit[: len(unit) // 2])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ha ha ha ha",
        "ha" * 14,
        LETTERS * TURNS,
        "-" * 200,
        "| --- " * 30,
        "0, 0, " * 30,
        "The cat sat on the mat. The dog sat on the mat. The cow sat on the mat.",
        "    return a\n    return b\n    return c\n    return d\n",
        "the the the the the the the the the and so on, as poets say",
    ],
)
def test_what_repeats_without_being_stuck_is_no_loop(text: str) -> None:
    assert not loops(text)


@pytest.mark.parametrize(
    ("start", "sign"),
    [
        (Wording(finish="stop"), "empty"),
        (Wording(" \n", finish="end"), "empty"),
        (Wording(finish="length"), None),
        (Wording(), None),
        (Wording(calls={0: ["f", ""]}, finish="tool_calls"), None),
        (Wording("yes", finish="stop"), None),
        (Wording(refused=True, finish="stop"), "refusal"),
        (Wording("No can do, friend"), "refusal"),
    ],
)
def test_what_shows_before_the_start_is_over(start: Wording, sign: str | None) -> None:
    weak = Weak(refusal=True, refusal_words=("^No can do",), empty=True)
    assert shown(start, weak, Fields()) == sign
    assert shown(start, Weak(repetition=True), Fields()) is None, "only what is looked for"
    assert (shown(start, Weak(empty=True), Fields()) == "empty") == (sign == "empty"), "a refusal says something"


@pytest.mark.parametrize("sign", [one.name for one in dataclasses.fields(Weak)])
def test_each_sign_changes_what_is_looked_at(sign: str) -> None:
    """A record says what was looked at, so that no sign is judged on a record of others."""
    given: dict[str, Any] = {"mean_logprob": Most(-1.0), "margin": Most(1.0), "refusal_words": ("no",)}
    other = Weak(refusal=sign != "refusal", empty=sign == "refusal")
    both = dataclasses.replace(other, **{sign: given.get(sign, True)})
    assert Holdback(("flash",), "pro", both).looks != Holdback(("flash",), "pro", other).looks


def test_a_start_is_over_with_its_last_token_or_with_the_answer() -> None:
    rules = Holdback(("flash",), "pro", Weak(empty=True), tokens=4)
    assert [over(start, rules) for start in (Wording("a b c", 3), Wording("a b c d", 4))] == [None, "tokens"]
    assert over(Wording("a", 1, finish="stop"), rules) == "end"


def test_a_sign_that_is_not_looked_for_does_not_count() -> None:
    figures_only, form = Weak(mean_logprob=Most(-9.0)), Fields(response_format=ANY)
    for start in (Wording(finish="stop"), Wording("no", refused=True), Wording("again and " * 20), Wording("no JSON")):
        assert shown(start, figures_only, form) is None
    assert shown(Wording("again and " * 20), Weak(repetition=True), form) == "repetition"
    assert shown(Wording("no JSON"), Weak(schema_violation=True), form) == "schema_violation"
    assert shown(Wording("no JSON"), Weak(schema_violation=True), Fields()) is None, "nobody asked for a form"


def test_figures_are_means_over_all_that_was_kept() -> None:
    weak = Weak(mean_logprob=Most(-1.5), margin=Most(0.5))
    assert doubtful(figures(Wording(logprobs=[-3.0, 0.0], margins=[0.0, 1.0])), weak) == "mean_logprob"
    assert doubtful(figures(Wording(logprobs=[-2.9, 0.0], margins=[0.0, 1.0])), weak) == "margin"
    assert doubtful(figures(Wording(logprobs=[-2.9, 0.0], margins=[0.1, 1.0])), weak) is None
    assert doubtful(figures(Wording("text", 5)), weak) is None, "a server that tells none is no weak server"


def test_log_probabilities_become_null_and_no_other_byte_changes() -> None:
    told = b'{"content":[{"token":"a","logprob":-1e-3,"bytes":[97]}]}'
    said = rb'"delta":{"content":"\"logprobs\":{\"content\": [] } and \"logprobs\": 1"}'
    for pattern in (
        b'data: {"id" : "x", "choices":[{%s,"logprobs":@}], "logprobs": {}}\n\n',
        b'data: {"choices":[{"logprobs" : @ ,%s},{"index":1,%s,"logprobs":@}]}\r\n\r\n',
        b'data: {"choices":[{%s}]}\r\rdata: {"choices":[{"logprobs":@,%s}]}\r\r',
        b'data: {"choices":[{%s}]}\n\ndata: {"choices":[{"logprobs":@}]}\n\n: ping\n\ndata: [DONE]\n\n',
    ):
        whole = pattern.replace(b"%s", said)
        assert unprobed(whole.replace(b"@", told), True) == whole.replace(b"@", b"null")
    answer = b'{\n "choices": [{"logprobs": @, "message": {"content": "\n\n"}}]\n}'.replace(b"\n\n", rb"\n\n")
    assert unprobed(answer.replace(b"@", told), False) == answer.replace(b"@", b"null")
    assert unprobed(b'"logprobs" is no answer', False) == b'"logprobs" is no answer'


def test_the_log_probabilities_of_a_long_answer_are_taken_out_at_no_more_than_a_few_copies_of_it() -> None:
    tokens = [
        {"token": f" {at}", "logprob": -0.1, "top_logprobs": [{"token": "x", "logprob": -3}]} for at in range(500)
    ]
    answer = json.dumps({"choices": [{"logprobs": {"content": tokens}}]}).encode()
    tracemalloc.start()
    assert unprobed(answer, False) == b'{"choices": [{"logprobs": null}]}'
    assert tracemalloc.get_traced_memory()[1] < 5 * len(answer)
    tracemalloc.stop()


POLICY = """\
schema: 1
tiers:
  flash: {model: f, replicas: ["http://a:1"]}
  pro: {model: p, replicas: ["http://a:2"]}
rules: [{id: all, route: flash}]
holdback: """


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("{tiers: pro, to: flash, escalate_when: {empty: true}}", '6:19: holdback.tiers: "pro" does not rank below'),
        ("{tiers: [pro], to: pro, escalate_when: {empty: true}}", 'holdback.tiers.0: "pro" does not rank below "pro"'),
        ("{tiers: [flush], to: pro, escalate_when: {empty: true}}", 'no tier is named "flush"; did you mean "flash"?'),
        ("{tiers: flash, to: prof, escalate_when: {empty: true}}", 'holdback.to: no tier is named "prof"'),
        ("{tiers: flash, to: pro, escalate_when: {}}", "holdback.escalate_when: give at least one sign"),
        ("{tiers: flash, to: pro, escalate_when: {refusal_words: ['(a+)+b']}}", "can take too long"),
        ("{tiers: flash, to: pro, wait: 400, escalate_when: {empty: true}}", "a duration needs a number and a unit"),
    ],
)
def test_a_wrong_holdback_is_refused_at_its_place(given: str, problem: str) -> None:
    with pytest.raises(PolicyError) as found:
        load_policy(POLICY + given)
    assert problem in str(found.value)


def test_a_holdback_has_its_defaults() -> None:
    rules = load_policy(POLICY + "{tiers: flash, to: pro, escalate_when: {empty: true}}").holdback
    assert rules
    assert (rules.tiers, rules.tokens, rules.wait) == (("flash",), 24, 0.4)
    assert not rules.escalate_when.figures
    assert load_policy(POLICY + "null").holdback is None
