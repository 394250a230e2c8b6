"""Do structured answers fit their schemas?"""

import json
import random
from typing import Any

import pytest

from backends.sim.schema import fit, label_field
from backends.sim.tokens import pieces
from tests.backends.sim.servers import chat

TREE = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}}
    },
    "$ref": "#/$defs/node",
}


def made(schema: Any, seed: int = 0) -> Any:
    """A value for `schema`."""
    return fit(schema, random.Random(seed), ["alpha", "beta"])


@pytest.mark.parametrize("seed", range(20))
def test_scalars_keep_their_bounds(seed: int) -> None:
    assert made({"const": 7}, seed) == 7
    assert made({"enum": ["a", 1, None]}, seed) in ("a", 1, None)
    assert 3 <= made({"type": "integer", "minimum": 3, "maximum": 5}, seed) <= 5
    assert made({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}, seed) == 4
    assert 0 < made({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, seed) <= 1
    assert made({"type": "integer", "multipleOf": 7}, seed) % 7 == 0
    assert isinstance(made({"type": "boolean"}, seed), bool)
    assert 5 <= len(made({"type": "string", "minLength": 5, "maxLength": 6}, seed)) <= 6
    assert made({"type": ["string", "null"]}, seed) is not None
    assert made({"type": "null"}, seed) is None


def test_objects_and_arrays_are_complete() -> None:
    schema = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 3},
            "who": {"$ref": "#/$defs/p"},
        },
        "required": ["tags", "who", "free"],
        "$defs": {"p": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}},
    }
    value = made(schema)
    assert len(value["tags"]) >= 3
    assert all(isinstance(tag, str) for tag in value["tags"])
    assert isinstance(value["who"]["age"], int)
    assert "free" in value
    merged = made(
        {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]}
    )
    assert merged == {"a": 1, "b": 2}


def test_recursion_and_nonsense_end() -> None:
    assert len(json.dumps(made(TREE))) < 2000
    assert made({"$ref": "#/nowhere"}) is not None
    loop = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    made(loop)
    made({"anyOf": [{"$ref": "#"}]})
    made({"type": "array", "items": {"$ref": "#"}, "minItems": 1})


def test_the_label_field_is_found_through_a_reference() -> None:
    schema = {"properties": {"x": {"type": "string"}, "y": {"$ref": "#/$defs/l"}}, "$defs": {"l": {"enum": ["b", "a"]}}}
    assert label_field(schema, ("a", "b")) == "y"
    assert label_field({"properties": {"x": {"enum": ["a"]}}}, ("a", "b")) is None
    assert label_field([], ("a", "b")) is None


def test_the_server_answers_in_the_schema(url: str) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
    }
    for body in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"structured_outputs": {"json": schema}},
        {"guided_json": json.dumps(schema)},
    ):
        value = json.loads(chat(url, "Fill this in", **body).json()["choices"][0]["message"]["content"])
        assert isinstance(value["n"], int)
        assert isinstance(value["ok"], bool)
    free = chat(url, "Any JSON", response_format={"type": "json_object"}).json()["choices"][0]["message"]["content"]
    assert isinstance(json.loads(free), dict)


@pytest.mark.parametrize(
    "text", ["", "a b  c\n\n\td", "naïve 你好世界 мир 🎉 <｜User｜>< x >", '{"complexity":"simple"}', "\x00\r\n"]
)
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
