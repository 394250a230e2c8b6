"""Which layer and which thresholds follow from recorded outcomes, and what are they worth on others?"""

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal

from gateway.calibrate.bound import ALL, Certified, certify, fewest
from gateway.calibrate.layer import LEAST_OF_EACH, Label, failed, layer_for, needed
from gateway.calibrate.outcomes import Example, told
from gateway.calibrate.report import (
    KIND,
    Judged,
    apart,
    brier,
    ece,
    lift_interval,
    mean,
    rate_interval,
    share_interval,
    thinned,
)
from gateway.calibrate.target import Target
from gateway.calibration import Basis, Layer
from gateway.estimate import Z, effective

PARTS = 10  # bins of equally many records by p, with which later traffic is compared
LEAST = 100  # the fewest records, and the fewest with an outcome
CLOSE = 0.03  # above this 95 % sampling error of a share there is a caveat
SEED = 20261122

Split = Literal["time", "caller", "id"]


class Unproven(Exception):
    """The records do not show what was asked for; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """`edges`: thresholds that divide p into bands, the simplest first; one edge for two tiers.

    p is the probability that Pro is needed; for a bound on failures, that Flash fails. `report` is on held-out records.
    `proven`: the bound is certified; for shares, that the gain over random routing is significant.
    """

    target: Target
    layer: Layer
    edges: tuple[float, ...]
    basis: Basis
    report: Mapping[str, Any]
    caveats: tuple[str, ...]
    proven: bool


def calibrate(records: Sequence[Example], target: Target, split: Split = "id") -> Calibration:
    """Fits on one half of the records and evaluates on the other. For shares the result is then fitted on both halves;
    a bound holds only for the layer that it was certified with, so that one stays.

    split: "time" fits on the older half; "caller" keeps each caller's requests together; "id" splits at random, but
    keeps a request that was sent again on one side.
    Raises Unproven with too few records, and when a bound cannot be certified. Shares need no outcomes: their edges
    follow all records, and without outcomes they follow the score alone, and the calibration is not `proven`.
    """
    if len(records) < LEAST:
        raise Unproven(f"{len(records)} records; at least {LEAST} are needed")
    question = question_of(records)
    fitted, judged = parted(records, split)
    label: Label = needed if target.kind == "shares" else failed
    few = few_outcomes(fitted, label) or few_outcomes(judged, label)
    alike = alike_outcomes(fitted, label) or alike_outcomes(judged, label)
    if few and target.kind == "flash_failure":
        raise Unproven(few)
    measures = not (few or alike)
    layer = layer_for(fitted, label, measures)
    outcomes = [(layer.p(told(one)), one) for one in judged if label(one) is not None]
    hits = [Judged(p, float(bool(label(one))), one.weight) for p, one in outcomes]
    names = repeats([one for _, one in outcomes])
    once = {names[one.id]: hit for hit, (_, one) in zip(hits, outcomes, strict=True)}
    edges, report = _edges(layer, fitted, target, list(once.values()))
    report |= {"judged": len(judged), "shares": _shares([layer.p(told(one)) for one in judged], edges)}
    report |= {} if few else _worth(hits, outcomes, edges[0])
    report |= {} if few or alike else _lift(outcomes, edges[-1])  # of too few gains resampling knows no interval
    caveats = [*_caveats(records, report, target, layer), *_of_shares(report, target, len(fitted))]
    if target.kind == "shares":
        fitted, layer = list(records), layer_for(records, label, measures)
        edges = thresholds([layer.p(told(one)) for one in records], target.shares)
    basis = basis_of([layer.p(told(one)) for one in records], fitted, target, label)
    basis = replace(basis, question=question if "p_complex" in layer.inputs else None)
    shown = target.kind == "flash_failure" or gains(report)
    again = len(hits) - len(once) if target.kind == "flash_failure" else 0
    told_again = f"{again} outcomes are of requests sent again: in the bound each request counts once" if again else ""
    lacks = [lack for lack in (few, alike, told_again) if lack]
    return Calibration(target, layer, edges, basis, report, (*caveats, *lacks), shown)


def _edges(
    layer: Layer, records: Sequence[Example], target: Target, hits: Sequence[Judged]
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The edges and, for a bound, the counts that certify it: shares come from `records`, a bound from `hits`."""
    if target.kind == "shares":
        return thresholds([layer.p(told(one)) for one in records], target.shares), {}
    bound = _certified([(one.p, bool(one.value)) for one in thinned(hits)], target)
    return (bound.threshold,), {"bound": {"kept": bound.kept, "failures": bound.failures}}


def basis_of(p: Sequence[float], fitted: Sequence[Example], target: Target, label: Label) -> Basis:
    """The basis of a calibration: `p` of all records, of which the layer was fitted on `fitted`."""
    ranked = sorted(p)
    cuts = {ranked[len(ranked) * at // PARTS] for at in range(1, PARTS)} - {ranked[0]}
    ends = [0, *(bisect_left(ranked, cut) for cut in sorted(cuts)), len(ranked)]
    known = [one for one in fitted if label(one) is not None]
    agree = max((one.agree for one in known if one.agree is not None), default=None)
    judged, worth = any(one.agree is None for one in known), round(effective([one.weight for one in known]))
    counts = tuple(high - low for low, high in pairwise(ends))
    name: Literal["needed", "failed"] = "needed" if target.kind == "shares" else "failed"
    return Basis(tuple(sorted(cuts)), counts, worth, name, judged, agree)


def question_of(records: Sequence[Example]) -> str | None:
    """The question that all verdicts answer, None without verdicts. Raises Unproven when there are several."""
    found = Counter(one.question for one in records if one.question is not None)
    if len(found) > 1:
        told = ", ".join(f"{question!r} ({count})" for question, count in found.most_common())
        raise Unproven(f"the verdicts answer several questions, take the records of one: {told}")
    return next(iter(found), None)


def gains(report: Mapping[str, Any]) -> bool:
    """Whether the 95 % interval of the lift lies above 0."""
    found = report.get("lift")
    return found is not None and found["low"] > 0


def parted(records: Sequence[Example], split: Split) -> tuple[list[Example], list[Example]]:
    """The records to fit on, and those to evaluate on. Raises Unproven when they cannot be split so."""
    if split == "time":
        if any(one.at is None for one in records):
            raise Unproven("a split by time needs `at` in every record")
        ranked = sorted(records, key=lambda one: one.at or 0.0)
        return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]
    keys = {one.id: one.caller or "" for one in records} if split == "caller" else repeats(records)
    groups = sorted(set(keys.values()))
    if len(groups) < 2:
        raise Unproven("a split by caller needs two callers")
    random.Random(SEED).shuffle(groups)  # noqa: S311  (repeatable, not secret)
    first = set(groups[: len(groups) // 2])
    halves: tuple[list[Example], list[Example]] = ([], [])
    for one in records:
        halves[keys[one.id] not in first].append(one)
    return halves


def repeats(records: Sequence[Example]) -> dict[str, str]:
    """By id, a name for what must stay in one half: requests with the same inputs are one that was sent again, and it
    must not be judged by what was learned from itself. Where they are more than one in KIND they are a kind of
    requests, and stand each for itself."""
    rows = {one.id: repr(sorted(told(one).items())) if one.measures else one.id for one in records}
    counts = Counter(rows.values())
    return {name: row if counts[row] * KIND <= len(records) else name for name, row in rows.items()}


def few_outcomes(half: Sequence[Example], label: Label) -> str | None:
    """A message if a half has too few outcomes, by effective sample size; else None."""
    known = [one.weight for one in half if label(one) is not None]
    worth = effective(known)
    if worth >= LEAST // 2:
        return None
    told_worth = "" if worth > len(known) - 1 else f", worth {2 * worth:.0f} by their propensities"
    return f"{2 * len(known)} outcomes or so{told_worth}; at least {LEAST} are needed"


def alike_outcomes(half: Sequence[Example], label: Label) -> str | None:
    """A message if nearly all outcomes of a half are equal; else None."""
    known = [hit for one in half if (hit := label(one)) is not None]
    if min(sum(known), len(known) - sum(known)) >= LEAST_OF_EACH // 2:
        return None
    return f"outcomes are nearly all alike: {sum(known)} of {len(known)} in one half count against Flash"


def thresholds(p: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """The values of p, or ALL, that divide the requests as nearly as can be into those shares, the lowest p first:
    requests of equal p stay together."""
    ranked = sorted(p)
    below = {ranked[at]: at for at in reversed(range(len(ranked)))} | {ALL: len(ranked)}
    ends = list(accumulate(shares))[:-1]
    return tuple(min(below, key=lambda edge: abs(below[edge] - end * len(ranked))) for end in ends)


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
    return [asdict(share_interval(sum(low <= one < high for one in p), len(p))) for low, high in bounds]


def _lift(outcomes: Sequence[tuple[float, Example]], edge: float) -> dict[str, Any]:
    """The lift of sending what is at or above the edge to Pro, on held-out records; None where Pro gains nothing."""
    won = [Judged(p, float(one.gain or 0), one.weight) for p, one in outcomes]
    return {"lift": asdict(lift_interval(won, edge)) if mean(won) > 0 else None}


def _worth(hits: Sequence[Judged], outcomes: Sequence[tuple[float, Example]], edge: float) -> dict[str, Any]:
    """How well p is calibrated, and how often Flash fails below the edge, on held-out records."""
    kept = [Judged(p, float(bool(one.failed)), one.weight) for p, one in outcomes if p < edge]
    rate = mean(hits)
    return {
        "outcomes": len(hits),
        "effective": effective([one.weight for one in hits]),
        "rate": rate,
        "flash_failure": asdict(rate_interval(kept)) if kept else None,
        "brier": brier(hits),
        "brier_of_the_rate": rate * (1 - rate),
        "ece": ece(hits),
    }


def _caveats(records: Sequence[Example], report: Mapping[str, Any], target: Target, layer: Layer) -> list[str]:
    """The caveats that hold, as sentences."""
    p = [(layer.p(told(one)), one) for one in records]
    known = [Judged(value, 0.0, one.weight) for value, one in p if one.failed is not None]
    weighted = any(one.weight != 1 for one in known)  # then they stand for the others, too
    others = [value for value, one in p if weighted or one.failed is None]
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


def _of_shares(report: Mapping[str, Any], target: Target, fitted: int) -> list[str]:
    """The caveats on shares that hold; `fitted`: the number of records that the evaluated edges come from."""
    records = fitted + report["judged"]
    once = max((math.sqrt(share * (1 - share)) for share in target.shares), default=0.0)
    by_chance = Z * once * math.sqrt(1 / fitted + 1 / report["judged"])
    off = [abs(got["value"] - want) for got, want in zip(report["shares"], target.shares, strict=False)]
    near, enough = Z * once / math.sqrt(records), math.ceil((Z * once / CLOSE) ** 2)
    checks = {
        f"{records} records set a share to within {near:.3f} (95 %), {enough} to within {CLOSE:g}; "
        "those without an outcome count, too": near > CLOSE,
        "a realised share is further from its target than chance would have it: traffic changes, or scores are equal": (
            any(value > by_chance for value in off)
        ),
    }
    return [text for text, holds in checks.items() if holds]
