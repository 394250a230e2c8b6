"""Which thresholds fit newer traffic, where the layer of an earlier calibration stays?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.calibrate.caveats import CLOSE, caveats_on_shares, within
from gateway.calibrate.fitted import (
    Calibration,
    alike,
    banded,
    by_verdicts,
    in_bands,
    named,
    question_of,
    ranks,
    thresholds,
    to_choose,
)
from gateway.calibrate.halves import SplitBy, Unproven, parted
from gateway.calibrate.mix import mix_of
from gateway.calibrate.outcomes import Example
from gateway.calibrate.target import Target
from gateway.calibration import Fitted

UNJUDGED = "the order of requests is an earlier calibration's: what it gains on these records was not judged"


def moved(
    kept: Fitted, records: Sequence[Example], target: Target, split: SplitBy = "id", explore: float | None = None
) -> Calibration:
    """The calibration `kept` with thresholds for these records. No outcomes are needed, and none count: shares alone
    are shown, on the half of the records that `split` holds out, and no gain is `proven`.

    Raises Unproven with too few records, for a bound, where verdicts answer another question than those that the layer
    was fitted to, and where no thresholds give the target's shares.
    """
    if not target.shares or kept.basis is None:
        raise Unproven("only thresholds for shares can be set anew, and only of a file that says what it was fitted on")
    decided = by_verdicts(records)
    if "p_complex" in kept.layer.inputs and (question := question_of(decided)) != kept.basis.question:
        raise Unproven(
            f"the verdicts answer {question!r}, those of the calibration that is kept {kept.basis.question!r}"
        )
    mix = mix_of(records, len(target.shares), explore)
    wanted = to_choose(mix, target)
    fitted, judged = parted(decided, split)
    names, edges = alike(decided, split), thresholds(ranks(kept.layer, fitted), wanted)
    p = ranks(kept.layer, decided)
    placed = thresholds(p, wanted)
    best = in_bands(named(kept.layer, decided, names), placed, mix)
    _reached(best, target)
    report = in_bands(named(kept.layer, judged, names), edges, mix) | {"sources": {}, "within": within(best)}
    spread, counts = banded(p)
    asked = any(one.p_complex is not None for one in decided)
    basis = replace(kept.basis, edges=spread, counts=counts, asked=asked)
    caveats = (UNJUDGED, *caveats_on_shares(decided, report, target, kept.layer))
    return Calibration(target, kept.layer, placed, basis, report, caveats, proven=False)


def _reached(best: Mapping[str, Any], target: Target) -> None:
    """Raises Unproven where the best edges for all records are far from the target's shares."""
    shares = [share["value"] for share in best["shares"]]
    if max(abs(got - want) for got, want in zip(shares, target.shares, strict=True)) > CLOSE:
        nearest = "/".join(f"{share:.2f}" for share in shares)
        raise Unproven(
            f"{target.text} is out of reach: too many requests have the same p; the nearest shares are {nearest}"
        )
