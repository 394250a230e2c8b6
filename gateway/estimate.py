"""How good would other choices have been, judging by those that chance made?   Off-policy evaluation; pure.

Each outcome has a weight: the probability that the judged policy chooses what was chosen, over the probability that it
had when it was chosen (the propensity). The weighted mean is unbiased if every choice of the judged policy had a
chance. Values lie between 0 and 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

LEAST = 30.0  # effective outcomes below which nothing is claimed
RESAMPLES = 500
BLOCKS = 100  # outcomes are resampled in so many runs: in bounded time, and turns of one conversation stay together
Z = 1.959964  # of 95 %

Weighed = tuple[float, float]  # weight, value


@dataclass(frozen=True, slots=True)
class Estimate:
    """A self-normalised mean (SNIPS) with its bootstrapped 95 % interval. `plain` is not normalised (IPS). `effective`:
    the effective sample size of these `outcomes`."""

    value: float
    low: float
    high: float
    plain: float
    effective: float
    outcomes: int


class Unknown(Exception):
    """The outcomes do not say enough; the message says why."""


def estimate(outcomes: Sequence[Weighed], unsupported: float = 0.0, promised: float = math.inf) -> Estimate:
    """The mean value. `unsupported`: the part of the choices that could not have been made when these were.
    `promised`: how many effective outcomes the propensities let expect. There seem to be more where the rare choices,
    which weigh most, have not come yet.

    The same outcomes give the same interval. Raises Unknown when choices lack support or too few outcomes count.
    """
    if not outcomes:
        raise Unknown("no outcome is known")
    if unsupported > 0:
        raise Unknown(f"{unsupported:.1%} of its choices had no chance when these were made: no outcome tells of them")
    total = sum(weight for weight, _ in outcomes)
    worth = min(effective([weight for weight, _ in outcomes]), promised)
    if worth < LEAST:
        raise Unknown(f"{worth:.0f} effective outcomes of {len(outcomes)}, at least {LEAST:.0f} are needed")
    valued = sum(weight * value for weight, value in outcomes)
    value, (low, high) = valued / total, interval(outcomes)
    return Estimate(value, min(low, value), max(high, value), valued / len(outcomes), worth, len(outcomes))


def effective(weights: Sequence[float]) -> float:
    """The effective sample size of weighted outcomes (Kish)."""
    total, squares = sum(weights), sum(weight * weight for weight in weights)
    return total * total / squares if squares else 0.0


def interval(outcomes: Sequence[Weighed]) -> tuple[float, float]:
    """The percentile bootstrap's 95 % of the self-normalised mean; `outcomes` in the order of time.

    One bad and one good outcome more, of mean effective weight, stand for what has not been seen: of outcomes that are
    all alike the interval would have no width."""
    unit = sum(weight * weight for weight, _ in outcomes) / sum(weight for weight, _ in outcomes)
    outcomes = [*outcomes, (unit, 0.0), (unit, 1.0)]
    blocks = [(0.0, 0.0)] * min(BLOCKS, len(outcomes))
    for at, (weight, value) in enumerate(outcomes):
        run = at * len(blocks) // len(outcomes)
        total, valued = blocks[run]
        blocks[run] = (total + weight, valued + weight * value)
    chance = Random(0)  # noqa: S311  (the same interval each time)
    means = sorted(_mean(chance.choices(blocks, k=len(blocks))) for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]


def _mean(blocks: Sequence[Weighed]) -> float:
    total = sum(weight for weight, _ in blocks)
    return sum(valued for _, valued in blocks) / total if total else 0.0


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` requests."""
    if not count:
        return 0.0, 1.0
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    spread = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return max(0.0, middle - spread), min(1.0, middle + spread)
