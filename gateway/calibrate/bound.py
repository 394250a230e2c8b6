"""Up to which threshold does Flash's failure rate stay below a bound, with what confidence?

Fixed-sequence testing (Learn then Test, arXiv 2110.01052) with exact binomial tails: thresholds are tried from the one
that keeps the fewest requests on Flash, and the first that cannot be certified ends it. So the chance that the chosen
one breaks the bound is at most 1 - confidence, whatever the score is worth. It holds for requests drawn like those that
were judged, by a score that was fitted on others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

STRIDES = 20  # steps from the first threshold to the last, evenly spaced in requests kept
ALL = math.nextafter(1.0, 2.0)  # a threshold that no p reaches
SHARE_OF_BOUND = 0.5  # the sequence starts where a failure rate of half the bound would be certified


@dataclass(frozen=True, slots=True)
class Certified:
    """Below `threshold` (of p) stay `kept` of the judged requests, of which `failures` failed on Flash."""

    threshold: float
    kept: int
    failures: int


def tail(failures: int, trials: int, rate: float) -> float:
    """The probability of at most that many failures when each trial fails at that rate."""
    if rate >= 1:
        return float(failures >= trials)
    logs = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(rate) + (trials - k) * math.log1p(-rate)
        for k in range(failures + 1)
    )  # fmt: skip
    return min(sum(map(math.exp, logs)), 1.0)


def fewest(rate: float, confidence: float) -> int:
    """The fewest kept requests of which half the bounded rate may fail and the bound still be certified."""
    kept = 1
    while tail(math.floor(kept * rate * SHARE_OF_BOUND), kept, rate) > 1 - confidence:
        kept += 1
    return kept


def certify(judged: Sequence[tuple[float, bool]], rate: float, confidence: float) -> Certified | None:
    """The threshold that keeps most on Flash and is certified; `judged` holds p and whether Flash failed.

    None when not even the strictest is: too few requests, or too many failures among those with the lowest p.
    """
    ranked = sorted(judged)
    first = fewest(rate, confidence)
    found = None
    for step in range(STRIDES + 1 if first <= len(ranked) else 0):
        kept = first + (len(ranked) - first) * step // STRIDES
        threshold = ranked[kept][0] if kept < len(ranked) else ALL
        below = [failed for p, failed in ranked if p < threshold]
        if not below or tail(sum(below), len(below), rate) > 1 - confidence:
            break
        found = Certified(threshold, len(below), sum(below))
    return found
