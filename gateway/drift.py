"""Does traffic still look like what the calibration was fitted on?   Only reports; the policy is never changed.

Scores: after every WINDOW recorded decisions the distribution of their p is compared with that of the calibration's
records (two-sample chi-square test). Outcomes: after every JUDGED of them the number that count against Flash is
compared with what p predicted (a z-test that allows for how few outcomes the calibration had). On unchanged traffic one
or two tests in a thousand raise a false alarm if requests are independent (0.8 and 1.6 measured, 2026-11-22); a caller
who sends the same request again and again does look like a change.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from gateway.calibrate import GOOD, counted, example, told
from gateway.calibration import Basis, Layer, row
from gateway.policy import Policy
from gateway.recorded import Recorded
from gateway.telemetry import Gauge, Telemetry
from gateway.types import Decision

WINDOW = 500  # decisions
JUDGED = 100  # outcomes
MOST = 4  # calibrations that are watched, the newest
# Exceeded with probability 0.001 on unchanged traffic: chi-square by its degrees of freedom, and |z|.
CHI = (10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88)
Z = 3.29
log = logging.getLogger("gateway")


@dataclass(slots=True)
class Looked:
    """The tests of one thing: how many there were, what the last one measured, and whether it raised an alarm."""

    looks: int = 0
    last: float | None = None
    alarm: bool = False


@dataclass(slots=True)
class Watched:
    """What came under one calibration since the last test: decisions by band of p, and outcomes with their p; and the
    results of the tests. `name`: of the policy that brought it."""

    name: str
    basis: Basis
    layer: Layer
    counts: list[int]
    judged: list[tuple[float, float]] = field(default_factory=list)
    scores: Looked = field(default_factory=Looked)
    outcomes: Looked = field(default_factory=Looked)


class Drift:
    """Watches recorded decisions, by calibration: a candidate on trial may have another one than the policy in
    force."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._seen: dict[Basis, Watched] = {}

    def use(self, policy: Policy) -> None:
        """The gauge shows the alarms of this policy from here on, and those of its candidate."""
        shown = {"in_force": policy, "candidate": policy.candidate.policy if policy.candidate else None}
        told, series = "Processes that see other traffic than the policy was calibrated on.", [*product(ALARMS, shown)]

        def alarm(what: str, role: str) -> bool:
            return self._alarm(what, shown[role])

        self._telemetry.show(Gauge("gateway_drift", told, alarm, ["what", "policy"], series))

    def decided(self, decision: Decision, policy: Policy) -> None:
        """A decision was recorded."""
        facts = decision.facts
        if policy.basis is None or facts.score is None:
            return
        seen = self._of(policy)
        if seen is None or (seen.basis.asked and decision.verdict is None):
            return
        p_complex = decision.verdict.p_complex if decision.verdict else None
        p = seen.layer.p(row(facts.score, p_complex, facts.measures))
        seen.counts[bisect_right(seen.basis.edges, p)] += 1
        if sum(seen.counts) < WINDOW:
            return
        distance, chi = psi(seen.basis.counts, seen.counts), spread(seen.basis.counts, seen.counts)
        seen.counts = [0] * len(seen.counts)
        self._telemetry.meters.drift_psi.add(distance)
        limit = CHI[min(len(seen.counts) - 1, len(CHI)) - 1] if len(seen.counts) > 1 else math.inf
        self._look("scores", seen, distance, alarm=chi > limit)

    def judged(self, one: Recorded, policy: Policy) -> None:
        """A decision got its first outcome."""
        seen = self._of(policy)
        if seen is None or (seen.basis.asked and one.verdict is None):
            return
        found = example(one, GOOD if seen.basis.agree is None else seen.basis.agree)
        if found is None or found.retried or not comparable(found.agree, seen.basis):
            return
        hit = found.needed if seen.basis.label == "needed" else found.failed
        if hit is None:
            return
        seen.judged.append((seen.layer.p(told(found)), counted(seen.layer, found, hit)))
        if len(seen.judged) < JUDGED:
            return
        off, z = miscalibrated(seen.judged, seen.basis.outcomes)
        seen.judged = []
        self._look("outcomes", seen, off, alarm=abs(z) > Z)

    def told(self, policy: Policy) -> dict[str, Any] | None:
        """For /ready: of scores and outcomes the number of tests, what the last one measured (the PSI of p; the share
        of outcomes that counted against Flash less the share predicted), and whether it raised an alarm. None: the
        policy has no calibration that says what it was fitted on."""
        seen = self._of(policy)
        if seen is None:
            return None
        return {"scores": asdict(seen.scores), "outcomes": asdict(seen.outcomes)}

    def _of(self, policy: Policy) -> Watched | None:
        basis, layer = policy.basis, policy.calibration
        if basis is None or layer is None:
            return None
        seen = self._seen.get(basis)
        if seen is None:
            while len(self._seen) >= MOST:
                del self._seen[next(iter(self._seen))]
            seen = self._seen[basis] = Watched(policy.version, basis, layer, [0] * len(basis.counts))
        return seen

    def _alarm(self, what: str, policy: Policy | None) -> bool:
        seen = self._seen.get(policy.basis) if policy and policy.basis else None
        return bool(seen and getattr(seen, what).alarm)

    def _look(self, what: str, seen: Watched, measured: float, *, alarm: bool) -> None:
        """One line when an alarm begins, and one when it ends."""
        looked: Looked = getattr(seen, what)
        looked.looks, looked.last, before, looked.alarm = looked.looks + 1, round(measured, 4), looked.alarm, alarm
        if alarm and not before:
            log.warning(ALARMS[what], measured, seen.name)
        elif before and not alarm:
            log.warning("drift: %s look again like what the calibration of %s was fitted on", what, seen.name)


ALARMS = {
    "scores": (
        f"drift: p of the last {WINDOW} decisions is spread otherwise than when the calibration was fitted (PSI %.3f). "
        "Traffic or the classifier has changed: calibrate anew, on the records since. The policy stays as it is (%s)"
    ),
    "outcomes": (
        f"drift: of the last {JUDGED} outcomes more or fewer count against Flash than the calibration states (by %+.3f "
        "of them): calibrate anew, on the records since. The policy stays as it is (%s)"
    ),
}


def comparable(agree: float | None, basis: Basis) -> bool:
    """Whether the calibration was fitted on outcomes of this kind: judgements, or agreements."""
    return basis.judged if agree is None else basis.agree is not None


def spread(before: Sequence[int], now: Sequence[int]) -> float:
    """The two-sample chi-square statistic of binned counts, with one degree of freedom less than there are bins.
    `before` holds no 0."""
    ratio = math.sqrt(sum(now) / sum(before))
    return sum((ratio * b - n / ratio) ** 2 / (b + n) for b, n in zip(before, now, strict=True))


def psi(before: Sequence[int], now: Sequence[int]) -> float:
    """The population stability index; half a count is added to each."""
    both = zip(parts(before), parts(now), strict=True)
    return sum((n - b) * math.log(n / b) for b, n in both)


def parts(counts: Sequence[int]) -> list[float]:
    whole = sum(counts) + len(counts) / 2
    return [(count + 0.5) / whole for count in counts]


def miscalibrated(judged: Sequence[tuple[float, float]], outcomes: int) -> tuple[float, float]:
    """The share of outcomes that hit less the share that p predicted, and that difference in standard deviations. The
    prediction is itself uncertain: it was fitted on so many `outcomes`."""
    count = len(judged)
    off = sum(hit - p for p, hit in judged)
    deviation = math.sqrt(sum(p * (1 - p) for p, _ in judged) * (1 + count / max(outcomes, 1)))
    return off / count, off / max(deviation, 1e-9)
