"""The gate and up projections with the activation: act(gate(x), up(x)) for each kept slot."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.flashmoe.kernels.align import Blocks
from backends.flashmoe.kernels.launch import Tile
from backends.flashmoe.kernels.weights import INTERPRETED, Weights, add_product, dense


@dataclass(frozen=True, slots=True)
class Activation:
    """gate * sigmoid(alpha * gate) * (up + shift), gate clamped to at most `limit` and up to +-`limit`; 0: no limit.

    `interleaved`: gate and up are the even and the odd rows of the matrix, not its first and its second half.
    """

    limit: float = 0.0
    alpha: float = 1.0
    shift: float = 0.0
    interleaved: bool = False


SWIGLU = Activation()
V4 = Activation(limit=10.0)
GPT_OSS = Activation(limit=7.0, alpha=1.702, shift=1.0, interleaved=True)


def reference(hidden: Tensor, weights: Weights, ids: Tensor, act: Activation) -> Tensor:
    """hidden [N, H], weights [E, 2 I, H], ids [N, k] -> [N * k, I] fp32; zero where a slot is skipped."""
    matrix = dense(weights)[ids.clamp_min(0)]  # [N, k, 2 I, H]
    both = torch.einsum("nh,nkih->nki", hidden.float(), matrix)
    if weights.bias is not None:
        both = both + weights.bias[ids.clamp_min(0)]
    return activated(both, act).masked_fill(ids[..., None] < 0, 0).flatten(0, 1)


def activated(both: Tensor, act: Activation) -> Tensor:
    """The activation of stacked gate and up: [..., 2 I] -> [..., I]."""
    gate, up = (both[..., ::2], both[..., 1::2]) if act.interleaved else both.chunk(2, -1)
    if act.limit:
        gate, up = gate.clamp(max=act.limit), up.clamp(-act.limit, act.limit)
    return gate * torch.sigmoid(act.alpha * gate) * (up + act.shift)


def gate_up(hidden: Tensor, weights: Weights, blocks: Blocks, act: Activation, tile: Tile, programs: int) -> Tensor:
    """hidden [N, H] bf16, weights [E, 2 I, H] -> [N * k, I] bf16; rows of skipped slots stay uninitialised."""
    experts, outputs, inputs = weights.shape
    tokens, width = hidden.shape
    assert hidden.dtype == torch.bfloat16 and hidden.is_contiguous() and weights.data.is_contiguous()
    assert width == inputs and outputs % (2 * tile.columns) == 0 and inputs % tile.depth == 0
    assert blocks.rows == tile.rows
    assert weights.bias is None or weights.bias.shape == (experts, outputs)
    inner = hidden.new_empty(tokens * blocks.top, outputs // 2)
    assert max(inner.numel(), hidden.numel()) < 2**31  # offsets have 32 bits
    kernel[(programs,)](
        hidden,
        weights.data,
        weights.scales,
        weights.bias if weights.bias is not None else weights.scales,
        inner,
        blocks.slots,
        blocks.expert,
        blocks.work,
        **constants(weights, blocks.top, act, tile, programs),
        WIDE=INTERPRETED,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return inner


def constants(weights: Weights, top: int, act: Activation, tile: Tile, programs: int) -> dict[str, object]:
    """The kernel's constexpr arguments but WIDE."""
    _, outputs, inputs = weights.shape
    return {
        "TOP": top,
        "INNER": outputs // 2,
        "HIDDEN": inputs,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "PROGRAMS": programs,
        "FORM": str(weights.form),
        "BIAS": weights.bias is not None,
        "INTERLEAVED": act.interleaved,
        "LIMIT": act.limit,
        "ALPHA": act.alpha,
        "SHIFT": act.shift,
        "MATRIX": weights.data[0].numel(),
        "SCALES": weights.scales[0].numel() if weights.scales.numel() else 0,
    }


@triton.jit
def kernel(
    hidden, data, scales, bias, inner, slots, expert_of, work,
    TOP: tl.constexpr, INNER: tl.constexpr, HIDDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PROGRAMS: tl.constexpr, FORM: tl.constexpr, BIAS: tl.constexpr, INTERLEAVED: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, SHIFT: tl.constexpr, MATRIX: tl.constexpr, SCALES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Persistent: each program takes every PROGRAMS-th tile of the blocks that `work` counts. The grid does not depend
    on how much is skipped, so one CUDA graph serves all."""
    TILES: tl.constexpr = INNER // COLUMNS
    item = tl.program_id(0)
    todo = tl.load(work) * TILES
    while item < todo:
        expert = tl.load(expert_of + item // TILES).to(tl.int64)
        slot = tl.load(slots + item // TILES * ROWS + tl.arange(0, ROWS))
        column = item % TILES * COLUMNS + tl.arange(0, COLUMNS)
        own = data + expert * MATRIX
        scaled = scales + expert * SCALES
        first = 2 * column if INTERLEAVED else column
        second = first + (1 if INTERLEAVED else INNER)
        gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        up = tl.zeros((ROWS, COLUMNS), tl.float32)
        x_at = hidden + (slot // TOP)[:, None] * HIDDEN + tl.arange(0, DEPTH)[None, :]
        for at in range(0, HIDDEN, DEPTH):
            x = tl.load(x_at + at, mask=(slot >= 0)[:, None], other=0.0)
            gate = add_product(gate, x, own, scaled, first, at, HIDDEN, DEPTH, FORM, WIDE)
            up = add_product(up, x, own, scaled, second, at, HIDDEN, DEPTH, FORM, WIDE)
        if BIAS:
            gate += tl.load(bias + expert * 2 * INNER + first)[None, :]
            up += tl.load(bias + expert * 2 * INNER + second)[None, :]
        out = _act(gate, up, LIMIT, ALPHA, SHIFT).to(tl.bfloat16)
        tl.store(inner + slot[:, None] * INNER + column[None, :], out, mask=(slot >= 0)[:, None])
        item += PROGRAMS


@triton.jit
def _act(gate, up, LIMIT: tl.constexpr, ALPHA: tl.constexpr, SHIFT: tl.constexpr):
    if LIMIT > 0:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    return gate * tl.sigmoid(ALPHA * gate) * (up + SHIFT)
