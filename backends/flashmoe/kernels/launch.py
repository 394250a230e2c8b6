"""How is each kernel launched? Pure functions of shapes, so that the choice is tested where there is no GPU."""

from dataclasses import dataclass
from enum import StrEnum


class Format(StrEnum):
    """How weights lie in memory."""

    BF16 = "bf16"
    FP8 = "fp8"  # e4m3, one fp32 scale for each 128 x 128
    MXFP4 = "mxfp4"  # e2m1, two to a byte, the first in the low bits, one e8m0 scale for 32 of a row


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer of experts."""

    experts: int
    top: int  # slots of a token
    hidden: int
    inner: int


@dataclass(frozen=True, slots=True)
class Tile:
    """One matrix kernel. Rows are slots, columns outputs; `splits` parts of the inner dimension are summed later."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    splits: int


@dataclass(frozen=True, slots=True)
class Launch:
    """All matrix kernels of a layer; they share `rows`, as they share the list of blocks."""

    gate_up: Tile
    down: Tile
    programs: int  # that run at once; each takes work until there is none


SHAPES = {
    "v4-flash": Shape(256, 6, 4096, 2048),
    "qwen3-30b": Shape(128, 8, 2048, 768),
    "mixtral": Shape(8, 2, 4096, 14336),
    "gpt-oss-20b": Shape(32, 4, 2880, 2880),
}
H200 = 132  # multiprocessors
RESIDENT = 2  # programs a multiprocessor is given at once
MXFP4_ROWS = 32  # at most: Triton 3.6 cannot decode for a warp group's product
ROUTED = 256  # tokens up to which one program routes all


def choose(shape: Shape, form: Format, tokens: int, processors: int = H200) -> Launch:
    """The launch for `tokens` tokens. ValueError: the shape fits no tile of this format."""
    rows = _rows(shape, tokens, MXFP4_ROWS if form is Format.MXFP4 else 64)
    programs = RESIDENT * processors
    down = _tile(form, rows, shape.hidden, shape.inner)
    blocks = min(tokens * shape.top, shape.experts)
    splits = _splits(blocks * (shape.hidden // down.columns), shape.inner // down.depth, programs)
    gate_up = _tile(form, rows, shape.inner, shape.hidden)
    return Launch(gate_up, Tile(rows, down.columns, down.depth, down.warps, down.stages, splits), programs)


def fault(shape: Shape, form: Format, launch: Launch) -> str:
    """What keeps the launch from running this shape, in words; empty if nothing does."""
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
    """The most blocks of `rows` slots that `pairs` slots can fall into, however they are spread over the experts."""
    asked = min(pairs, experts)
    return asked + (pairs - asked) // rows


def _rows(shape: Shape, tokens: int, most: int) -> int:
    """Enough for what an expert is expected to get, up to `most`, and no fewer than a tensor core takes."""
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
    """The fewest parts that give every program something, of those that divide the steps evenly."""
    fitting = [parts for parts in (1, 2, 4) if steps % parts == 0]
    return next((parts for parts in fitting if work * parts >= programs), fitting[-1])
