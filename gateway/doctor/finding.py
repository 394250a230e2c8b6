"""What did a look at the set-up come to?"""

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """`about` is what was looked at, `told` what was found, `fix` what to do about it; "": nothing is to be done."""

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
