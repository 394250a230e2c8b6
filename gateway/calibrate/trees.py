"""What came of requests that look alike?   Extremely randomized trees (Geurts, Ernst and Wehenkel, 2006).

Cuts are drawn by chance and the best of several is taken, so one tree says little and the mean of many is smooth: where
a logistic layer knows a direction for each measure, they know kinds of requests.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from gateway.calibration import Branch, Node

TREES = 20  # more say the same (LOG.md, 2026-11-22)
LEAVES = 15  # of a tree, at most: each has at least its part of the outcomes
TRIED = 0.5  # part of the inputs that a cut is drawn for, at each branch
SEED = 20261122


class Sample(NamedTuple):
    """The inputs' values, what came of the request (0 to 1), and for how many it stands."""

    row: Sequence[float]
    hit: float
    weight: float


def grown(outcomes: Sequence[Sample], names: Sequence[str]) -> tuple[Node, ...]:
    """Trees over the inputs that `names` name, in a row's order; none without an input or with few outcomes."""
    if not names or len(outcomes) < 2 * LEAVES:
        return ()
    chance, least = random.Random(SEED), len(outcomes) / LEAVES  # noqa: S311  (repeatable, not secret)
    return tuple(_grow(outcomes, names, least, chance) for _ in range(TREES))


def _grow(outcomes: Sequence[Sample], names: Sequence[str], least: float, chance: random.Random) -> Node:
    """A leaf is the rate of its outcomes."""
    whole, hits = _sums(outcomes)
    best, halves = 0.0, None
    for at in chance.sample(range(len(names)), math.ceil(TRIED * len(names))) if 0 < hits < whole else ():
        column = [one.row[at] for one in outcomes]
        cut = chance.uniform(min(column), max(column))
        above = [one for one, value in zip(outcomes, column, strict=True) if value >= cut]
        if not least <= len(above) <= len(outcomes) - least:
            continue
        part, caught = _sums(above)
        apart = (caught * whole - hits * part) ** 2 / (part * (whole - part))
        if apart > best:
            best, halves = apart, (at, cut, above)
    if halves is None:
        return hits / whole
    at, cut, above = halves
    below = [one for one in outcomes if one.row[at] < cut]
    return Branch(names[at], cut, _grow(below, names, least, chance), _grow(above, names, least, chance))


def _sums(outcomes: Sequence[Sample]) -> tuple[float, float]:
    """For how many requests they stand, and for how many that hit."""
    return math.fsum([weight for _, _, weight in outcomes]), math.fsum([hit * weight for _, hit, weight in outcomes])
