"""Which records is a calibration fitted on, and which judge it?"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from gateway.calibrate.outcomes import Example, told
from gateway.calibrate.report import KIND, SEED
from gateway.off_policy import runs

RUNS = 20  # of neighbours, each in one half
MOST = 0.6  # of the requests a half gets by chance alone

SplitBy = Literal["time", "caller", "id"]


class Unproven(Exception):
    """The records do not show what was asked for; the message says what is missing."""


def in_order(records: Sequence[Example]) -> list[Example]:
    """Each caller's records one after another, so that turns of a conversation are neighbours."""
    return sorted(records, key=lambda one: (one.caller or "", one.at or 0.0))


def parted(records: Sequence[Example], split: SplitBy) -> tuple[list[Example], list[Example]]:
    """The records to fit on, and those to evaluate on. Raises Unproven when they cannot be split so."""
    if split == "time":
        if any(one.at is None for one in records):
            raise Unproven("a split by time needs `at` in every record")
        ranked = sorted(records, key=lambda one: one.at or 0.0)
        return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]
    first = of_callers(records) if split == "caller" else of_neighbours(records)
    halves: tuple[list[Example], list[Example]] = ([], [])
    for one in records:
        halves[one.id not in first].append(one)
    return halves


def of_callers(records: Sequence[Example]) -> set[str]:
    """The ids in one half, where each caller's records stay together. Raises Unproven for a single caller."""
    callers = sorted({one.caller or "" for one in records})
    if len(callers) < 2:
        raise Unproven("a split by caller needs two callers")
    random.Random(SEED).shuffle(callers)  # noqa: S311  (repeatable, not secret)
    first = {*callers[: len(callers) // 2]}
    return {one.id for one in records if (one.caller or "") in first}


def of_neighbours(records: Sequence[Example]) -> set[str]:
    """The ids in one half. Groups (`together`) are not divided, nor are runs of neighbours: turns of a conversation are
    alike, and so is what comes of them, so none may be judged by what was learned from another.

    Of two runs that follow each other each half has one, but for long conversations: of them chance would give a half
    too many (MOST), or all. Requests with outcomes are parted by themselves, as they may all be of one time.
    """
    chance = random.Random(SEED)  # noqa: S311  (repeatable, not secret)
    sides = [side for _ in range(RUNS // 2) for side in chance.sample((True, False), 2)]
    names, found = together(records), dict[str, bool]()
    for known in (True, False):
        rows = [names[one.id] for one in records if (one.failed is not None) is known]
        first, among = dict(zip(rows, runs(rows, RUNS), strict=True)), rows if known else [*names.values()]
        counts, held = Counter(among), Counter(found[name] for name in among if name in found)
        for name in [name for name in first if name not in found]:
            side = sides[first[name]]
            found[name] = side if held[side] + counts[name] <= MOST * len(among) else not side
            held[found[name]] += counts[name]
    return {one.id for one in records if found[names[one.id]]}


def together(records: Sequence[Example]) -> dict[str, str]:
    """By id, the name of its group, which must stay in one half: the requests of the same inputs, as they are one that
    was sent again, if they are not so many (KIND) as to be a kind of requests; else those of its conversation. A name
    that most have, as conversations have that all begin alike, is none, and each stands for itself."""
    rows = {one.id: repr(sorted(told(one).items())) if one.measures else one.id for one in records}
    counts = Counter([*rows.values(), *(one.conversation for one in records)])

    def name(one: Example) -> str:
        again, whole = rows[one.id], one.conversation
        if 1 < counts[again] <= len(records) / KIND:
            return again
        return whole if whole and counts[whole] * 2 <= len(records) else one.id

    return {one.id: name(one) for one in records}
