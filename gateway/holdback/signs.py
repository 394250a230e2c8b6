"""Is the start of an answer weak, and by which sign?   Pure."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic_core import from_json

from gateway.fields import Fields
from gateway.policy import Holdback, Most, Weak
from gateway.wording import Wording

LOOKED_AT = 4000  # characters: the first for refusal words, the last for loops
UNIT = 80  # characters of the longest unit of a loop
TURNS, LOOP = 4, 30  # a loop repeats its unit so often at least, and is so many characters long at least
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def over(start: Wording, rules: Holdback) -> str | None:
    """What ended the start: end | tokens; None while it goes on."""
    return "end" if start.finish else "tokens" if start.tokens >= rules.tokens else None


def shown(start: Wording, rules: Weak, fields: Fields) -> str | None:
    """The sign that shows already and that nothing which follows can undo; None: none."""
    if (rules.refusal and start.refused) or refuses(start.text, rules.refusal_words):
        return "refusal"
    if rules.empty and is_empty(start):
        return "empty"
    if rules.schema_violation and start.text and violates(start, fields.response_format or {}):
        return "schema_violation"
    return "repetition" if rules.repetition and loops(start.text) else None


def figures(start: Wording) -> dict[str, float]:
    """mean_logprob and margin: means over the tokens kept back, without those that the server did not tell."""
    told = {"mean_logprob": start.logprobs, "margin": start.margins}
    return {name: round(fmean(values), 6) for name, values in told.items() if values}


def doubtful(told: Mapping[str, float], rules: Weak) -> str | None:
    """The figure that is at or below its bound; None: none, or none is known."""
    if is_low(told.get("mean_logprob"), rules.mean_logprob):
        return "mean_logprob"
    return "margin" if is_low(told.get("margin"), rules.margin) else None


def is_low(figure: float | None, most: Most | None) -> bool:
    return most is not None and figure is not None and figure <= most.max


def refuses(text: str, words: Sequence[str]) -> bool:
    return any(re.search(pattern, text[:LOOKED_AT]) for pattern in words)


def is_empty(start: Wording) -> bool:
    """It ended without content, for another reason than the caller's own max_tokens."""
    return start.finish not in ("", "length") and not (start.text.strip() or start.calls or start.refused)


def loops(text: str) -> bool:
    """The text ends in a loop: a unit with a letter in it, repeated. Lines of dashes, tables and digits are no
    loops."""
    text = text[-LOOKED_AT:]
    return any(_turns(text, size) for size in range(1, min(UNIT, len(text) // TURNS) + 1))


def _turns(text: str, size: int) -> bool:
    unit = text[-size:]
    turns = max(TURNS, -(-LOOP // size))
    return text.endswith(unit * turns) and any(map(str.isalpha, unit))


def violates(start: Wording, wanted: dict[str, Any]) -> bool:
    """Whatever follows, the text cannot become JSON of the form that was asked for.

    Of a schema only type, enum, const, items, properties, additionalProperties: false and required are checked.
    """
    kind = wanted.get("type")
    if kind not in ("json_object", "json_schema"):
        return False
    told = wanted.get("json_schema") if kind == "json_schema" else {"schema": {"type": "object"}}
    schema = told.get("schema") if isinstance(told, dict) else None
    try:
        return not fits(from_json(start.text, allow_inf_nan=False), schema, whole=True)
    except ValueError as error:
        ended = start.finish not in ("", "length")
        if ended or "EOF while parsing" not in str(error):
            return True
    try:
        return not fits(from_json(start.text, allow_partial=True, allow_inf_nan=False), schema, whole=False)
    except ValueError:  # nothing but white space, or the first half of a string
        return False


def fits(value: Any, schema: Any, *, whole: bool) -> bool:
    """Whether a value fits the schema. Not `whole`: it may still get more members, and a number more digits."""
    if not isinstance(schema, dict):
        return True
    kinds = schema.get("type")
    named = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if named and not any(_is(value, kind) for kind in named):
        return False
    if not _among(value, schema, whole):
        return False
    if isinstance(value, list):
        return all(fits(item, schema.get("items"), whole=whole) for item in value)
    return _has_members(value, schema, whole) if isinstance(value, dict) else True


def _is(value: Any, kind: object) -> bool:
    """Whether a value is of a JSON type; any value is of an unknown type."""
    types = TYPES.get(kind) if isinstance(kind, str) else None
    if types is None:
        return True
    if isinstance(value, bool):
        return kind == "boolean"
    broken = kind == "integer" and isinstance(value, float) and not value.is_integer()
    return isinstance(value, types) and not broken


def _among(value: Any, schema: dict[str, Any], whole: bool) -> bool:
    given = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if not isinstance(given, list) or isinstance(value, dict | list):
        return True
    grows = not whole and isinstance(value, int | float) and not isinstance(value, bool)
    return bool(grows or value in given)


def _has_members(value: dict[str, Any], schema: dict[str, Any], whole: bool) -> bool:
    told, required = schema.get("properties"), schema.get("required")
    properties = told if isinstance(told, dict) else {}
    closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    if closed and not value.keys() <= properties.keys():
        return False
    if whole and isinstance(required, list) and not all(name in value for name in required if isinstance(name, str)):
        return False
    return all(fits(member, properties.get(name), whole=whole) for name, member in value.items())
