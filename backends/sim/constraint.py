"""Which constraint on the output does a request have (structured outputs)?"""

from dataclasses import dataclass
from typing import Any

import msgspec

from backends.sim import schema
from backends.sim.protocol import JSON, Request, RequestError
from backends.sim.verdict import PAIRS


@dataclass(frozen=True, slots=True)
class Constraint:
    """The allowed strings, or a JSON schema, or neither: unconstrained."""

    choices: tuple[str, ...] = ()
    schema: Any = None

    @property
    def labels(self) -> list[str] | None:
        """The labels that the output may be or have in its JSON; [] for a schema without them, None without a
        constraint."""
        if self.choices:
            return list(self.choices)
        if self.schema is None or self.schema == ANY_OBJECT:
            return None
        return next((list(pair) for pair in PAIRS if schema.label_field(self.schema, pair)), [])


ANY_OBJECT: JSON = {"type": "object"}
_KINDS = ("json", "choice", "json_object", "regex", "grammar", "structural_tag")


def constraint(request: Request) -> Constraint:
    """From `structured_outputs`, `response_format` or the legacy guided fields. Raises RequestError."""
    if request.structured_outputs is not None:
        return _structured(request.structured_outputs)
    if request.guided_choice:
        return Constraint(choices=tuple(request.guided_choice))
    if request.guided_json is not None:
        return Constraint(schema=_schema(request.guided_json, "guided_json"))
    return _formatted(request.response_format) if request.response_format else Constraint()


def _structured(given: JSON) -> Constraint:
    kinds = [kind for kind in _KINDS if given.get(kind)]
    if len(kinds) != 1:
        raise RequestError(
            "You can only use one kind of structured outputs constraint but multiple or none are specified: "
            f"{sorted(given)}",
            "structured_outputs",
        )
    if kinds[0] == "choice":
        choices = given["choice"]
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise RequestError("`structured_outputs.choice` must be a list of strings.", "structured_outputs")
        return Constraint(choices=tuple(choices))
    if kinds[0] == "json":
        return Constraint(schema=_schema(given["json"], "structured_outputs"))
    if kinds[0] == "json_object":
        return Constraint(schema=ANY_OBJECT)
    raise RequestError(f"The simulator has no {kinds[0]} constraint.", "structured_outputs")


def _formatted(given: JSON) -> Constraint:
    kind = given.get("type")
    if kind == "text":
        return Constraint()
    if kind == "json_object":
        return Constraint(schema=ANY_OBJECT)
    if kind != "json_schema":
        raise RequestError(f"Unknown response_format type: {kind!r}", "response_format")
    inner = given.get("json_schema")
    if not isinstance(inner, dict) or "schema" not in inner:
        raise RequestError("`json_schema.schema` is required when type is json_schema.", "response_format")
    return Constraint(schema=_schema(inner["schema"], "response_format"))


def _schema(given: Any, param: str) -> JSON:
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except msgspec.DecodeError as error:
            raise RequestError(f"Invalid JSON schema: {error}", param) from error
    if not isinstance(given, dict):
        raise RequestError("A JSON schema must be an object.", param)
    return given
