"""Do the patterns and values in a request's schemas hold up a model server for all?

An engine makes a pattern an automaton before it answers, and its steps grow with the square of what the pattern is when
its repeats are written out. vLLM 0.32 does it in the process that serves all (2026-11-24): `.*a.{4000}b` in a schema's
string held its streams up for 18 s, 20,000 nested groups ended it; llama.cpp's `((a{0,100}){0,100}){0,100}` has no end.
So are values and names made, which vLLM compiles in a thread: 9,000 values of 20 letters took it 12 s, one of 200,000
letters or as many of names over 40 s; half of that about one second.
"""

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import msgspec

from gateway.errors import UNREADABLE, BadRequest
from gateway.policy import Policy
from gateway.types import ChatRequest

LONGEST = 1000  # characters of a pattern, written out: one or two seconds; of several the squares add up
_WHOLE = 4 * LONGEST  # as it stands, where a class of any length counts as one character
VALUES = 100_000  # bytes of a member's fixed values and names of properties: 4,000 of 20 letters
FIELD = "pattern"  # in a plan's `fields` it lets all of them pass
_OWN = "structured_outputs"  # vLLM's, which may hold schemas as text
_HOLDERS = (_OWN, "response_format", "tools", "text", "output_config")
_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*+\]|\{(\d*)(?:,(\d*))?\}|.", re.DOTALL)
_BEGINS = re.compile(rb'Properties|"\s*:\s*"').match  # behind "pattern"
_ESCAPED = re.compile(rb"\\u00[67]").search
_decode, _encode = msgspec.json.Decoder(float_hook=float).decode, msgspec.json.encode


def refuse_patterns(request: ChatRequest, policy: Policy) -> None:
    """Raises BadRequest for patterns that are too long when their repeats are written out, and too many values."""
    members = request.body.members
    if members.keys().isdisjoint(_HOLDERS) or FIELD in policy.callers.plans[request.caller.plan].fields:
        return
    for name in _HOLDERS:
        if name in members and (told := _too_much(list(_objects(name, bytes(members[name]))))):
            raise BadRequest(told, param=name)


def _too_much(schemas: list[dict[str, Any]]) -> str | None:
    """What in these objects holds up a server; None: nothing does."""
    squares = accumulate(written(one) ** 2 for schema in schemas for one in _patterns(schema))
    if any(total > LONGEST**2 for total in squares):
        told = f"Patterns of more than {LONGEST} characters, repeats written out, hold up a model server"
        return f"{told}: shorten them, or give strings a maxLength instead."
    if sum(map(_fixed, schemas)) > VALUES:
        return f"Values and names in schemas of more than {VALUES} bytes hold up a model server: use fewer."
    return None


def _patterns(schema: dict[str, Any]) -> list[str]:
    found = [schema.get("pattern"), schema.get("regex"), *_keys(schema.get("patternProperties"))]
    return [one for one in found if isinstance(one, str)]


def _fixed(schema: dict[str, Any]) -> int:
    """Bytes of the values and names that stand in it."""
    values = [schema[name] for name in ("enum", "const", "choice", "grammar") if name in schema]
    values += [names] if (names := _keys(schema.get("properties"))) else []
    return len(_encode(values)) if values else 0


def _objects(name: str, raw: bytes) -> Iterator[dict[str, Any]]:
    """Those in the member `name`, wherever they stand. Raises BadRequest."""
    left = [_read(raw)] if name == _OWN or _may_hold(raw) else []
    if name == _OWN and isinstance(left[0], dict):
        texts = map(left[0].get, ("json", "structural_tag"))
        left += [_read(text.encode()) for text in texts if isinstance(text, str)]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
            yield value


def _may_hold(raw: bytes) -> bool:
    """Whether to look closer: many a tool has a parameter of the name, which is no text; escapes may hide a letter."""
    if len(raw) > VALUES:
        return True
    if raw.find(b"\\u00") >= 0 and _ESCAPED(raw):
        return True
    return any(map(_BEGINS, raw.split(b"pattern")[1:]))


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _read(data: bytes) -> Any:
    try:
        return _decode(data)
    except UNREADABLE:
        raise BadRequest("A schema of the request cannot be read.") from None


def written(pattern: str) -> int:
    """The characters of a pattern, its repeats written out; no more is counted than tells that it is too long. Of what
    engines read in several ways, as a `]` that begins a class, the longer one counts."""
    if len(pattern) > _WHOLE:  # an open bracket is looked after to the end, once for each
        return LONGEST + 1
    opened, total, last = list[int](), 0, 0  # `last`: the characters that a repeat would repeat
    for token in _TOKEN.finditer(pattern):
        if token[1] is not None:
            most = int((token[2] or token[1]).lstrip("0")[:9] or 1)
            total += last * (most - 1)
            last *= most
        elif token[0] == "(":
            opened.append(total)
        elif token[0] == ")" and opened:
            last = total + 1 - opened.pop()
        else:
            last = 1
        total += 1
        if total > LONGEST:
            break
    return total
