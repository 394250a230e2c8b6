"""What can reading fewer experts gain, before anything is measured?

Decoding reads weights: a step takes at least the bytes of the distinct experts it touches over the memory's rate. All
of it follows from a model's published shape; nothing here was timed. Bytes are bytes, rates are per second, times are
seconds. Experts are taken as asked uniformly and independently, which skewed routing only lowers.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

H200_RATE = 4.3e12  # bytes a second that a copy reaches on an H200
H200_FLOPS = 791e12  # dense bfloat16
BYTES = {"bf16": 2.0, "fp8": 1.0, "mxfp4": 0.53125}  # of a parameter; mxfp4: four bits, and a scale byte per 32


@dataclass(frozen=True, slots=True)
class Shape:
    """A mixture-of-experts model as its card describes it."""

    name: str
    layers: int
    experts: int  # routed, in one layer
    top_k: int
    hidden: int
    inner: int  # an expert's width
    active: float  # parameters that one token touches
    format: str  # of the routed experts
    rest: str  # of everything else

    @property
    def expert_params(self) -> int:
        """Gate, up and down of one expert."""
        return 3 * self.hidden * self.inner

    @property
    def expert_bytes(self) -> float:
        return self.expert_params * BYTES[self.format]

    @property
    def rest_bytes(self) -> float:
        """What every step reads beside routed experts: attention, shared experts, head."""
        return (self.active - self.layers * self.top_k * self.expert_params) * BYTES[self.rest]


V4_FLASH = Shape("V4-Flash", 43, 256, 6, 4096, 2048, 13e9, "mxfp4", "fp8")
QWEN3_30B = Shape("Qwen3-30B-A3B", 48, 128, 8, 2048, 768, 3.3e9, "bf16", "bf16")
MIXTRAL = Shape("Mixtral-8x7B", 32, 8, 2, 4096, 14336, 12.9e9, "bf16", "bf16")


def distinct(experts: int, k: float, batch: int) -> float:
    """Expected distinct experts that `batch` tokens ask in one layer, k each."""
    return experts * (1 - (1 - k / experts) ** batch)


def layer_bound(shape: Shape, k: float, batch: int) -> float:
    """How many times faster the routed experts can become when each token asks k of them."""
    return distinct(shape.experts, shape.top_k, batch) / distinct(shape.experts, k, batch)


def step_bound(shape: Shape, k: float, batch: int) -> float:
    """How many times faster a whole decode step can become; k = 0 skips all routed experts."""
    return _step_bytes(shape, shape.top_k, batch) / _step_bytes(shape, k, batch)


def compute_bound_from(shape: Shape) -> float:
    """Tokens an expert must be asked by, in one step, before its arithmetic takes longer than reading it on an H200."""
    return shape.expert_bytes / H200_RATE * H200_FLOPS / (2 * shape.expert_params)


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """What lies at `at` on the straight lines between measured (x, y); NaN outside of them."""
    for (left, low), (right, high) in itertools.pairwise(sorted(points)):
        if left <= at <= right:
            return low + (high - low) * ((at - left) / (right - left) if right > left else 0.0)
    return math.nan


def _step_bytes(shape: Shape, k: float, batch: int) -> float:
    return shape.layers * distinct(shape.experts, k, batch) * shape.expert_bytes + shape.rest_bytes


def tables() -> str:
    """The figures that the design rests on, as Markdown."""
    batches = (1, 4, 8, 16, 32, 64, 128, 256)
    head = " | ".join(f"B={batch}" for batch in batches)
    lines = [f"| step / layer bound | {head} |", "|---" * (len(batches) + 1) + "|"]
    cuts = ((V4_FLASH, 4.0), (V4_FLASH, 3.0), (V4_FLASH, 1.875), (QWEN3_30B, 4.0), (MIXTRAL, 1.0))
    for shape, k in cuts:
        cells = (f"{step_bound(shape, k, batch):.2f} / {layer_bound(shape, k, batch):.2f}" for batch in batches)
        lines.append(f"| {shape.name} {shape.top_k} to {k:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
