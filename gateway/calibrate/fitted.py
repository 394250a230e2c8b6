"""Which layer and which thresholds follow from recorded outcomes, and what are they worth on others?"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

from gateway.calibrate.bound import ALL, Tested, certify, least, steps
from gateway.calibrate.caveats import (
    LEAST,
    alike_outcomes,
    caveats_on,
    few_names,
    few_outcomes,
    gains,
    sources_of,
    uneven,
    within,
)
from gateway.calibrate.halves import SplitBy, Unproven, in_order, parted, together
from gateway.calibrate.layer import Label, counted, failed, layer_for, needed
from gateway.calibrate.mix import Mix, mix_of
from gateway.calibrate.outcomes import Example, told
from gateway.calibrate.report import (
    Judged,
    brier,
    ece,
    lift_interval,
    mean,
    one_of_each,
    rate_interval,
    share_interval,
)
from gateway.calibrate.steady import unsteady
from gateway.calibrate.target import Target
from gateway.calibration import Basis, Layer
from gateway.off_policy import effective

PARTS = 10  # bins of equally many records by p, with which later traffic is compared


@dataclass(frozen=True, slots=True)
class Calibration:
    """`edges`: thresholds that divide p into bands, the simplest first; one edge for two tiers.

    p is the probability that Pro is needed; for a bound on failures, that Flash fails. `report` is on held-out records.
    `proven`: the bound is certified; for shares, that the gain over random routing is significant; and for either, that
    those judged are like all the others.
    """

    target: Target
    layer: Layer
    edges: tuple[float, ...]
    basis: Basis
    report: Mapping[str, Any]
    caveats: tuple[str, ...]
    proven: bool


def calibrate(
    records: Sequence[Example], target: Target, split: SplitBy = "id", explore: float | None = None
) -> Calibration:
    """Fits on one half of the records and evaluates on the other. For shares the result is then fitted on both halves;
    a bound holds only for the layer that it was certified with, so that one stays.

    split: "time" fits on the older half; "caller" keeps each caller's requests together; "id" splits at random, but
    keeps neighbours in time, and a request that was sent again, on one side. explore: the rule's, by default as seen.
    Fits to what verdicts decide, so that of all records the wanted shares are realised. Retries help to fit alone.
    Raises Unproven with too few records, and when a bound cannot be certified. Shares need no outcomes: without any, or
    with those of some requests only, they follow score and verdict alone, and the calibration is not `proven`.
    """
    decided = by_verdicts(records)
    mix, question = mix_of(records, len(target.shares) or 2, explore), question_of(decided)
    wanted = to_choose(mix, target)
    fitted, judged = parted(decided, split)
    label: Label = needed if target.kind == "shares" else failed
    few = few_outcomes(fitted, label) or few_outcomes(judged, label)
    equal = alike_outcomes(fitted, label) or alike_outcomes(judged, label)
    if few and target.kind == "flash_failure":
        raise Unproven(few)
    learned = not (few or equal or uneven(decided, layer_for(decided, label, learned=False)))
    layer = layer_for(fitted, label, learned)
    partial, otherwise = uneven(decided, layer), unsteady(decided, layer, label)
    held = _held(layer, judged, label, names := alike(decided, split))
    edges, bound = _bounded(target, held.once)
    edges = edges or thresholds(ranks(layer, fitted), wanted)
    report = bound | in_bands(held.all, edges, mix) | {"sources": sources_of(decided)}
    report |= {"within": within(in_bands(named(layer, decided, names), edges, mix))} if wanted else {}
    lacks = [few, equal, few_names(held.hits, split)]  # of so little resampling knows no interval
    report |= ({} if few else _worth(held, edges[0])) | ({} if any(lacks) else _lift(held, edges[-1]))
    lacks += [_again(held) if bound else None, otherwise]
    caveats = (*caveats_on(decided, report, target, layer, partial), *filter(None, lacks))
    proven = not (partial or otherwise) and (bool(bound) or gains(report))
    if wanted:
        fitted, layer = decided, layer_for(decided, label, learned)
    p = ranks(layer, decided)
    edges = thresholds(p, wanted) if wanted else edges
    basis = replace(basis_of(p, decided, fitted, label), question=question if "p_complex" in layer.inputs else None)
    return Calibration(target, layer, edges, basis, report, caveats, proven)


def by_verdicts(records: Sequence[Example]) -> list[Example]:
    """Those that a verdict decided, in order. Raises Unproven where they are too few."""
    decided = in_order([one for one in records if one.fixed is None])
    if len(decided) < LEAST:
        raise Unproven(f"{len(decided)} records that a verdict decided; at least {LEAST} are needed")
    return decided


class JudgedHalf(NamedTuple):
    """The judging half: `all` its records; those with `outcomes`, these as `hits`, and of each request `once`, however
    often it was sent, or of each conversation."""

    all: list[Judged]
    outcomes: list[Example]
    hits: list[Judged]
    once: list[Judged]


def _held(layer: Layer, judged: Sequence[Example], label: Label, names: Mapping[str, str]) -> JudgedHalf:
    everybody = named(layer, judged, names)
    known = [pair for pair in zip(everybody, judged, strict=True) if label(pair[1]) is not None and not pair[1].retried]
    hits = [hit._replace(value=counted(layer, one, bool(label(one))), weight=one.weight) for hit, one in known]
    return JudgedHalf(everybody, [one for _, one in known], hits, one_of_each(hits))


def named(layer: Layer, records: Sequence[Example], names: Mapping[str, str]) -> list[Judged]:
    """Each record with its p and its name; without outcomes."""
    return [Judged(p, 0.0, name=names[one.id]) for p, one in zip(ranks(layer, records), records, strict=True)]


def alike(records: Sequence[Example], split: SplitBy) -> dict[str, str]:
    """By id, the name that a record shares with such as are alike. Who asks what other callers bring takes all of a
    caller's for alike."""
    return {one.id: one.caller or "" for one in records} if split == "caller" else together(records)


def ranks(layer: Layer, records: Sequence[Example]) -> list[float]:
    """p of each record."""
    return [layer.p(told(one)) for one in records]


def _again(held: JudgedHalf) -> str:
    again = len(held.hits) - len(held.once)
    told = "are of requests sent again, or further ones of a conversation: in the bound each of these counts once"
    return f"{again} outcomes {told}" if again else ""


def in_bands(judged: Sequence[Judged], edges: Sequence[float], mix: Mix) -> dict[str, Any]:
    """By band, the part of all requests that comes to it, and what is in that beside verdicts."""
    chosen = [asdict(share_interval(judged, *band)) for band in pairwise((-math.inf, *edges, math.inf))]
    shares = [{name: mix.realised(band, part) for name, part in one.items()} for band, one in enumerate(chosen)]
    return {"judged": len(judged), "shares": shares, "fixed": sum(mix.fixed), "explore": mix.explore}


def to_choose(mix: Mix, target: Target) -> tuple[float, ...]:
    """What verdicts are to choose, by band. Raises Unproven where nothing they choose makes up the target's shares."""
    wanted = mix.chosen(target.shares)
    if min(wanted, default=1.0) <= 0:
        raise Unproven(
            f"{target.text} is out of reach: {sum(mix.fixed):.1%} of the requests have their tier without a verdict, "
            f"and explore sends {mix.explore:.1%} of the others another way"
        )
    return wanted


def _bounded(target: Target, hits: Sequence[Judged]) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The edge that `hits` certify, and their counts; none where the target is no bound."""
    if target.kind != "flash_failure":
        return (), {}
    bound = _certified(hits, target)
    return (bound.threshold,), {"bound": {"kept": bound.kept, "failures": bound.failures}}


def basis_of(p: Sequence[float], records: Sequence[Example], fitted: Sequence[Example], label: Label) -> Basis:
    """The basis of a calibration that gives these records that p, and was fitted on some of them."""
    cuts, counts = banded(p)
    known = [one for one in fitted if label(one) is not None and not one.retried]
    agree = max((one.agree for one in known if one.agree is not None), default=None)
    judged, worth = any(one.agree is None for one in known), round(effective([one.weight for one in known]))
    name: Literal["needed", "failed"] = "needed" if label is needed else "failed"
    asked = any(one.p_complex is not None for one in records)
    return Basis(cuts, counts, worth, name, judged, agree, asked=asked)


def banded(p: Sequence[float]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The edges of bins in which equally many of them are, as nearly as can be, and how many those are."""
    ranked = sorted(p)
    cuts = {ranked[len(ranked) * at // PARTS] for at in range(1, PARTS)} - {ranked[0]}
    ends = [0, *(bisect_left(ranked, cut) for cut in sorted(cuts)), len(ranked)]
    return tuple(sorted(cuts)), tuple(high - low for low, high in pairwise(ends))


def question_of(records: Sequence[Example]) -> str | None:
    """The question that all verdicts answer, None without verdicts. Raises Unproven when there are several."""
    found = Counter(one.question for one in records if one.question is not None)
    if len(found) > 1:
        told = ", ".join(f"{question!r} ({count})" for question, count in found.most_common())
        raise Unproven(f"the verdicts answer several questions, take the records of one: {told}")
    return next(iter(found), None)


def thresholds(p: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """The values of p, or ALL, that divide the requests as nearly as can be into those shares, the lowest p first:
    requests of equal p stay together."""
    ranked = sorted(p)
    below = {ranked[at]: at for at in reversed(range(len(ranked)))} | {ALL: len(ranked)}
    ends = list(accumulate(shares))[:-1]
    return tuple(min(below, key=lambda edge: abs(below[edge] - end * len(ranked))) for end in ends)


def _certified(judged: Sequence[Judged], target: Target) -> Tested:
    found = certify(judged, target.rate, target.confidence)
    if found:
        return found
    first = steps(judged, target.rate, target.confidence)[0]
    needed = f"at most {first.most} may" if first.most >= 0 else f"{least(target.rate, target.confidence)} are needed"
    raise Unproven(
        f"no threshold keeps Flash's failures below {target.rate:g} with confidence {target.confidence:g}: "
        f"of the {first.kept} judged that look simplest {first.failures} failed, and {needed}"
    )


def _lift(held: JudgedHalf, edge: float) -> dict[str, Any]:
    """The lift of sending what is at or above the edge to Pro, on held-out records; None where Pro gains nothing."""
    won = [hit._replace(value=float(one.gain or 0)) for hit, one in zip(held.hits, held.outcomes, strict=True)]
    return {"lift": asdict(lift_interval(won, edge)) if mean(won) > 0 else None}


def _worth(held: JudgedHalf, edge: float) -> dict[str, Any]:
    """How well p is calibrated, and how often Flash fails below the edge, on held-out records."""
    hits = held.hits
    both = zip(hits, held.outcomes, strict=True)
    kept = [hit._replace(value=float(bool(one.failed))) for hit, one in both if hit.p < edge]
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
