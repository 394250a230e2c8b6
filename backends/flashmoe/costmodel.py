"""By how much can a decode step become faster when fewer experts are read?   Upper bounds from the model's shape.

Decoding is bound by memory bandwidth: a step takes at least the bytes of the weights it reads over the bandwidth. All
follows from a model's published shape; nothing here was timed. Routing is taken as uniform and independent between
tokens; skewed routing reads fewer distinct experts, so there is less to gain. Sizes are bytes, times seconds.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from backends.recipes.models import FP4_EXPERT, MODELS

H200_RATE = 4.3e12  # memory bandwidth that a copy reaches on an H200, bytes a second
H200_FLOPS = 791e12  # dense bf16, operations a second
BYTES = {"bf16": 2.0, "fp8": 1.0, "mxfp4": FP4_EXPERT}  # of a parameter


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a mixture-of-experts model, from its model card."""

    name: str
    layers: int
    experts: int  # routed, in one layer
    top_k: int
    hidden: int
    inner: int  # an expert's intermediate size
    active: float  # active parameters of a token
    format: str  # of the routed experts' weights, a key of BYTES
    rest: str  # of all other weights

    @property
    def expert_params(self) -> int:
        """Parameters of one expert: gate, up and down projection."""
        return 3 * self.hidden * self.inner

    @property
    def expert_bytes(self) -> float:
        return self.expert_params * BYTES[self.format]

    @property
    def rest_bytes(self) -> float:
        """Bytes that every step reads beside the routed experts: attention, shared experts, head."""
        return (self.active - self.layers * self.top_k * self.expert_params) * BYTES[self.rest]


_FLASH = MODELS["flash"]
V4_FLASH = Shape(
    "V4-Flash", _FLASH.layers, _FLASH.experts, _FLASH.top_k, _FLASH.hidden, _FLASH.inner, 13e9, "mxfp4", "fp8"
)
QWEN3_30B = Shape("Qwen3-30B-A3B", 48, 128, 8, 2048, 768, 3.3e9, "bf16", "bf16")
MIXTRAL = Shape("Mixtral-8x7B", 32, 8, 2, 4096, 14336, 12.9e9, "bf16", "bf16")


def distinct(experts: int, k: float, batch: int) -> float:
    """Expected number of distinct experts of a layer for `batch` tokens with k experts each."""
    return experts * (1 - (1 - k / experts) ** batch)


def layer_bound(shape: Shape, k: float, batch: int) -> float:
    """The largest speed-up of a layer's routed experts with k instead of top_k experts a token."""
    return distinct(shape.experts, shape.top_k, batch) / distinct(shape.experts, k, batch)


def step_bound(shape: Shape, k: float, batch: int) -> float:
    """The largest speed-up of a whole decode step with k experts a token; k = 0 skips all routed experts."""
    return _step_bytes(shape, shape.top_k, batch) / _step_bytes(shape, k, batch)


def compute_bound_from(shape: Shape) -> float:
    """Tokens of one step that an expert must have before it is bound by compute, not by memory, on an H200."""
    return shape.expert_bytes / H200_RATE * H200_FLOPS / (2 * shape.expert_params)


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """Linear interpolation between points (x, y) at x = `at`; NaN outside of them."""
    for (left, low), (right, high) in itertools.pairwise(sorted(points)):
        if left <= at <= right:
            return low + (high - low) * ((at - left) / (right - left) if right > left else 0.0)
    return math.nan


def _step_bytes(shape: Shape, k: float, batch: int) -> float:
    return shape.layers * distinct(shape.experts, k, batch) * shape.expert_bytes + shape.rest_bytes


def tables() -> str:
    """Bounds for several models, k and batch sizes, as a Markdown table."""
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
