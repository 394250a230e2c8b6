"""Which records is a calibration fitted on, and which judge it?"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from gateway.calibrate.outcomes import Example, told
from gateway.calibrate.report import KIND

RUNS = 40  # of neighbours, each in one half
SEED = 20261122

Split = Literal["time", "caller", "id"]


class Unproven(Exception):
    """The records do not show what was asked for; the message says what is missing."""


def in_order(records: Sequence[Example]) -> list[Example]:
    """Each caller's records one after another, so that turns of a conversation are neighbours."""
    return sorted(records, key=lambda one: (one.caller or "", one.at or 0.0))


def parted(records: Sequence[Example], split: Split) -> tuple[list[Example], list[Example]]:
    """The records to fit on, and those to evaluate on. Raises Unproven when they cannot be split so."""
    if split == "time":
        if any(one.at is None for one in records):
            raise Unproven("a split by time needs `at` in every record")
        ranked = sorted(records, key=lambda one: one.at or 0.0)
        return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]
    keys = {one.id: one.caller or "" for one in records} if split == "caller" else neighbours(records)
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


def neighbours(records: Sequence[Example]) -> dict[str, str]:
    """By id, a name for what must stay in one half: a run of neighbours, and with it what was sent again. Turns of one
    conversation are alike, and so is what comes of them: those must not be judged by what was learned from these."""
    names, runs = repeats(records), dict[str, int]()
    for at, one in enumerate(records):
        runs.setdefault(names[one.id], at * RUNS // len(records))
    return {one.id: str(runs[names[one.id]]) for one in records}
