"""What is a threshold worth on requests that it was not fitted on?"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gateway.estimate import wilson

BINS = 10
DRAWS = 400  # bootstrap samples
SEED = 20261122

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def brier(judged: Sequence[tuple[float, bool]]) -> float:
    """Mean squared distance of p from what happened; 0 is best."""
    return sum((p - hit) ** 2 for p, hit in judged) / len(judged)


def ece(judged: Sequence[tuple[float, bool]]) -> float:
    """Mean distance of stated from observed probability, over ten bins of equally many requests."""
    ranked = sorted(judged, key=lambda pair: pair[0])  # equal p keep their order, whatever happened
    edges = [round(len(ranked) * i / BINS) for i in range(BINS + 1)]
    parts = [ranked[a:b] for a, b in pairwise(edges) if b > a]
    return sum(abs(sum(p for p, _ in part) - sum(hit for _, hit in part)) for part in parts) / len(ranked)


def lift(judged: Sequence[Pair], threshold: float) -> float:
    """The part of Pro's gain that is caught at or above the threshold, less what chance would catch at that share.

    `judged` holds p and gain. NaN when Pro gains nothing over all.
    """
    whole = sum(gain for _, gain in judged)
    if whole <= 0:
        return math.nan
    above = [gain for p, gain in judged if p >= threshold]
    return sum(above) / whole - len(above) / len(judged)


def bootstrap(judged: Sequence[Pair], measure: Callable[[Sequence[Pair]], float]) -> Estimate:
    """The measure, and its 95 % interval over resampled requests."""
    chance = random.Random(SEED)  # noqa: S311  (resampling, seeded so that a report can be repeated)
    drawn = (measure(chance.choices(judged, k=len(judged))) for _ in range(DRAWS))
    found = sorted(value for value in drawn if not math.isnan(value))
    if not found:
        return Estimate(math.nan, -math.inf, math.inf)
    return Estimate(measure(judged), found[int(0.025 * len(found))], found[int(0.975 * (len(found) - 1))])


def share_interval(hits: int, of: int) -> Estimate:
    """A share with Wilson's 95 % interval."""
    return Estimate(hits / of, *wilson(hits / of, of))


def apart(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two samples differ in distribution (Kolmogorov and Smirnov, at 5 %)."""
    if not some or not others:
        return False
    here, there = sorted(some), sorted(others)
    below = ((bisect_right(here, at) / len(here), bisect_right(there, at) / len(there)) for at in (*here, *there))
    widest = max(abs(one - other) for one, other in below)
    return widest > 1.358 * math.sqrt(1 / len(here) + 1 / len(there))
