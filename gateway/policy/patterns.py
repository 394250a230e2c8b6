"""Can a regular expression run on a caller's text without taking too long?"""

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

# The only way to see a pattern's structure; type checkers disagree whether these modules are there.
names: Any = import_module("re._constants")
parser: Any = import_module("re._parser")

# Paths that backtracking may try from each of 20,000 characters; 1,000 take at most about 0.1 s. `select\b.+\bfrom` has
# no bound: one caller's 20,000 characters held the process for 0.5 s (CPython 3.11, 2026-11-22).
MAX_PATHS = 1_000
REPEATS = (names.MAX_REPEAT, names.MIN_REPEAT, names.POSSESSIVE_REPEAT)


def regex_problem(pattern: str) -> str | None:
    """Why `pattern` cannot be a signal: it does not compile, it matches every text, or it can take too long."""
    try:
        compiled = re.compile(pattern)
        parsed = parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"bad regular expression: {error}"
    if compiled.search(""):
        return "matches every text: a signal must look for something"
    if paths(parsed) > MAX_PATHS:
        return "can take too long on a caller's text: give repeats a bound, as in .{1,200} for .+"
    return None


def paths(parsed: Iterable[tuple[object, Any]], repeated: bool = False) -> int:
    """An estimate of the ways to go through a pattern from one place; stops counting above MAX_PATHS.

    Of the sides of a choice mostly one fits, but inside a repeat (`repeated`) each turn may take any of them.
    """
    found = 1
    for name, argument in parsed:
        inner = [paths(part, repeated) for part in parts(argument)] or [1]
        together = sum(inner) if repeated else max(inner)
        found *= repeat(*argument) if name in REPEATS else together
        if found > MAX_PATHS:
            break
    return found


def repeat(least: int, most: int, body: Iterable[tuple[object, Any]]) -> int:
    """The ways to go through a repeat: how often, times what each turn may choose."""
    choices: int = paths(body, repeated=True) ** min(int(most), 10)
    return (int(most) - int(least) + 1) * choices


def parts(argument: object) -> list[Any]:
    """The patterns inside a group, a look-around or a choice."""
    if isinstance(argument, parser.SubPattern):
        return [argument]
    if isinstance(argument, tuple | list):
        return [part for item in argument for part in parts(item)]
    return []
