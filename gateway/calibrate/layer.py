"""How is a calibration's layer, its model of the probability, fitted to recorded outcomes?

That Pro is needed is two things: Flash fails, and Pro does not. They are fitted apart, so where few outcomes tell which
of Flash's failures Pro saves, one probability does for all of them, and the order is that of the failures.

Weights know a direction for each measure; trees beside them know kinds of requests, by how a text looks as well.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from gateway.calibrate.logistic import Prior, fit
from gateway.calibrate.outcomes import Example, told
from gateway.calibrate.trees import Sample, grown
from gateway.calibration import BELIEVED, Layer, Row, taken
from gateway.score import AXES, LOOKS

# Chosen on 23 pairs of models over four labelled sets, and checked on 23 others (LOG.md, 2026-11-22).
BELIEF = 0.4  # weight of the score, and of the verdict, before any outcome, per standard deviation
FIRM = 5.0  # penalty on moving away from it
FIXED = 1e9  # the same, where outcomes are not to move it
FAILS, SAVES = 200.0, 100.0  # penalties on the measures: where Flash fails, and where Pro does not
COMMON = 0.95  # score and verdict count when this part of the records has them
MANY = 0.5  # and a measure, of which short texts may have none, when this part has it
LEAST_OF_EACH = 10  # outcomes of either kind, without which nothing is told from them

Label = Callable[[Example], bool | None]


def needed(one: Example) -> bool | None:
    return one.needed


def failed(one: Example) -> bool | None:
    """A bound on failures is proven by judgements alone."""
    return one.failed if one.agree is None and not one.retried else None


def layer_for(records: Sequence[Example], label: Label, learned: bool = True) -> Layer:
    """The layer for these outcomes: of what is believed beforehand and of the measures; where no order is to be
    `learned`, of the belief as it is, and of how many outcomes count against Flash."""
    records = evened(records)
    rows = [told(one) for one in records]
    names = [name for name in _common(rows) if len({taken(name, row[name]) for row in rows if name in row}) > 1]
    used = [name for name in names if learned or name in BELIEVED]
    # The score and the verdict alone have one direction each: trees are for measures.
    seen = [name for name in used if name not in AXES] if {*used} - {*BELIEVED} else []
    layer = _weighed(records, rows, [name for name in used if name not in LOOKS], label, FIRM if learned else FIXED)
    outcomes = [
        Sample([row[name] for name in seen], counted(layer, one, hit), one.weight)
        for row, one in zip(rows, records, strict=True)
        if (hit := label(one)) is not None and row.keys() >= {*seen}
    ]
    return replace(layer, trees=grown(outcomes, seen))


def counted(layer: Layer, one: Example, hit: bool) -> float:
    """How much an outcome counts against Flash, which is `hit`, 0 or 1; where the layer knows of failures that Pro does
    not save, a failure without Pro's outcome counts as much as it is likely that Pro saves it."""
    return layer.saved.p(told(one)) if hit and layer.saved and one.pro_ok is None else float(hit)


def evened(records: Sequence[Example]) -> Sequence[Example]:
    """The records, in which all of Flash's failures weigh as much as those do that were judged: retries tell which
    requests failed, and nobody tells which of the others did not."""
    bad = [one for one in records if one.failed]
    judged, whole = sum(one.weight for one in bad if not one.retried), sum(one.weight for one in bad)
    if judged == whole:
        return records
    return [replace(one, weight=one.weight * judged / whole) if one.failed else one for one in records]


def _weighed(records: Sequence[Example], rows: Sequence[Row], used: Sequence[str], label: Label, firm: float) -> Layer:
    weights = [one.weight for one in records]
    saved = [one.pro_ok if one.failed else None for one in records]
    if label is not needed or min(saved.count(True), saved.count(False)) < LEAST_OF_EACH:
        return fit(rows, [label(one) for one in records], _priors(used, BELIEF, firm, FAILS), weights)
    fails = fit(rows, [one.failed for one in records], _priors(used, BELIEF, firm, FAILS), weights)
    return replace(fails, saved=fit(rows, saved, _priors(used, 0.0, firm, SAVES), weights))


def _priors(names: Sequence[str], belief: float, firm: float, penalty: float) -> dict[str, Prior]:
    return {name: (belief, firm) if name in BELIEVED else (0.0, penalty) for name in names}


def _common(rows: Sequence[Row]) -> list[str]:
    """Inputs that enough of the records have."""
    counts = Counter(chain.from_iterable(rows))
    return [name for name, n in counts.items() if n >= len(rows) * (COMMON if name in BELIEVED else MANY)]
