"""Can a regular expression run on a caller's text without taking too long?"""

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any, NamedTuple

# The only way to see a pattern's structure; type checkers disagree whether these modules are there.
names: Any = import_module("re._constants")
parser: Any = import_module("re._parser")

# Paths that backtracking may try from each of 20,000 characters; 1,000 take at most about 0.1 s. `select\b.+\bfrom` has
# no bound: one caller's 20,000 characters held the process for 0.5 s (CPython 3.11, 2026-11-22).
MAX_PATHS = 1_000
# Steps on all of these paths: a turn of a character's repeat is one, of another repeat TURN. The one path of
# `(?:){1000000000}x` has no end; 10,000 steps take 1 s at most, 2 where a turn takes nothing of the text (2026-11-24).
MAX_STEPS = 10_000
TURN = 10
REPEATS = (names.MAX_REPEAT, names.MIN_REPEAT, names.POSSESSIVE_REPEAT)


class Work(NamedTuple):
    """An estimate of what it takes to go through a pattern from one place: paths, and the steps on all of them."""

    paths: int = 1
    steps: int = 0

    @property
    def fits(self) -> bool:
        return self.paths <= MAX_PATHS and self.steps <= MAX_STEPS


ONE = Work()


def regex_problem(pattern: str) -> str | None:
    """Why `pattern` cannot be a signal: it does not compile, it can take too long, or it matches every text."""
    try:
        compiled = re.compile(pattern)
        fits = work(parser.parse(pattern)).fits
    except (re.error, OverflowError, RecursionError) as error:
        return f"bad regular expression: {error}"
    if not fits:
        return "can take too long on a caller's text: give repeats a bound, as in .{1,200} for .+"
    return "matches every text: a signal must look for something" if compiled.search("") else None


def work(parsed: Iterable[tuple[object, Any]], repeated: bool = False) -> Work:
    """The pattern's work; stops counting where it does not fit.

    Of the sides of a choice mostly one fits, but inside a repeat (`repeated`) each turn may take any of them.
    """
    found = ONE
    for name, argument in parsed:
        repeats = name in REPEATS
        inner = [work(part, repeated or repeats) for part in parts(argument)] or [ONE]
        paths = [one.paths for one in inner]
        one = Work(sum(paths) if repeated else max(paths), sum(one.steps for one in inner))
        one = repeat(argument, inner[0]) if repeats else one
        found = Work(found.paths * one.paths, found.steps + found.paths * one.steps)
        if not found.fits:
            break
    return found


def repeat(argument: Any, turn: Work) -> Work:
    """The work of a repeat: how often, times what each turn may choose. Neither number grows far beyond what fits."""
    body, least, most = argument[2], int(argument[0]), int(argument[1])
    character = len(body) == 1 and body.getwidth() == (1, 1) and not parts(body[0][1])
    choices, counted = turn.paths, min(most, 10)
    turns = most if choices == 1 else (choices**counted - 1) // (choices - 1)
    paths, steps = (most - least + 1) * choices**counted, turns * (turn.steps + (1 if character else TURN))
    return Work(min(paths, MAX_PATHS + 1), min(steps, MAX_STEPS + 1))


def parts(argument: object) -> list[Any]:
    """The patterns inside a group, a look-around or a choice."""
    if isinstance(argument, parser.SubPattern):
        return [argument]
    if isinstance(argument, tuple | list):
        return [part for item in argument for part in parts(item)]
    return []
