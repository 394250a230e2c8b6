"""Which schemas in a request hold up a model server, and which pass."""

import contextlib
import json
import time
from typing import Any

import pytest

from gateway.dialects import CHAT, read
from gateway.errors import BadRequest
from gateway.policy import load_policy
from gateway.schemas import WIDEST, refuse_patterns, written
from gateway.types import Caller, ChatRequest
from tests.tiers import JSON

UUID = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
MANY = [f"value number {i:06}" for i in range(5000)]  # of 20 letters; vLLM compiles 9,000 for 12 s
LONG = ".*a.{4000}b"  # which vLLM's 0.32 compiles for 18 s
TALK: JSON = {"messages": [{"role": "user", "content": LONG}]}
POLICY = load_policy(
    """\
schema: 1
tiers: {flash: {model: m, replicas: ["http://h"]}}
rules: [{id: all, route: flash}]
callers: {default: {plan: usual}, plans: {usual: {}, free: {fields: [pattern]}}}
"""
)


def asked(member: JSON, plan: str = "usual", escaped: bytes = b"pattern") -> ChatRequest:
    said = {**TALK, "metadata": {"pattern": LONG}, **member}
    return seen(json.dumps(said).encode().replace(b"pattern", escaped), plan)


def seen(data: bytes, plan: str = "usual", path: str = CHAT) -> ChatRequest:
    body, fields = read(path, data)
    return ChatRequest("r", Caller("1", "ann", plan, "salt"), path, body, fields, {}, 0.0)


def string(**more: Any) -> JSON:
    return {"type": "object", "properties": {"a": {"type": "string", **more}}}


def format_of(schema: JSON) -> JSON:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def tools(*schemas: JSON, **more: Any) -> JSON:
    return {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema, **more}} for schema in schemas]
    }


def nested(levels: int, inner: JSON) -> JSON:
    """A schema whose objects lie so deep in each other."""
    for _ in range(levels):
        inner = {"type": "object", "properties": {"a": inner}}
    return inner


def wide(properties: int, **more: Any) -> JSON:
    return {"type": "object", "properties": {f"a{i}": {"type": "string"} for i in range(properties)}, **more}


REFUSED = {
    "a schema": format_of(string(pattern=LONG)),
    "a name": format_of({"patternProperties": {LONG: {}}}),
    "a part of it": format_of({"anyOf": [{"$defs": {"x": string(pattern=LONG)}}]}),
    "a grammar of tags": {"response_format": {"type": "structural_tag", "format": {"type": "regex", "pattern": LONG}}},
    "a tool": tools({}, string(pattern=LONG)),
    "what may be left out, and repeats": format_of(string(pattern="((a{90})?{90})?")),
    "digits that are no engine's": format_of(string(pattern="(a{900}){\u0660}" * 2)),
    "a short one alone": {"response_format": {"type": "regex", "regex": "(a{9999}){9999}"}},
    "white space": {"structured_outputs": {"json": {}, "whitespace_pattern": LONG}},
    "a deep one": format_of(nested(50, {})),
    "a deep one by other names": format_of({"anyOf": [{"items": nested(49, {"not": {"allOf": [{}]}})}]}),
    "a deep one of a tool that is to be called": {**tools(nested(50, {})), "tool_choice": "required"},
    "a deep one that binds": tools(nested(50, {}), strict=True),
    "a deep one that binds by a word for true": tools(nested(50, {}), strict="yes"),
    "a deep one that binds by a number for true": tools(nested(50, {}), strict=1),
    "many deep ones": format_of({"anyOf": [nested(45, {})] * 120}),
    "many deep ones of tools": {**tools(*[nested(45, {})] * 120), "tool_choice": "required"},
    "a deep one as text": {"structured_outputs": {"json": json.dumps(nested(51, {}))}},
    "a number of many properties": format_of(wide(WIDEST + 1, minProperties=1)),
    "at most so many of many": format_of({"items": wide(600, maxProperties=9)}),
    "many of several": {**tools(*[wide(300, minProperties=1)] * 6), "tool_choice": {"type": "any"}},
    "very many": {"response_format": {"anyOf": [{"pattern": "a"}] * 10_001}},
    "several together": {**tools(*[string(pattern="^.{500}$")] * 4), "tool_choice": "required"},
    "dozens together": tools(*[string(pattern="^.{500}$")] * 101),
    "many values": format_of({"properties": {"a": {"enum": MANY}}}),
    "many values, one by one": format_of({"anyOf": [{"const": one} for one in MANY]}),
    "many values, of tools": tools(*({"enum": MANY[at : at + 100]} for at in range(0, 5000, 100)), strict=True),
    "many names": format_of({"properties": dict.fromkeys(MANY, True)}),
    "a long value": format_of({"const": "x" * 100_000}),
    "many in a grammar": {"structured_outputs": {"grammar": " | ".join(map(json.dumps, MANY))}},
    "many to choose from": {"structured_outputs": {"choice": MANY}},
    "many values as text": {"structured_outputs": {"json": json.dumps({"enum": MANY})}},
    "vLLM's own": {"structured_outputs": {"regex": LONG}},
    "vLLM's own, as text": {"structured_outputs": {"json": json.dumps(string(pattern=LONG))}},
    "vLLM's own, unreadable as text": {"structured_outputs": {"json": '{"maximum": NaN}'}},
}
PASS = {
    "usual ones": tools(*(string(pattern=UUID) for _ in range(200))),
    "a long choice": format_of(string(pattern=f"^({'|'.join(map(str, range(100, 300)))})$")),
    "a parameter of the name": tools(string(), {"properties": {"pattern": {"type": "string"}, "regex": {}}}),
    "what is none": format_of({"pattern": 5, "patternProperties": ["x"], "enum": ["pattern", None, 1e300]}),
    "deep and wide ones": format_of(nested(40, wide(WIDEST - 50, minProperties=1))),
    "several of tools that bind nothing": tools(*[string(pattern="^.{500}$")] * 90),
    "several deep ones": format_of({"anyOf": [nested(45, {})] * 40}),
    "tools by the hundred": {**tools(*[nested(4, wide(20))] * 500, strict=True), "tool_choice": "required"},
    "many properties": format_of(wide(3000)),
    "tools that bind nothing": {**tools(nested(50, {}), strict=False), "tool_choice": "auto"},
    "tools that bind nothing, as Anthropic's SDKs say it": {**tools(nested(50, {})), "tool_choice": {"type": "auto"}},
    "a parameter that is named strict": tools(nested(50, {"enum": ["strict"], "strict": None})),
    "no constraint": {"structured_outputs": None, "response_format": None, "tools": None},
    "many values of tools that bind nothing": tools({"enum": MANY, "pattern": "a"}),
    "thousands of values": format_of({"properties": {"a": {"enum": MANY[:4000]}}}),
    "long descriptions": tools({"description": "x" * 200_000, "properties": {"a": {"enum": MANY[:1000]}}}),
    "a number of many digits": format_of({"enum": [10**30, 1e300]}),
    "a choice": {"structured_outputs": {"choice": ["a", "b"]}},
}


@pytest.mark.parametrize("member", REFUSED.values(), ids=REFUSED)
def test_patterns_that_hold_up_a_server_for_all_are_refused_unless_the_plan_says_so(member: JSON) -> None:
    request = asked(member)
    with pytest.raises(BadRequest) as refusal:
        refuse_patterns(request, POLICY)
    assert refusal.value.param in (None, *member)
    refuse_patterns(asked(member, "free"), POLICY)


@pytest.mark.parametrize("member", PASS.values(), ids=PASS)
def test_patterns_of_the_usual_length_pass(member: JSON) -> None:
    refuse_patterns(asked(member), POLICY)


@pytest.mark.parametrize("escaped", [b"p\\u0061ttern", b"\\u0070attern", b"patter\\u006E"])
def test_no_escape_hides_a_pattern(escaped: bytes) -> None:
    request = asked(tools(string(pattern=LONG)), escaped=escaped)
    with pytest.raises(BadRequest):
        refuse_patterns(request, POLICY)


@pytest.mark.parametrize(
    ("plain", "escaped"), [(b"patternProperties", b"pattern\\u0050roperties"), (b"strict", b"\\u0073trict")]
)
def test_nor_what_comes_with_it(plain: bytes, escaped: bytes) -> None:
    member = tools({"patternProperties": {LONG: {}}}) if plain.startswith(b"p") else tools(nested(50, {}), strict=True)
    data = json.dumps({**TALK, **member}).encode()
    assert plain in data
    with pytest.raises(BadRequest):
        refuse_patterns(seen(data.replace(plain, escaped)), POLICY)


@pytest.mark.parametrize(
    ("path", "member"),
    [
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", "schema": string(pattern=LONG)}}}),
        ("/v1/messages", {**TALK, "output_config": {"format": {"json_schema": string(pattern=LONG)}}}),
    ],
)
def test_the_other_dialects_schemas_are_looked_at_too(path: str, member: JSON) -> None:
    request = seen(json.dumps(member).encode(), path=path)
    with pytest.raises(BadRequest):
        refuse_patterns(request, POLICY)


@pytest.mark.parametrize(
    ("pattern", "least", "most"),
    [
        ("", 0, 0),
        ("abc", 3, 3),
        (r"\{999}[x{999}(]", 6, 8),
        ("a{5}", 5, 7),
        ("a{5,}", 5, 7),
        ("a{,5}", 5, 7),
        ("(ab){10}", 41, 41),
        ("(ab)?{10}", 40, 45),
        ("a*{9}+?", 9, 15),
        ("(?:(a{9}){9}|b)c", 81, 130),
        ("[](a{20}){20}", 400, 480),  # JavaScript's empty class
        ("a{0000000000500}", 500, 503),
        ("a{}{,}{x}", 1, 9),
        (")" * 9 + "(" * 9, 18, 18),
        ("a{9}[(a{9}){9}", 10, 11),  # a class without an end, which no engine reads
        ("(" * 50_000, 1001, 1001),
        ("[" * 50_000, 1001, 1001),
        ("[" + "a" * 4000 + "]", 1001, 1001),  # too long to look through, whatever it says
        ("((a{0,100}){0,100}){0,100}", 1001, 2e6),
        ("a{99999999999999999999}", 1001, 1e10),
        ("a" + "{1}" * 50_000, 1001, 1001),
    ],
)
def test_a_pattern_is_as_long_as_its_repeats_written_out(pattern: str, least: int, most: float) -> None:
    assert least <= written(pattern) <= most


def test_to_look_at_open_brackets_takes_no_longer_than_at_letters() -> None:
    def seconds(text: str) -> float:
        names = [f"{i:04}{text * (3990 // len(text))}" for i in range(30)]
        request = asked(format_of({"patternProperties": dict.fromkeys(names, True)}))
        began = time.process_time()
        with contextlib.suppress(BadRequest):
            refuse_patterns(request, POLICY)
        return time.process_time() - began

    times = [(seconds("a"), seconds("["), seconds("[\\")) for _ in range(5)]
    assert min(max(others) / usual for usual, *others in times) < 10
