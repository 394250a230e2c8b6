"""How good is a routing decision?   The measures of RouteLLM (arXiv 2406.18665, section 3), in plain Python.

gain: the strong model's score less the weak one's, per prompt. With prompts sent upward from the highest score down,
APGR is the area under the recovered part of the whole gain over the share sent; chance has 0.5.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

DRAWS = 200
SEED = 20261122

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def area(pairs: Sequence[Pair]) -> float:
    """Area under the mean gain reached over the share sent upward; `pairs` holds score and gain.

    Equal scores count as a random order among themselves.
    """
    total = reached = 0.0
    for _, tied in groupby(sorted(pairs, key=lambda pair: -pair[0]), key=lambda pair: pair[0]):
        gains = [gain for _, gain in tied]
        total += len(gains) * (reached + sum(gains) / 2)
        reached += sum(gains)
    return total / len(pairs) ** 2


def skill(pairs: Sequence[Pair]) -> float:
    """0 for chance, 1 for knowing each prompt's gain. NaN when no order is better than another."""
    chance = sum(gain for _, gain in pairs) / len(pairs) / 2
    perfect = area([(gain, gain) for _, gain in pairs])
    return (area(pairs) - chance) / (perfect - chance) if perfect > chance else math.nan


def lift(pairs: Sequence[Pair]) -> float:
    """The part of the gain that decisions (score 1: upward, 0: not) recover, less their share; chance has 0."""
    whole = sum(gain for _, gain in pairs)
    sent = [gain for decision, gain in pairs if decision]
    return sum(sent) / whole - len(sent) / len(pairs) if whole > 0 else math.nan


def auroc(pairs: Sequence[Pair]) -> float:
    """The probability that a prompt labelled 1 scores above one labelled 0. NaN with one label only."""
    ranked = sorted(pairs)
    ranks, before = 0.0, 0
    for _, tied in groupby(ranked, key=lambda pair: pair[0]):
        labels = [label for _, label in tied]
        ranks += sum(labels) * (before + (len(labels) + 1) / 2)
        before += len(labels)
    ones = sum(label for _, label in ranked)
    others = len(ranked) - ones
    return (ranks - ones * (ones + 1) / 2) / (ones * others) if ones and others else math.nan


def bootstrap(pairs: Sequence[Pair], measure: Callable[[Sequence[Pair]], float]) -> Estimate:
    """The measure with its interval over resampled prompts."""
    return spread(measure(pairs), [measure(one) for one in _resampled(pairs)])


def mean_skill(sets: Sequence[Sequence[Pair]]) -> Estimate:
    """Mean skill over sets, each counted alike, with its interval over prompts resampled within the sets."""
    drawn = [[skill(one) for one in _resampled(pairs)] for pairs in sets]
    means = [sum(values) / len(sets) for values in zip(*drawn, strict=True)]
    return spread(sum(map(skill, sets)) / len(sets), means)


def spread(value: float, drawn: Sequence[float]) -> Estimate:
    """A value with the middle 95 % of its draws."""
    found = sorted(one for one in drawn if not math.isnan(one))
    if not found:
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, found[int(0.025 * len(found))], found[int(0.975 * (len(found) - 1))])


def _resampled(pairs: Sequence[Pair]) -> list[list[Pair]]:
    chance = random.Random(SEED)  # noqa: S311  (repeatable, not secret)
    return [chance.choices(pairs, k=len(pairs)) for _ in range(DRAWS)]


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]
