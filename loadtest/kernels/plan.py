"""What is measured, in which order, and how many bytes must each case read?   Needs neither torch nor a GPU."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from backends.flashmoe.costmodel import BYTES
from backends.flashmoe.kernels.launch import SHAPES, Format, Shape

BATCHES = (1, 16, 64, 4, 8, 32, 2)  # in the order of what the goals ask first
DRAWS = 16  # routings in turn, so that a small batch finds its experts not in the cache
OURS = "ours"
RIVALS = ("eager", "grouped_mm", "batched_mm", "grouped_mm in a graph", "batched_mm in a graph", "vllm")


@dataclass(frozen=True, slots=True)
class Mask:
    """Which slots are kept: each token's best, and with piggyback those whose experts the batch reads anyway."""

    name: str
    part: float  # of the token's slots
    more: int = 0
    piggyback: bool = False

    def base(self, top: int) -> float:
        """Mean slots kept of a token before piggyback; at least one."""
        return min(max(1.0, self.part * top + self.more), top)


FULL = Mask("full", 1.0)
RIDING = Mask("1/2, piggyback", 0.5, piggyback=True)
MASKS = (
    FULL,
    RIDING,
    Mask("1/2", 0.5),
    Mask("2/3", 2 / 3),
    Mask("5/16", 5 / 16),
    Mask("1/2 + 1, piggyback", 0.5, 1, True),
)
BY_NAME = {mask.name: mask for mask in MASKS}


@dataclass(frozen=True, slots=True)
class Case:
    """One figure: a layer of `shape`, in `form`, for so many tokens, run in a way."""

    shape: str
    form: Format
    batch: int
    mask: Mask
    routing: str  # uniform or zipf
    way: str

    @property
    def name(self) -> str:
        return f"{self.shape} {self.form} B={self.batch} {self.mask.name} {self.routing} {self.way}"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a command that runs in a process of its own. `seconds`: after which it is ended."""

    name: str
    seconds: float


GRID = ("v4-flash", "qwen3-30b", "mixtral")
Together = tuple[Part, ...]  # parts that run at once: they are checked, not timed, and compile on many cores
PARTS: dict[str, tuple[Together, ...]] = {
    "grid": (
        (Part("ceilings", 60),),
        tuple(Part(f"correct-{shape}-{form}", 80) for shape, form in product(GRID, Format)),
        (Part("v4-flash", 200),),
        (Part("qwen3-30b", 110),),
        (Part("mixtral", 85),),
    ),
    "quality": ((Part("policies", 530),),),
    "serve": ((Part("serve-qwen3-30b", 310),), (Part("serve-v4-flash", 220),)),
}
TINY_SHAPE = Shape(experts=6, top=2, hidden=128, inner=128)
TINY_PARTS: dict[str, tuple[Together, ...]] = {
    "grid": ((Part("ceilings", 90),), (Part("correct-tiny-all", 120),), (Part("tiny", 150),)),
    "quality": ((Part("policies", 240),),),
    "serve": ((Part("serve-qwen3-30b", 120),), (Part("serve-v4-flash", 120),)),
}


def shape_of(name: str) -> Shape:
    """The shape of that name. Raises KeyError."""
    return TINY_SHAPE if name == "tiny" else SHAPES[name]


def cases(name: str) -> Iterator[Case]:
    """Every case of a shape, the most important first, as the last are left out when time is short."""
    if name == "tiny":
        yield from (Case(name, form, 3, mask, "uniform", OURS) for form, mask in product(Format, (FULL, RIDING)))
        yield from (Case(name, Format.BF16, 3, FULL, "uniform", way) for way in RIVALS)
        return
    first = (Format.MXFP4, Format.BF16, Format.FP8)
    for batch, form, mask in product(BATCHES, first, (FULL, RIDING)):
        yield Case(name, form, batch, mask, "uniform", OURS)
    for batch, way in product(BATCHES, RIVALS):
        yield Case(name, Format.BF16, batch, FULL, "uniform", way)
    for mask, batch, form in product(MASKS[2:], BATCHES, first[:2]):
        yield Case(name, form, batch, mask, "uniform", OURS)
    for batch, form, mask in product(BATCHES, first[:2], (FULL, RIDING)):
        yield Case(name, form, batch, mask, "zipf", OURS)


def expert_bytes(shape: Shape, form: Format) -> float:
    """Bytes of one expert: gate, up and down projection, with their scales."""
    scales = 3 * shape.hidden * shape.inner / 128**2 * 4 if form is Format.FP8 else 0.0
    return 3 * shape.hidden * shape.inner * BYTES[form] + scales


def copied(shape: Shape, batch: int) -> float:
    """Bytes that batched_mm makes a copy of: the bf16 matrices of every slot's expert."""
    return batch * shape.top * 2 * shape.hidden * shape.inner * BYTES["bf16"]


def repeats(each: float) -> int:
    """Repetitions of a call that takes so long: a fifth of a second in sum, from 10 to 60."""
    return max(10, min(60, math.ceil(0.2 / max(each, 1e-9))))
