"""Which launch configuration does a GPU take?   Measured ones from its file, others computed.

`configs/NAME.json` describes a GPU, NAME being CUDA's device name in lower case with dashes. Its `measured` is a list
of {"shape": {...}, "format": "bf16", "tokens": 16, "launch": {...}}, with the fields of `Shape` and `Launch`.
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
    """The properties of a GPU that a launch depends on."""

    capability: int  # compute capability, times ten
    processors: int  # streaming multiprocessors
    shared: int  # bytes of shared memory of a multiprocessor
    measured: Mapping[tuple[Shape, Format, int], Launch]

    def launch(self, shape: Shape, form: Format, tokens: int) -> Launch:
        """The launch measured for the nearest number of tokens within a factor of two, else a computed one. Raises
        ValueError when no tile of this format divides the shape."""
        counts = [count for at, kind, count in self.measured if (at, kind) == (shape, form)]
        near = [count for count in counts if tokens <= 2 * count and count <= 2 * tokens]
        if near:
            return self.measured[shape, form, min(near, key=lambda count: abs(count - tokens))]
        return choose(shape, form, tokens, self.processors)


@cache
def known(name: str) -> Device | None:
    """The device of that name, CUDA's or its file's; None without a file. Raises ValueError for an invalid file."""
    path = CONFIGS / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"
    return parse(path.read_text(), path.name) if path.exists() else None


def parse(text: str, where: str) -> Device:
    """The device in a file's text. Raises ValueError with the place and the reason; `where` names the file."""
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
    """A whole number above 0, or a dataclass of such. Raises ValueError."""
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
