"""Which experts does a token keep in hash-routed layers?   `tid2eid` tables, cut to fewer columns.

A table [vocabulary, top_k] gives the experts of each token id; servers take a row as a set and weight its experts by
the gate. `first` keeps the first columns, though no source says that their order means anything. `calibrated` keeps the
experts with the highest score in a file of backends/scores.py: F32 tensors of the tables' shapes and names, with
`.score` appended.
"""

import math
from array import array
from pathlib import Path
from typing import Literal, cast

from backends.shards import ShardError, Tensor, header, numbers

Choice = Literal["first", "calibrated"]
SCORE = ".score"


def cut(ids: "array[int]", of: int, kept: int) -> "array[int]":
    """The first `kept` of `of` columns of a flat table, as I32."""
    found = array("i", bytes(4 * (len(ids) // of) * kept))
    for column in range(kept):
        found[column::kept] = array("i", ids[column::of])
    return found


def ranked(ids: "array[int]", scores: "array[float]", of: int) -> "array[int]":
    """The ids with each row of `of` columns sorted by score, highest first; a row with a NaN (a token that was never
    measured) keeps its order."""
    found = array(ids.typecode, ids)
    for at in range(0, len(ids), of):
        row = list(zip(scores[at : at + of], ids[at : at + of], strict=True))
        if not any(math.isnan(score) for score, _ in row):
            found[at : at + of] = array(ids.typecode, [one for _, one in sorted(row, key=lambda pair: -pair[0])])
    return found


def ids_of(path: Path, name: str, table: Tensor, experts: int) -> "array[int]":
    """A table's expert ids, flat. Raises ShardError for one that is out of range."""
    ids = cast("array[int]", numbers(path, table))
    if ids and not 0 <= min(ids) <= max(ids) < experts:
        raise ShardError(f"{name} has ids from {min(ids)} to {max(ids)}; there are {experts} experts")
    return ids


def scores_of(calibration: Path, name: str, table: Tensor) -> "array[float]":
    """A table's scores, flat. Raises ShardError when the file has no F32 tensor of that name and shape, OSError."""
    found = header(calibration).tensors.get(name + SCORE)
    if found is None or found.shape != table.shape or found.dtype != "F32":
        raise ShardError(f"{calibration}: no F32 {list(table.shape)} under {name}{SCORE}")
    return cast("array[float]", numbers(calibration, found))
