"""Up to which threshold is Flash's failure rate below a bound, with a given confidence?

Fixed-sequence testing (Learn then Test, arXiv 2110.01052) with exact binomial tails: from the threshold that is most
likely to be certified if p is right, towards those that keep more requests on Flash, until one cannot be certified. p
was fitted on other requests, and outcomes have no part in the order, so the probability that the chosen threshold
breaks the bound is at most 1 - confidence, however good or bad p is. It holds for requests from the same distribution
as the judged ones, each independent of the others.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

from gateway.calibrate.report import SEED, Judged

STEPS = 50  # thresholds, evenly spaced in requests kept
ALL = math.nextafter(1.0, 2.0)  # a threshold that no p reaches
SURE = 1e-9  # what p says of a rate keeps this far from 0 and 1


@dataclass(frozen=True, slots=True)
class Tested:
    """A threshold to be tested: of the `kept` judged requests with p below it so many failed on Flash, and at most so
    many may (-1: too few are kept to certify anything). `expected`: the rate of failures by p."""

    threshold: float
    kept: int
    failures: int
    most: int
    expected: float

    @property
    def likely(self) -> float:
        """How likely the threshold is to be certified, if p is right."""
        return tail(self.most, self.kept, min(max(self.expected, SURE), 1 - SURE))


def certify(judged: Sequence[Judged], rate: float, confidence: float) -> Tested | None:
    """The step of the largest threshold that is certified; None when not even the first is. A value of 1 is a
    failure."""
    certified = list(takewhile(lambda step: step.failures <= step.most, steps(judged, rate, confidence)))
    return certified[-1] if certified else None


def steps(judged: Sequence[Judged], rate: float, confidence: float) -> list[Tested]:
    """What is tested, in this order; of equally likely beginnings the one that keeps most."""
    ranked = sorted(one.p for one in judged)
    ends = (len(ranked) * at // STEPS for at in range(1, STEPS + 1))
    edges = dict.fromkeys(ranked[end] if end < len(ranked) else ALL for end in ends)
    found = [
        Tested(edge, len(kept), int(sum(one.value for one in kept)), allowed(len(kept), rate, confidence), mean_p(kept))
        for edge, kept in zip(edges, thinned(judged, list(edges)), strict=True)
    ]
    first = max(range(len(found)), key=lambda at: (found[at].likely, at), default=0)
    return found[first:]


def thinned(judged: Sequence[Judged], edges: Sequence[float]) -> Iterator[list[Judged]]:
    """For each edge an unweighted sample of the requests with p below it: each is kept with a probability proportional
    to its weight (rejection sampling); all of them when weights are equal."""
    chance = random.Random(SEED)  # noqa: S311  (repeatable, not secret)
    drawn = [(one, chance.random()) for one in judged]
    for edge in edges:
        below = [(one, at) for one, at in drawn if one.p < edge]
        most = max((one.weight for one, _ in below), default=1.0)
        yield [one for one, at in below if at * most < one.weight]


def mean_p(judged: Sequence[Judged]) -> float:
    return sum(one.p for one in judged) / (len(judged) or 1)


def allowed(trials: int, rate: float, confidence: float) -> int:
    """The most failures in `trials` that certify the bound; -1: not even none does."""
    below = accumulate(chances(trials, trials, rate))
    return sum(1 for _ in takewhile(lambda reached: reached <= 1 - confidence, below)) - 1


def tail(failures: int, trials: int, rate: float) -> float:
    """The binomial distribution function: the probability of at most `failures` in `trials` at that failure rate, which
    is above 0 and below 1."""
    return min(sum(chances(failures, trials, rate)), 1.0)


def chances(failures: int, trials: int, rate: float) -> Iterator[float]:
    """The probabilities of 0, 1, ... `failures` in `trials`."""
    logarithm, odds = trials * math.log1p(-rate), math.log(rate) - math.log1p(-rate)
    for k in range(failures + 1):
        if k:
            logarithm += math.log((trials - k + 1) / k) + odds
        yield math.exp(logarithm)


def least(rate: float, confidence: float) -> int:
    """The fewest requests that certify the bound, where none of them fails."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-rate))
