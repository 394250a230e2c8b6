"""How good is a routing decision?   The measures of RouteLLM (arXiv 2406.18665, section 3), in plain Python.

A prompt's gain is the strong model's score less the weak one's. If prompts are sent upward, to the strong model, in the
order of the router's score, APGR is the area under the recovered part of the total gain over the share sent; random
routing has 0.5.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

DRAWS = 200  # bootstrap samples
Z = 1.959964  # the normal distribution's 97.5 % quantile
SEED = 20261122

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def area(pairs: Sequence[Pair]) -> float:
    """Area under the recovered gain (a mean over all prompts) over the share sent upward; `pairs`: (score, gain).

    Prompts of equal score count as in random order.
    """
    total = reached = 0.0
    for _, tied in groupby(sorted(pairs, key=lambda pair: -pair[0]), key=lambda pair: pair[0]):
        gains = [gain for _, gain in tied]
        total += len(gains) * (reached + sum(gains) / 2)
        reached += sum(gains)
    return total / len(pairs) ** 2


def skill(pairs: Sequence[Pair]) -> float:
    """`area` scaled so that random order has 0 and the order by gain 1; NaN when all gains are equal."""
    chance = sum(gain for _, gain in pairs) / len(pairs) / 2
    perfect = area([(gain, gain) for _, gain in pairs])
    return (area(pairs) - chance) / (perfect - chance) if perfect > chance else math.nan


def lift(pairs: Sequence[Pair]) -> float:
    """The part of the total gain that decisions (score 1: upward, 0: not) recover, less the share sent upward; random
    decisions have 0. NaN without a positive total."""
    whole = sum(gain for _, gain in pairs)
    sent = [gain for decision, gain in pairs if decision]
    return sum(sent) / whole - len(sent) / len(pairs) if whole > 0 else math.nan


def auroc(pairs: Sequence[Pair]) -> float:
    """The probability that a prompt labelled 1 scores above one labelled 0, a tie counting half; `pairs`: (score,
    label). NaN with one label only."""
    ranked = sorted(pairs)
    ranks, before = 0.0, 0
    for _, tied in groupby(ranked, key=lambda pair: pair[0]):
        labels = [label for _, label in tied]
        ranks += sum(labels) * (before + (len(labels) + 1) / 2)
        before += len(labels)
    ones = sum(label for _, label in ranked)
    others = len(ranked) - ones
    return (ranks - ones * (ones + 1) / 2) / (ones * others) if ones and others else math.nan


def auroc_interval(pairs: Sequence[Pair]) -> Estimate:
    """AUROC with Newcombe's 95 % interval (Statistics in Medicine 25, 2006, 559-573, method 5): all areas that are less
    than Z of their own standard deviations away. It has a width where the order is perfect, and holds for a rare label,
    of which resampling sees the same few again."""
    area, ones = auroc(pairs), sum(label for _, label in pairs)
    if math.isnan(area):
        return Estimate(area, area, area)
    cells, more = ones * (len(pairs) - ones), len(pairs) / 2 - 1

    def reached(end: float) -> float:
        near = area
        for _ in range(40):
            a = (near + end) / 2
            spread = a * (1 - a) * (1 + more * ((1 - a) / (2 - a) + a / (1 + a))) / cells
            near, end = (a, end) if (a - area) ** 2 <= Z * Z * spread else (near, a)
        return near

    return Estimate(area, reached(0.0), reached(1.0))


def bootstrap(pairs: Sequence[Pair], measure: Callable[[Sequence[Pair]], float]) -> Estimate:
    """The measure with its bootstrap interval over prompts."""
    return spread(measure(pairs), [measure(one) for one in _resampled(pairs)])


def mean_skill(sets: Sequence[Sequence[Pair]]) -> Estimate:
    """Mean skill over sets with equal weight; the bootstrap resamples prompts within each set."""
    drawn = [[skill(one) for one in _resampled(pairs)] for pairs in sets]
    means = [sum(values) / len(sets) for values in zip(*drawn, strict=True)]
    return spread(sum(map(skill, sets)) / len(sets), means)


def spread(value: float, drawn: Sequence[float]) -> Estimate:
    """A value with the 2.5 and 97.5 percentiles of its bootstrap samples; NaN samples are left out."""
    found = sorted(one for one in drawn if not math.isnan(one))
    if not found:
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, found[int(0.025 * len(found))], found[int(0.975 * (len(found) - 1))])


def _resampled(pairs: Sequence[Pair]) -> list[list[Pair]]:
    chance = random.Random(SEED)  # noqa: S311  (repeatable, not secret)
    return [chance.choices(pairs, k=len(pairs)) for _ in range(DRAWS)]


def wilson(successes: int, of: int) -> Estimate:
    """The rate `successes / of` with Wilson's 95 % interval; all NaN when `of` is 0."""
    if not of:
        return Estimate(math.nan, math.nan, math.nan)
    rate, weight = successes / of, Z * Z / of
    middle = (rate + weight / 2) / (1 + weight)
    reach = Z / (1 + weight) * math.sqrt(rate * (1 - rate) / of + weight / of / 4)
    return Estimate(rate, max(0.0, middle - reach), min(1.0, middle + reach))


def paired_difference(gained: int, lost: int, of: int) -> Estimate:
    """The second model's accuracy less the first's on the same `of` items, with Agresti and Min's 95 % interval
    (Statistics in Medicine 24, 2005, 729-740). gained, lost: items that only the second, only the first has right."""
    if not of:
        return Estimate(math.nan, math.nan, math.nan)
    b, c, n = gained + 0.5, lost + 0.5, of + 2
    middle, reach = (b - c) / n, Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Estimate((gained - lost) / of, max(-1.0, middle - reach), min(1.0, middle + reach))


def mcnemar(gained: int, lost: int) -> float:
    """The p-value of McNemar's exact two-sided test, from the items that only one of two models has right."""
    changed, ways, tail = gained + lost, 1, 0
    for k in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (changed - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << changed))


def per_unit(pairs: Sequence[Pair]) -> float:
    """The sum of the first values over the sum of the second; NaN when that is 0."""
    units = sum(unit for _, unit in pairs)
    return sum(value for value, _ in pairs) / units if units else math.nan


def percentile(values: Sequence[float], part: float) -> float:
    """The value at `part` (0 to 1) of the sorted ones, which must not be empty; no interpolation."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]
