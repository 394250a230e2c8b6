"""How much do two answers to one request agree?   In their words, not in their quality. Pure.

The figure is the overlap of the two as bags of words (twice what they share over what both have): of texts their words,
of JSON its leaves, of tool calls their arguments. Answers that are the same but for case, width and punctuation have 1.
Two right answers in other words have less, and one wrong number in a long text costs little: it says where to look, and
over many requests whether answers drift apart, not which of two is right.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import msgspec

from gateway.body import real
from gateway.errors import UNREADABLE
from gateway.wording import Wording

READ = 10_000  # characters of a text that are compared
DEEP = 32  # keys on the way to a leaf: with 900, two texts of 10 kB took 0.5 s of CPU (2026-11-23)
# A number, one character of a script without spaces (Chinese, Japanese, Thai), or a word.
_SPACELESS = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:[.,]\d+)*|[{_SPACELESS}]|[^\W\d_{_SPACELESS}]+")
_VALUE = msgspec.json.Decoder(Any, float_hook=real)


def agreement(one: Wording, other: Wording) -> float | None:
    """From 0 to 1; None where an answer was cut, so that nobody knows. One that refuses, or calls a tool, agrees with
    none that does not."""
    if not (one.whole and other.whole):
        return None
    if one.refused != other.refused or bool(one.calls) != bool(other.calls):
        return 0.0
    if one.calls:
        return overlap(_called(one), _called(other))
    both = [_parsed(text) for text in (one.text, other.text)]
    if all(isinstance(value, dict | list) for value in both):
        return overlap(*map(leaves, both))
    return overlap(words(one.text), words(other.text))


def words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text[:READ]).casefold())


def leaves(value: Any, path: tuple[Hashable, ...] = ()) -> Iterator[Hashable]:
    """The ends of a JSON value, each with the keys that lead there; a list's places do not count. What lies deeper than
    DEEP is one end."""
    if len(path) == DEEP:
        yield (path, msgspec.json.encode(value))
    elif isinstance(value, dict):
        yield (path, "{}")
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        yield (path, "[]")
        for inner in value:
            yield from leaves(inner, (*path, ""))
    else:
        yield (path, " ".join(words(value)) if isinstance(value, str) else value)


def overlap(one: Iterable[Hashable], other: Iterable[Hashable]) -> float:
    """The part that two bags share; two empty ones are the same."""
    mine, yours = Counter(one), Counter(other)
    both = mine.total() + yours.total()
    return 2 * (mine & yours).total() / both if both else 1.0


def _called(answer: Wording) -> list[Hashable]:
    pairs = [(name, _parsed(arguments)) for name, arguments in answer.calls.values()]
    return [(name, leaf) for name, value in pairs for leaf in leaves(value)]


def _parsed(text: str) -> Any:
    """The value that a text spells as JSON, else the text; of a long one nobody asks."""
    try:
        return _VALUE.decode(text) if len(text) <= READ else text
    except UNREADABLE:
        return text
