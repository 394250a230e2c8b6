"""What is one finding of `tiergate doctor`?"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """`about`: what was looked at; `told`: what was found; `fix`: what to do about it, "" for nothing."""

    level: Level
    about: str
    told: str
    fix: str = ""


def ok(about: str, told: str) -> Finding:
    return Finding("ok", about, told)


def warning(about: str, told: str, fix: str) -> Finding:
    return Finding("warning", about, told, fix)


def error(about: str, told: str, fix: str) -> Finding:
    return Finding("error", about, told, fix)


def about_tiers(found: Iterable[tuple[str, Finding]]) -> list[Finding]:
    """Joins equal findings of several tiers into one that names them all: one server may run several tiers."""
    tiers: dict[Finding, list[str]] = {}
    for name, one in found:
        tiers.setdefault(one, []).append(name)
    return [one._replace(about=f"tier {', '.join(names)}") for one, names in tiers.items()]
