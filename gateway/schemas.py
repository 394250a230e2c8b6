"""Do the schemas in a request hold up a model server for all?

An engine makes a pattern an automaton before it answers, and its steps grow with the square of what the pattern is when
its repeats are written out. vLLM 0.32 does it in the process that serves all (2026-11-24): `.*a.{4000}b` in a schema's
string held its streams up for 18 s, 20,000 nested groups ended it; llama.cpp's `((a{0,100}){0,100}){0,100}` has no end.
With the cube grow the levels of a schema (xgrammar 0.2.8: 9.5 s for 400 objects in each other, 16 KB; 1.5 s for 80
schemas of 45) and the properties beside a `minProperties` (1.4 s for 600). Values and names are cheap up to some
100 KB; of twice as many, as 9,000 values of 20 letters, a vLLM compiled for 12 s, or over 40.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import Any

import msgspec

from gateway.errors import UNREADABLE, BadRequest
from gateway.policy import Policy
from gateway.types import ChatRequest

LONGEST = 1000  # characters of a pattern, written out: one or two seconds; of several the squares add up
_WHOLE = 4 * LONGEST  # as it stands, where a class of any length counts as one character
_LEAST = 100  # that any of them takes
_UNBOUND = 25  # times as many squares where nothing is compiled
DEEPEST = 100  # objects and arrays in each other, two for each level of a schema
MANY = 80  # so many that are as deep take about as long together, as each level takes the square of how deep it is
WIDEST = 500  # properties beside a `minProperties`, whose cube takes about as long as the square of LONGEST
VALUES = 100_000  # bytes of a member's fixed values and names of properties: 4,000 of 20 letters
FIELD = "pattern"  # in a plan's `fields` it lets all of them pass
_OWN = "structured_outputs"  # vLLM's, which may hold schemas as text
_HOLDERS = frozenset({_OWN, "response_format", "tools", "text", "output_config"})
_PATTERNS = ("pattern", "regex", "whitespace_pattern")
_VALUES = ("enum", "const", "choice", "grammar", "ebnf")
# Values of tool_choice that leave it to the model, the last two of Anthropic's SDKs.
_FREE = (b'"auto"', b'"none"', b"null", b'{"type":"auto"}', b'{"type": "auto"}')
# A class without an end, which no engine reads, is one: else all that is behind each bracket would be looked through.
_TOKEN = re.compile(r"\\.|\[[^\]\\]*+(?:\\.?[^\]\\]*+)*+(?:\]|\Z)|\{([0-9]*)(?:,([0-9]*))?\}|.", re.DOTALL)
_BEGINS = re.compile(rb'Properties|"\s*:\s*"').match  # behind "pattern"
_BINDS = re.compile(rb"\s*:\s*+(?!false|null)").match  # behind "strict", which vLLM reads from 1 and "yes", too
_ESCAPED = re.compile(rb"\\u00[4-7]").search  # letters, which may hide a name
_decode, _encode = msgspec.json.Decoder(float_hook=float).decode, msgspec.json.encode


def refuse_patterns(request: ChatRequest, policy: Policy) -> None:
    """Raises BadRequest for patterns that are too long when their repeats are written out, and for other schemas that
    take an engine as long."""
    members = request.body.members
    if _HOLDERS.isdisjoint(members) or FIELD in policy.callers.plans[request.caller.plan].fields:
        return
    for name in _HOLDERS.intersection(members):
        raw = bytes(members[name])
        hidden = raw.find(b"\\u00") >= 0 and bool(_ESCAPED(raw))
        bound = name != "tools" or hidden or _binding(raw, members)
        if bound or _may_have_patterns(raw):
            _check(name, raw, bound)


def _check(name: str, raw: bytes, bound: bool) -> None:
    """Raises BadRequest. Of tools whose arguments nothing binds (not `bound`) engines read the patterns at most."""
    work = fixed = 0
    for takes, spells in _found(name, raw, bound):
        work, fixed = work + takes, fixed + spells
        if work > LONGEST**2:
            told = f"Patterns of more than {LONGEST} characters, repeats written out, hold up a model server"
            more = "so do hundreds of properties beside minProperties or maxProperties, and dozens of deep schemas"
            raise BadRequest(f"{told}: shorten them, or give strings a maxLength instead; {more}.", param=name)
        if fixed > VALUES:
            told = f"Values and names in schemas of more than {VALUES} bytes hold up a model server: use fewer."
            raise BadRequest(told, param=name)


def _found(name: str, raw: bytes, bound: bool) -> Iterator[tuple[int, int]]:
    """What is in the member `name`, the outer schemas first: how long it takes, in squares of a pattern's characters,
    and the bytes of values and names. Raises BadRequest, if it is `bound` also for what is nested too deeply."""
    level = [_read(raw)]
    if name == _OWN and isinstance(level[0], dict):
        texts = map(level[0].get, ("json", "structural_tag"))
        level += [_read(text.encode()) for text in texts if isinstance(text, str)]
    for depth in count(1):
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return
        if bound and depth > DEEPEST:
            told = f"Schemas of more than {DEEPEST} objects and arrays in each other hold up a model server."
            raise BadRequest(told, param=name)
        objects = [one for one in level if isinstance(one, dict)]
        yield from ((_taking(one, bound), 0) for schema in objects for one in _patterns(schema))
        if bound:
            yield LONGEST**2 * len(level) * depth**2 // (MANY * DEEPEST**3 // 3), 0
            yield from ((_counting(schema), _fixed(schema)) for schema in objects)
        level = [*chain(*[one for one in level if isinstance(one, list)], *[one.values() for one in objects])]


def _patterns(schema: dict[str, Any]) -> list[str]:
    found = (*map(schema.get, _PATTERNS), *_keys(schema.get("patternProperties")))
    return [one for one in found if isinstance(one, str)]


def _taking(pattern: str, bound: bool) -> int:
    square = written(pattern) ** 2
    return max(_LEAST, square if bound or square > LONGEST**2 else square // _UNBOUND)


def _counting(schema: dict[str, Any]) -> int:
    """How long it takes to count an object's properties."""
    if not (schema.get("minProperties") or schema.get("maxProperties")):
        return 0
    return LONGEST**2 * len(_keys(schema.get("properties"))) ** 3 // WIDEST**3


def _fixed(schema: dict[str, Any]) -> int:
    """Bytes of the values and names that stand in it."""
    values = [schema[name] for name in _VALUES if name in schema]
    values += [names] if (names := _keys(schema.get("properties"))) else []
    return len(_encode(values)) if values else 0


def _binding(raw: bytes, members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether these tools bind what the model writes."""
    if bytes(members.get("tool_choice", b"null")) not in _FREE:
        return True
    return any(map(_BINDS, raw.split(b'"strict"')[1:]))


def _may_have_patterns(raw: bytes) -> bool:
    """Many a tool has a parameter of the name, which is no text."""
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
        elif token[0] not in "*+?":  # what was repeated is, once more
            last = 1
        total += 1
        if total > LONGEST:
            break
    return total
