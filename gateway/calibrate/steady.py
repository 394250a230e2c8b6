"""Were outcomes alike all the time that they were recorded?"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import accumulate, pairwise

from gateway.calibrate.halves import together
from gateway.calibrate.layer import Label, counted
from gateway.calibrate.outcomes import Example, told
from gateway.calibrate.report import FAR
from gateway.calibration import Layer
from gateway.off_policy import FEWEST, runs

CHANGED = 2.2  # the bound of a Kolmogorov-Smirnov test is 1.95 at 1 in 1,000, where the deviation is known


def unsteady(records: Sequence[Example], layer: Layer, label: Label) -> str | None:
    """A message if outcomes were otherwise before some time than since, by how many count against Flash or by how p
    orders them; else None.

    Then the sums of what p does not foretell stray further, as time goes, than by chance: they are a Brownian bridge,
    which has the bounds of a Kolmogorov-Smirnov test. Neighbours, and turns of a conversation, count as one.
    """
    timed = [one for one in records if one.at is not None and label(one) is not None and not one.retried]
    known = sorted(timed, key=lambda one: one.at or 0.0)
    p, names = [layer.p(told(one)) for one in known], together(known)
    middle = sum(p) / (len(p) or 1)
    spread = math.sqrt(sum((each - middle) ** 2 for each in p) / (len(p) or 1)) or 1.0
    many, order = [0.0] * FEWEST, [0.0] * FEWEST
    blocks = runs([names[one.id] for one in known], FEWEST)
    for block, one, each in zip(blocks, known, p, strict=True):
        off = one.weight * (counted(layer, one, bool(label(one))) - each)
        many[block] += off
        order[block] += off * (each - middle) / spread
    least = FAR / 4 * sum(one.weight for one in known)  # as a rate brings it about that moves by FAR at half the time
    turn = strays(many, least) or strays(order, least)
    if turn is None:
        return None
    since = datetime.fromtimestamp(known[min(turn * len(known) // FEWEST, len(known) - 1)].at or 0.0, UTC)
    return (
        f"outcomes are others since {since:%Y-%m-%d %H:%M} UTC or so than before: nothing is proven; calibrate on the "
        "records since"
    )


def strays(sums: Sequence[float], least: float) -> int | None:
    """From which of these on they are otherwise than before, if that is more than chance, and than `least`. Chance is
    told by neighbours, which a change leaves alike."""
    middle = sum(sums) / len(sums)
    walk = [abs(far) for far in accumulate((one - middle for one in sums), initial=0.0)]
    by_chance = CHANGED * math.sqrt(sum((one - other) ** 2 for one, other in pairwise(sums)) / 2)
    return walk.index(max(walk)) if max(walk) > max(least, by_chance) else None
