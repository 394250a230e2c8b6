"""Up to which threshold is Flash's failure rate below a bound, with a given confidence?

Fixed-sequence testing (Learn then Test, arXiv 2110.01052) with exact binomial tails: thresholds are tested from the one
that keeps the fewest requests on Flash, until one cannot be certified. So the probability that the chosen one breaks
the bound is at most 1 - confidence, however good or bad p is. It holds for requests from the same distribution as the
judged ones, and if p was fitted on others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

STRIDES = 20  # steps from the first threshold to the last, evenly spaced in requests kept
ALL = math.nextafter(1.0, 2.0)  # a threshold that no p reaches
SHARE_OF_BOUND = 0.5  # the sequence starts where a failure rate of half the bound would be certified


@dataclass(frozen=True, slots=True)
class Certified:
    """`kept`: the judged requests with p below `threshold`; `failures`: those of them that failed on Flash."""

    threshold: float
    kept: int
    failures: int


def tail(failures: int, trials: int, rate: float) -> float:
    """The binomial distribution function: the probability of at most `failures` in `trials` at that failure rate, which
    is above 0 and below 1."""
    logs = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(rate) + (trials - k) * math.log1p(-rate)
        for k in range(failures + 1)
    )  # fmt: skip
    return min(sum(map(math.exp, logs)), 1.0)


def fewest(rate: float, confidence: float) -> int:
    """The fewest kept requests that certify the bound if they fail at half its rate."""
    kept = 1
    while tail(math.floor(kept * rate * SHARE_OF_BOUND), kept, rate) > 1 - confidence:
        kept += 1
    return kept


def certify(judged: Sequence[tuple[float, bool]], rate: float, confidence: float) -> Certified | None:
    """The largest threshold that is certified; `judged`: (p, whether Flash failed).

    None when not even the first is: too few requests, or too many failures among those with the lowest p.
    """
    ranked = sorted(judged)
    first = fewest(rate, confidence)
    found = None
    for step in range(STRIDES + 1):
        kept = first + (len(ranked) - first) * step // STRIDES
        threshold = ranked[kept][0] if kept < len(ranked) else ALL
        below = [failed for p, failed in ranked if p < threshold]
        if len(below) < first:  # equal p are kept together, or not at all
            continue
        if tail(sum(below), len(below), rate) > 1 - confidence:
            break
        found = Certified(threshold, len(below), sum(below))
    return found
