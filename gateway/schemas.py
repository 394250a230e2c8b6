"""Do the patterns in a request hold up a model server for all?

An engine makes a pattern an automaton before it answers, and its steps grow with the square of what the pattern is when
its repeats are written out. vLLM 0.32 does it in the process that serves all (2026-11-24): `.*a.{4000}b` in a schema's
string held its streams up for 18 s, 20,000 nested groups ended it; llama.cpp's `((a{0,100}){0,100}){0,100}` has no end.
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
FIELD = "pattern"  # in a plan's `fields` it lets all of them pass
_OWN = "structured_outputs"  # vLLM's, which may hold schemas as text
_HOLDERS = frozenset({_OWN, "response_format", "tools", "text", "output_config"})
_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*+\]|\{(\d*)(?:,(\d*))?\}|.", re.DOTALL)
_BEGINS = re.compile(rb'Properties|"\s*:\s*"').match  # behind "pattern"
_ESCAPED = re.compile(rb"\\u00[67]").search
_decode = msgspec.json.Decoder(float_hook=float).decode


def refuse_patterns(request: ChatRequest, policy: Policy) -> None:
    """Raises BadRequest for patterns that are too long when their repeats are written out."""
    members = request.body.members
    if _HOLDERS.isdisjoint(members) or FIELD in policy.callers.plans[request.caller.plan].fields:
        return
    for name, raw in members.items():
        squares = (written(one) ** 2 for one in patterns(name, bytes(raw))) if name in _HOLDERS else ()
        if any(total > LONGEST**2 for total in accumulate(squares)):
            told = f"Patterns of more than {LONGEST} characters, repeats written out, hold up a model server"
            raise BadRequest(f"{told}: shorten them, or give strings a maxLength instead.", param=name)


def patterns(name: str, raw: bytes) -> Iterator[str]:
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
            found = [value.get("pattern"), value.get("regex")]
            yield from (one for one in found if isinstance(one, str))
            yield from _keys(value.get("patternProperties"))


def _may_hold(raw: bytes) -> bool:
    """Whether to look closer: many a tool has a parameter of the name, which is no text; escapes may hide a letter."""
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
