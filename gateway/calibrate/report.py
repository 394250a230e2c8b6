"""What is a threshold worth on requests that it was not fitted on?"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from gateway.estimate import effective, wilson

BINS = 10
DRAWS = 400  # bootstrap samples
SEED = 20261122
ROUNDING = 1e-9  # of sums of weights


class Judged(NamedTuple):
    """A request with its outcome: p, what happened (1 or 0) or was gained, and for how many requests it stands."""

    p: float
    value: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def mean(judged: Sequence[Judged]) -> float:
    """The mean value."""
    return sum(one.weight * one.value for one in judged) / sum(one.weight for one in judged)


def brier(judged: Sequence[Judged]) -> float:
    """Mean squared distance of p from what happened; 0 is best."""
    return mean([Judged(one.p, (one.p - one.value) ** 2, one.weight) for one in judged])


def ece(judged: Sequence[Judged]) -> float:
    """Mean distance of stated from observed probability, over ten bins of equally many requests."""
    ranked = sorted(judged, key=lambda one: one.p)  # equal p keep their order, whatever happened
    total, before, off = sum(one.weight for one in judged), 0.0, [0.0] * BINS
    for one in ranked:
        off[min(int(BINS * before / total + ROUNDING), BINS - 1)] += one.weight * (one.p - one.value)
        before += one.weight
    return sum(map(abs, off)) / total


def lift(judged: Sequence[Judged], threshold: float) -> float:
    """The part of Pro's gain, here the values, that is caught at or above the threshold, less what chance would catch
    at that share. NaN when Pro gains nothing over all.
    """
    whole = total = caught = share = 0.0
    for p, value, weight in judged:  # once: a report asks this of 400 samples
        whole += weight * value
        total += weight
        if p >= threshold:
            caught += weight * value
            share += weight
    return caught / whole - share / total if whole > 0 else math.nan


def bootstrap(judged: Sequence[Judged], measure: Callable[[Sequence[Judged]], float]) -> Estimate:
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


def rate_interval(judged: Sequence[Judged]) -> Estimate:
    """The mean of what happened or not, with Wilson's interval for as many requests as the weights leave."""
    rate = mean(judged)
    return Estimate(rate, *wilson(rate, round(effective([one.weight for one in judged]))))


def thinned(judged: Sequence[Judged]) -> list[Judged]:
    """A sample in which each stands for itself: by chance each stays as often as its weight says. All of equal ones."""
    chance, most = random.Random(SEED), max((one.weight for one in judged), default=1.0)  # noqa: S311  (as above)
    return [Judged(one.p, one.value) for one in judged if chance.random() * most < one.weight]


def apart(some: Sequence[Judged], others: Sequence[float]) -> bool:
    """Whether p differs in distribution between some requests and others (Kolmogorov and Smirnov, at 5 %)."""
    if not some or not others:
        return False
    here, there = sorted(one.p for one in some), sorted(others)
    weights = list(accumulate((one.weight for one in sorted(some)), initial=0.0))
    below = (
        (weights[bisect_right(here, at)] / weights[-1], bisect_right(there, at) / len(there)) for at in (*here, *there)
    )
    widest = max(abs(one - other) for one, other in below)
    return widest > 1.358 * math.sqrt(1 / effective([one.weight for one in some]) + 1 / len(there))
