"""Which tile sizes and grid does each kernel get?   Pure functions of shapes, so testable without a GPU."""

from dataclasses import dataclass
from enum import StrEnum

from backends.recipes.models import MODELS


class Format(StrEnum):
    """The storage format of weights."""

    BF16 = "bf16"
    FP8 = "fp8"  # e4m3, one fp32 scale for each block of 128 x 128
    MXFP4 = "mxfp4"  # e2m1, two to a byte, the first in the low bits; one e8m0 scale for 32 values of a row


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of one MoE layer."""

    experts: int
    top: int  # k, experts of a token
    hidden: int
    inner: int  # an expert's intermediate size


@dataclass(frozen=True, slots=True)
class Tile:
    """The tile of one matrix kernel, with Triton's `num_warps` and `num_stages`."""

    rows: int  # slots
    columns: int  # outputs
    depth: int  # of the reduced dimension, in one step
    warps: int
    stages: int
    splits: int  # split-K: partial products, which the sum kernel adds


@dataclass(frozen=True, slots=True)
class Launch:
    """The tiles of a layer's two matrix kernels, with equal `rows`, as both take the same blocks."""

    gate_up: Tile
    down: Tile
    programs: int  # the grid of the persistent matrix kernels


SHAPES = {
    **{f"v4-{tier}": Shape(each.experts, each.top_k, each.hidden, each.inner) for tier, each in MODELS.items()},
    "qwen3-30b": Shape(128, 8, 2048, 768),
    "mixtral": Shape(8, 2, 4096, 14336),
    "gpt-oss-20b": Shape(32, 4, 2880, 2880),
}
H200 = 132  # multiprocessors
RESIDENT = 2  # programs that run on a multiprocessor at once
MXFP4_ROWS = 32  # at most: with more, Triton 3.6 takes wgmma, for which it cannot decode MXFP4
ROUTED = 256  # up to so many tokens one program routes or aligns all


def choose(shape: Shape, form: Format, tokens: int, processors: int = H200) -> Launch:
    """The launch for `tokens` tokens. Raises ValueError when no tile of this format divides the shape."""
    rows = _rows(shape, tokens, MXFP4_ROWS if form is Format.MXFP4 else 64)
    programs = RESIDENT * processors
    down = _tile(form, rows, shape.hidden, shape.inner)
    blocks = min(tokens * shape.top, shape.experts)
    splits = _splits(blocks * (shape.hidden // down.columns), shape.inner // down.depth, programs)
    gate_up = _tile(form, rows, shape.inner, shape.hidden)
    return Launch(gate_up, Tile(rows, down.columns, down.depth, down.warps, down.stages, splits), programs)


def fault(shape: Shape, form: Format, launch: Launch) -> str:
    """Why the launch cannot run this shape; "" if it can."""
    into, back = launch.gate_up, launch.down
    depths = {into.depth, back.depth}
    wrong = {
        "sizes that are no powers of two": any(size & (size - 1) for tile in (into, back) for size in _sizes(tile)),
        "rows of less than 16": into.rows < 16,
        "rows that differ": into.rows != back.rows,
        "a gate_up in parts": into.splits != 1,
        "a gate_up that does not divide": shape.inner % into.columns or shape.hidden % into.depth,
        "a down that does not divide": shape.hidden % back.columns or shape.inner % (back.depth * back.splits),
        "FP8 without whole blocks": form is Format.FP8 and (shape.hidden % 128 or shape.inner % 128),
        "FP8 deeper than a block": form is Format.FP8 and max(depths) > 128,
        "MXFP4 of less than a group": form is Format.MXFP4 and min(depths) < 32,
        "MXFP4 of more than 32 rows": form is Format.MXFP4 and into.rows > MXFP4_ROWS,
    }
    return ", ".join(what for what, found in wrong.items() if found)


def _sizes(tile: Tile) -> tuple[int, ...]:
    return tile.rows, tile.columns, tile.depth, tile.warps, tile.splits


def most_blocks(pairs: int, experts: int, rows: int) -> int:
    """The most blocks of `rows` slots that `pairs` slots can need, whatever their experts."""
    asked = min(pairs, experts)
    return asked + (pairs - asked) // rows


def _rows(shape: Shape, tokens: int, most: int) -> int:
    """Enough rows for the mean number of slots of a read expert under uniform routing; from 16, the least of a tensor
    core, to `most`."""
    read = shape.experts * (1 - (1 - shape.top / shape.experts) ** tokens)
    each = tokens * shape.top / read
    return next((rows for rows in (16, 32) if each <= rows), most)


def _tile(form: Format, rows: int, outputs: int, inputs: int) -> Tile:
    columns = 64
    depth = 64 if form is Format.BF16 or inputs % 128 else 128
    if outputs % columns or inputs % depth or (form is Format.FP8 and (outputs % 128 or inputs % 128)):
        raise ValueError(f"{form} has no tile for a matrix of {outputs} x {inputs}")
    return Tile(rows, columns, depth, warps=4, stages=4 if rows < 64 else 3, splits=1)


def _splits(work: int, steps: int, programs: int) -> int:
    """The fewest splits with at least one tile for every program, of those that divide the number of steps."""
    fitting = [parts for parts in (1, 2, 4) if steps % parts == 0]
    return next((parts for parts in fitting if work * parts >= programs), fitting[-1])
