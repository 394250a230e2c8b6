"""Which layer and which thresholds follow from recorded outcomes, and what are they worth on others?"""

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

from gateway.calibrate.bound import Certified, certify, fewest
from gateway.calibrate.logistic import fit, loss
from gateway.calibrate.outcomes import Example, told
from gateway.calibrate.report import (
    Estimate,
    Judged,
    apart,
    bootstrap,
    brier,
    ece,
    lift,
    mean,
    rate_interval,
    share_interval,
    thinned,
)
from gateway.calibrate.target import Target
from gateway.calibration import BELIEVED, Basis, Layer, Row
from gateway.estimate import effective

PARTS = 10  # of equally many records, by p: what later traffic is compared with
LEAST = 100  # records, and records with an outcome
LEAST_OF_EACH = 10  # outcomes of either kind
PENALTIES = (None, 100.0, 30.0)  # on the measures; None leaves them out
FOLDS = 5
ENOUGH = 1000  # outcomes that the choice of a penalty looks at
COMMON = 0.95  # an input counts when this part of the records has it
CLOSE = 0.03  # a realised share further from its target is worth a caveat
SEED = 20261122

Split = Literal["time", "caller", "id"]
Label = Callable[[Example], bool | None]


class Unproven(Exception):
    """The records do not show what was asked for; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """`edges` part p into bands, the simplest first: one edge for two tiers.

    p is the probability that Pro is needed; for a bound on failures, that Flash fails. `report` is on records that
    nothing was fitted on. `proven`: the bound is certified; for shares, that they buy more than chance would.
    """

    target: Target
    layer: Layer
    edges: tuple[float, ...]
    basis: Basis
    report: Mapping[str, Any]
    caveats: tuple[str, ...]
    proven: bool

    def band(self, row: Row) -> int:
        """Which band a request falls into: 0 is the simplest."""
        p = self.layer.p(row)
        return sum(p >= edge for edge in self.edges)


def calibrate(records: Sequence[Example], target: Target, split: Split = "id") -> Calibration:
    """Fits on one half of the records and judges on the other.

    split: "time" fits on the older half; "caller" keeps each caller's requests together; "id" parts by chance.
    Raises Unproven with too few records, and when a bound cannot be certified. Shares need no outcomes: their edges
    then follow the score alone, and the calibration is not `proven`.
    """
    if len(records) < LEAST:
        raise Unproven(f"{len(records)} records; at least {LEAST} are needed")
    fitted, judged = parted(records, split)
    label: Label = needed if target.kind == "shares" else failed
    few = few_outcomes(fitted, label) or few_outcomes(judged, label)
    alike = alike_outcomes(fitted, label) or alike_outcomes(judged, label)
    if few and target.kind == "flash_failure":
        raise Unproven(few)
    layer = layer_for(fitted, label, measures=not (few or alike))
    outcomes = [(layer.p(told(one)), one) for one in judged if label(one) is not None]
    hits = [Judged(p, float(bool(label(one))), one.weight) for p, one in outcomes]
    edges: tuple[float, ...]
    report: dict[str, Any] = {}
    if target.kind == "flash_failure":
        bound = _certified([(one.p, bool(one.value)) for one in thinned(hits)], target)
        edges = (bound.threshold,)
        report["bound"] = {"kept": bound.kept, "failures": bound.failures}
    else:
        edges = thresholds([layer.p(told(one)) for one in fitted], target.shares)
    report |= {"judged": len(judged), "shares": _shares([layer.p(told(one)) for one in judged], edges)}
    report |= {} if few else _worth(hits, outcomes, edges)
    caveats = [*_caveats(records, report, target, layer), *(lack for lack in (few, alike) if lack)]
    shown = target.kind == "flash_failure" or gains(report)
    basis = basis_of([layer.p(told(one)) for one in records], fitted, target, label)
    return Calibration(target, layer, edges, basis, report, tuple(caveats), shown)


def basis_of(p: Sequence[float], fitted: Sequence[Example], target: Target, label: Label) -> Basis:
    """`p` is that of all records, of which `fitted` were fitted on."""
    ranked = sorted(p)
    cuts = {ranked[len(ranked) * at // PARTS] for at in range(1, PARTS)} - {ranked[0]}
    ends = [0, *(bisect_left(ranked, cut) for cut in sorted(cuts)), len(ranked)]
    known = [one for one in fitted if label(one) is not None]
    agree = max((one.agree for one in known if one.agree is not None), default=None)
    judged, worth = any(one.agree is None for one in known), round(effective([one.weight for one in known]))
    counts = tuple(high - low for low, high in pairwise(ends))
    name: Literal["needed", "failed"] = "needed" if target.kind == "shares" else "failed"
    return Basis(tuple(sorted(cuts)), counts, worth, name, judged, agree)


def gains(report: Mapping[str, Any]) -> bool:
    """Whether the interval of the gain over chance lies above 0."""
    found = report.get("lift")
    return found is not None and found["low"] > 0


def needed(one: Example) -> bool | None:
    return one.needed


def failed(one: Example) -> bool | None:
    """A bound on failures is proven by judgements alone."""
    return one.failed if one.agree is None else None


def parted(records: Sequence[Example], split: Split) -> tuple[list[Example], list[Example]]:
    """The records to fit on and those to judge on. Raises Unproven when they lack what the split goes by."""
    if split == "time":
        if any(one.at is None for one in records):
            raise Unproven("a split by time needs `at` in every record")
        ranked = sorted(records, key=lambda one: one.at or 0.0)
        return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]
    keys = {one.id: (one.caller or "") if split == "caller" else one.id for one in records}
    groups = sorted(set(keys.values()))
    if len(groups) < 2:
        raise Unproven("a split by caller needs two callers")
    random.Random(SEED).shuffle(groups)  # noqa: S311  (repeatable, not secret)
    first = set(groups[: len(groups) // 2])
    halves: tuple[list[Example], list[Example]] = ([], [])
    for one in records:
        halves[keys[one.id] not in first].append(one)
    return halves


def few_outcomes(half: Sequence[Example], label: Label) -> str | None:
    """What to say of a half with too few outcomes; None when they do."""
    known = [one.weight for one in half if label(one) is not None]
    worth = effective(known)
    if worth >= LEAST // 2:
        return None
    told_worth = "" if worth > len(known) - 1 else f", worth {2 * worth:.0f} by their propensities"
    return f"{2 * len(known)} outcomes or so{told_worth}; at least {LEAST} are needed"


def alike_outcomes(half: Sequence[Example], label: Label) -> str | None:
    """What to say of a half whose outcomes are nearly all the same; None when they are not."""
    known = [hit for one in half if (hit := label(one)) is not None]
    if min(sum(known), len(known) - sum(known)) >= LEAST_OF_EACH // 2:
        return None
    return f"outcomes are nearly all alike: {sum(known)} of {len(known)} in one half count against Flash"


def layer_for(records: Sequence[Example], label: Label, measures: bool = True) -> Layer:
    """The layer for these outcomes; measures come in only where cross-validation favours them clearly."""
    rows, hits = [told(one) for one in records], [label(one) for one in records]
    names = [name for name in _common(rows) if len({row.get(name) for row in rows}) > 1]
    trusted = [name for name in names if name in BELIEVED]
    best: tuple[float, float | None] = (math.inf, None)
    weights = [one.weight for one in records]
    known = [(row, hit, weight) for row, hit, weight in zip(rows, hits, weights, strict=True) if hit is not None]
    for penalty in PENALTIES if measures else ():
        losses = _losses(known[:ENOUGH], trusted if penalty is None else names, penalty or 0.0)
        middle = sum(losses) / FOLDS
        spread = math.sqrt(sum((value - middle) ** 2 for value in losses) / FOLDS / (FOLDS - 1))
        if middle + (0.0 if penalty is None else spread) < best[0]:
            best = (middle, penalty)
    return fit(rows, hits, trusted if best[1] is None else names, best[1] or 0.0, weights)


def _common(rows: Sequence[Row]) -> list[str]:
    """Inputs that nearly every record has."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row:
            counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if count >= COMMON * len(rows)]


def _losses(known: Sequence[tuple[Row, bool, float]], names: Sequence[str], penalty: float) -> list[float]:
    """Log loss on each fold of a layer that was fitted on the others."""
    found = []
    for fold in range(FOLDS):
        rows, hits, weights = zip(*(one for i, one in enumerate(known) if i % FOLDS != fold), strict=True)
        found.append(loss(fit(rows, hits, names, penalty, weights), known[fold::FOLDS]))
    return found


def thresholds(p: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """The edges that part these requests into those shares, the lowest p first."""
    ranked = sorted(p)
    ends = list(accumulate(shares))[:-1]
    return tuple(ranked[min(round(end * len(ranked)), len(ranked) - 1)] for end in ends)


def _certified(judged: Sequence[tuple[float, bool]], target: Target) -> Certified:
    found = certify(judged, target.rate, target.confidence)
    if found:
        return found
    first = fewest(target.rate, target.confidence)
    kept = sorted(judged)[:first]
    raise Unproven(
        f"no threshold keeps Flash's failures below {target.rate:g} with confidence {target.confidence:g}: "
        f"that takes {first} judged outcomes to begin with, and of the {len(kept)} that look simplest "
        f"{sum(bad for _, bad in kept)} failed"
    )


def _shares(p: Sequence[float], edges: Sequence[float]) -> list[dict[str, float]]:
    bounds = pairwise((-math.inf, *edges, math.inf))
    return [_shown(share_interval(sum(low <= one < high for one in p), len(p))) for low, high in bounds]


def _worth(hits: Sequence[Judged], outcomes: Sequence[tuple[float, Example]], edges: Sequence[float]) -> dict[str, Any]:
    """How far p is right and what the last edge buys, on judged records."""
    won = [Judged(p, float(one.gain or 0), one.weight) for p, one in outcomes]
    kept = [Judged(p, float(bool(one.failed)), one.weight) for p, one in outcomes if p < edges[0]]
    rate = mean(hits)
    return {
        "outcomes": len(hits),
        "effective": effective([one.weight for one in hits]),
        "rate": rate,
        "flash_failure": _shown(rate_interval(kept)) if kept else None,
        "lift": _shown(bootstrap(won, lambda sample: lift(sample, edges[-1]))) if mean(won) > 0 else None,
        "brier": brier(hits),
        "brier_of_the_rate": rate * (1 - rate),
        "ece": ece(hits),
    }


def _shown(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _caveats(records: Sequence[Example], report: Mapping[str, Any], target: Target, layer: Layer) -> list[str]:
    """What the report's reader must know."""
    p = [(layer.p(told(one)), one) for one in records]
    known = [Judged(value, 0.0, one.weight) for value, one in p if one.failed is not None]
    weighted = any(one.weight != 1 for one in known)  # then they stand for the others, too
    others = [value for value, one in p if weighted or one.failed is None]
    off = [abs(got["value"] - want) for got, want in zip(report["shares"], target.shares, strict=False)]
    checks = {
        "requests with an outcome differ from those without: what holds for the ones need not hold for the others": (
            apart(known, others)
        ),
        "Pro's outcome is not known everywhere: Flash's failures stand in for Pro's gain": (
            any(one.failed and one.pro_ok is None for one in records)
        ),
        "outcomes that are agreements with another tier's answer say where words differ, not who is right": (
            target.kind == "shares" and any(one.agree is not None for one in records)
        ),
        "p is no better than the mean rate (Brier)": (
            "brier" in report and report["brier"] >= report["brier_of_the_rate"]
        ),
        f"a realised share is more than {CLOSE:g} from its target": any(value > CLOSE for value in off),
        "the bound holds for requests like the judged ones; after drift, or another model behind a tier, it does not": (
            target.kind == "flash_failure"
        ),
        "Pro's answers are no better than Flash's over all: there is nothing to gain": (
            "lift" in report and report["lift"] is None
        ),
        "the gain over random at an equal share is not shown: its interval reaches 0": (
            report.get("lift") is not None and not gains(report)
        ),
    }
    return [text for text, holds in checks.items() if holds]
