"""How good are p and its threshold on held-out requests?"""

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from gateway.off_policy import FEWEST, TURNS, Interval, Weighed, effective, rate, runs

BINS = 10
DRAWS = 400  # bootstrap samples
SEED = 20261122
ROUNDING = 1e-9  # of sums of weights
FAR = 0.08  # part of the requests: of a smaller one others may tell (LOG.md, 2026-11-23)
KIND = 10  # inputs that more than one request in so many have are a kind of requests, not one that was sent again

Sums = Sequence[float]


class Judged(NamedTuple):
    """A request with its predicted probability p, the outcome (1 or 0) or gain, and its importance weight. Those of one
    `name` are alike."""

    p: float
    value: float
    weight: float = 1.0
    name: str | None = None


def mean(judged: Sequence[Judged]) -> float:
    """The weighted mean of the values."""
    return sum(one.weight * one.value for one in judged) / sum(one.weight for one in judged)


def brier(judged: Sequence[Judged]) -> float:
    """Brier score: the weighted mean squared difference of p and outcome; 0 is best."""
    return mean([Judged(one.p, (one.p - one.value) ** 2, one.weight) for one in judged])


def ece(judged: Sequence[Judged]) -> float:
    """Expected calibration error: mean |p - observed rate| over ten bins of equal weight."""
    ranked = sorted(judged, key=lambda one: one.p)  # by p alone: outcomes must not order ties
    total, before, off = sum(one.weight for one in judged), 0.0, [0.0] * BINS
    for one in ranked:
        off[min(int(BINS * before / total + ROUNDING), BINS - 1)] += one.weight * (one.p - one.value)
        before += one.weight
    return sum(map(abs, off)) / total


def gained(one: Judged, threshold: float) -> Sums:
    """What a request adds to the gain, to the requests, and to each of the two at or above the threshold."""
    gain, above = one.weight * one.value, one.p >= threshold
    return gain, one.weight, gain * above, one.weight * above


def over_chance(whole: float, total: float, caught: float, share: float) -> float:
    """The lift, by sums of what requests `gained`: the part of Pro's gain that was caught, less the part of the
    requests, which random routing would get. NaN where Pro gains nothing."""
    return caught / whole - share / total if whole > 0 else math.nan


def added(parts: Iterable[Sums]) -> list[float]:
    return list(map(sum, zip(*parts, strict=True)))


def bootstrap(judged: Sequence[Judged], part: Callable[[Judged], Sums], measure: Callable[..., float]) -> Interval:
    """A measure of the requests with its 95 % interval, by a block bootstrap: requests that are alike (`grouped`) are
    drawn together. `part`: what a request adds to each of the sums that `measure` takes."""
    chance = random.Random(SEED)  # noqa: S311  (resampling, seeded so that a report can be repeated)
    groups = [added(map(part, group)) for group in grouped(judged)]
    drawn = (measure(*added(chance.choices(groups, k=len(groups)))) for _ in range(DRAWS))
    found = sorted(value for value in drawn if not math.isnan(value))
    if not found:
        return Interval(math.nan, -math.inf, math.inf)
    low, high = found[int(0.025 * len(found))], found[int(0.975 * (len(found) - 1))]
    return Interval(measure(*added(groups)), low, high)


def grouped(judged: Sequence[Judged]) -> list[list[Judged]]:
    """The requests in groups of such as are alike: neighbours, those of one name (turns of a conversation), and those
    of equal p, which mostly are one request that was sent again and again."""
    counts, size = Counter(one.p for one in judged), len(judged)
    names = [one.p if 1 < counts[one.p] <= size / KIND else one.name for one in judged]
    groups: dict[int, list[Judged]] = {}
    for run, one in zip(runs(names, min(size, max(FEWEST, size // TURNS))), judged, strict=True):
        groups.setdefault(run, []).append(one)
    return list(groups.values())


def lift_interval(judged: Sequence[Judged], threshold: float) -> Interval:
    """The lift of sending requests with p at or above the threshold to Pro, whose gains are the values, with its 95 %
    bootstrap interval. Its upper end is that with one gain more above the threshold, of mean effective weight: where
    gains are few, resampling knows only of those that came."""

    def part(one: Judged) -> Sums:
        return gained(one, threshold)

    unit = sum(one.weight**2 for one in judged) / sum(one.weight for one in judged)
    more = Judged(math.inf, 1.0, unit)
    return replace(bootstrap(judged, part, over_chance), high=bootstrap([*judged, more], part, over_chance).high)


def rate_interval(judged: Sequence[Judged]) -> Interval:
    """The weighted rate of outcomes with its 95 % interval, in which those of one name are alike."""
    return rate([Weighed(one.weight, one.value, 0.0, one.name) for one in judged])


def share_interval(judged: Sequence[Judged], low: float, high: float) -> Interval:
    """The share of requests with p from `low` to below `high`, with its 95 % interval."""
    return rate_interval([one._replace(value=float(low <= one.p < high)) for one in judged])


def one_of_each(judged: Sequence[Judged]) -> list[Judged]:
    """Of those of one name one, by chance."""
    chance = random.Random(SEED)  # noqa: S311  (as above)
    groups: dict[str | None, list[Judged]] = {}
    for one in judged:
        groups.setdefault(one.name, []).append(one)
    return [chance.choice(group) for group in groups.values()]


def apart(some: Sequence[Judged], others: Sequence[float], beyond: float = 1.358) -> bool:
    """Whether p of some requests, weighted, is spread otherwise than p of others or of all: by more than FAR, and than
    chance would have it (Kolmogorov-Smirnov test; `beyond`: its bound, at 5 %)."""
    if not some or not others:
        return False
    here, there = sorted(one.p for one in some), sorted(others)
    weights = list(accumulate((one.weight for one in sorted(some)), initial=0.0))
    below = (
        (weights[bisect_right(here, at)] / weights[-1], bisect_right(there, at) / len(there)) for at in (*here, *there)
    )
    by_chance = beyond * math.sqrt(1 / effective([one.weight for one in some]) + 1 / len(there))
    return max(abs(one - other) for one, other in below) > max(FAR, by_chance)
