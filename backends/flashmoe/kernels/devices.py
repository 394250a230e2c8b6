"""Which launches were measured on a device, and what is there to compute the others from?

`configs/NAME.json` describes a device, NAME being what CUDA calls it, in lower case and with dashes. Its `measured` is
a list of {"shape": {...}, "format": "bf16", "tokens": 16, "launch": {...}}, shape and launch with the fields that
`Shape` and `Launch` have.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from backends.flashmoe.kernels.launch import Format, Launch, Shape, choose, fault

CONFIGS = Path(__file__).parent / "configs"
FACTS = ("capability", "processors", "shared")
ENTRY = {"shape", "format", "tokens", "launch"}
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, as far as a launch depends on it."""

    capability: int  # compute capability, times ten
    processors: int
    shared: int  # bytes of a multiprocessor that its programs share
    measured: Mapping[tuple[Shape, Format, int], Launch]

    def launch(self, shape: Shape, form: Format, tokens: int) -> Launch:
        """The launch measured for the nearest number of tokens within a factor of two, else a computed one.

        ValueError: the shape fits no tile of this format.
        """
        counts = [count for at, kind, count in self.measured if (at, kind) == (shape, form)]
        near = [count for count in counts if tokens <= 2 * count and count <= 2 * tokens]
        if near:
            return self.measured[shape, form, min(near, key=lambda count: abs(count - tokens))]
        return choose(shape, form, tokens, self.processors)


@cache
def known(name: str) -> Device | None:
    """The device that CUDA or its file calls so; None without a file. ValueError: a bad file."""
    path = CONFIGS / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"
    return parse(path.read_text(), path.name) if path.exists() else None


def parse(text: str, where: str) -> Device:
    """The device that a file's text describes. ValueError: says what is wrong at which place of `where`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON: {error}") from error
    _keys(found, {*FACTS, "measured"}, where)
    facts = {name: _read(int, found[name], f"{where}: {name}") for name in FACTS}
    measured = found["measured"] if isinstance(found["measured"], list) else [found["measured"]]
    entries = [_entry(entry, f"{where}: measured[{at}]") for at, entry in enumerate(measured)]
    return Device(**facts, measured=dict(entries))


def _entry(found: Any, where: str) -> tuple[tuple[Shape, Format, int], Launch]:
    _keys(found, ENTRY, where)
    if found["format"] not in list(Format):
        raise ValueError(f"{where}.format: {found['format']!r} is none of {', '.join(Format)}")
    form, tokens = Format(found["format"]), _read(int, found["tokens"], f"{where}.tokens")
    shape, launch = _read(Shape, found["shape"], f"{where}.shape"), _read(Launch, found["launch"], f"{where}.launch")
    wrong = fault(shape, form, launch)
    if wrong:
        raise ValueError(f"{where}.launch: {wrong}")
    return (shape, form, tokens), launch


def _read(kind: type[Value], found: Any, where: str) -> Value:
    """A count above 0, or a dataclass of them."""
    if kind is int:
        if type(found) is not int or found < 1:
            raise ValueError(f"{where}: {found!r} is no count above 0")
        return cast("Value", found)
    parts = {part.name: part.type for part in fields(cast("Any", kind))}
    _keys(found, set(parts), where)
    return kind(**{name: _read(cast("Any", of), found[name], f"{where}.{name}") for name, of in parts.items()})


def _keys(found: Any, wanted: set[str], where: str) -> None:
    if not isinstance(found, dict) or found.keys() != wanted:
        raise ValueError(f"{where}: wants {', '.join(sorted(wanted))} and nothing else")
