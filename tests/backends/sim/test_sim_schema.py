"""Do structured answers fit their schemas?"""

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from backends.sim.schema import fit, label_field
from backends.sim.tokens import pieces
from tests.backends.sim.servers import JSON, chat

TREE = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}}
    },
    "$ref": "#/$defs/node",
}


def made(schema: Any, seed: int = 0) -> Any:
    """A value for `schema`."""
    return fit(schema, random.Random(seed), ["alpha", "beta"])


KIND = {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 1}}
SCHEMAS: dict[str, JSON] = {
    "a constant": {"const": 7},
    "one of several values": {"enum": ["a", 1, None]},
    "an integer": {"type": "integer", "minimum": 3, "maximum": 5},
    "the only integer": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    "integers between fractions": {"type": "integer", "minimum": 2.5, "maximum": 3.5},
    "a negative integer": {"type": "integer", "maximum": -0.5},
    "a fraction": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "a multiple": {"type": "integer", "minimum": 7, "maximum": 10, "multipleOf": 7},
    "multiples between": {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 2, "multipleOf": 0.25},
    "a truth value": {"type": "boolean"},
    "a length": {"type": "string", "minLength": 5, "maxLength": 6},
    "a list": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3},
    "a short list": {"type": "array", "items": {"type": "integer"}, "maxItems": 1},
    "an empty list": {"items": {"type": "integer"}, "maxItems": 0},
    "a tuple": {"type": "array", "prefixItems": [{"const": 1}, {"type": "string"}], "minItems": 2},
    "a null": {"type": "null"},
    "an object": {
        "type": "object",
        "properties": {"who": {"$ref": "#/$defs/p"}, "at": {"$ref": "#/$defs/a~1b"}},
        "required": ["who", "at", "free"],
        "additionalProperties": {"type": "boolean"},
        "$defs": {"p": {"properties": {"age": {"type": "integer"}}, "required": ["age"]}, "a/b": {"const": 2}},
    },
    "parts": {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"required": ["b"]}], "type": "object"},
    "a described reference": {"allOf": [{"$ref": "#/$defs/e"}], "description": "d", "$defs": {"e": {"enum": ["x"]}}},
    "parts of parts": {"allOf": [{"allOf": [{"type": "integer"}]}]},
    "an alternative": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 4}]},
    "another alternative": {"oneOf": [{"type": "integer"}, {"type": "null"}]},
    "either property": {"type": "object", "properties": KIND, "anyOf": [{"required": ["kind"]}, {"required": ["age"]}]},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_value_is_valid(name: str) -> None:
    for seed in range(20):
        Draft202012Validator(SCHEMAS[name]).validate(made(SCHEMAS[name], seed))


def test_what_may_be_left_out_is_there_too() -> None:
    assert made({"type": ["null", "string"]}) is not None
    assert made(SCHEMAS["an alternative"]) is not None
    assert made({"type": "object", "properties": KIND}).keys() == KIND.keys()
    assert len(made({"type": "array"})) == 2


def test_recursion_and_nonsense_end() -> None:
    assert len(json.dumps(made(TREE))) < 2000
    assert made({"$ref": "#/nowhere"}) is not None
    loop = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    made(loop)
    made({"anyOf": [{"$ref": "#"}]})
    made({"allOf": [{"$ref": "#"}]})
    made({"enum": [], "anyOf": [], "allOf": 1, "properties": [], "required": 1})
    for bound in (1e308, 10**400, True, "x"):
        made({"type": "integer", "minimum": bound, "multipleOf": 1e-300})
        made({"type": "number", "maximum": bound})
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
    assert chat(url, "Fill this in", guided_json='{"minimum": 1e999}').status_code == 400
    free = chat(url, "Any JSON", response_format={"type": "json_object"}).json()["choices"][0]["message"]["content"]
    assert isinstance(json.loads(free), dict)


@pytest.mark.parametrize(
    "text", ["", "a b  c\n\n\td", "naïve 你好世界 мир 🎉 <｜User｜>< x >", '{"complexity":"simple"}', "\x00\r\n"]
)
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
