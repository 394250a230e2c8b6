"""The down projection of each kept slot, and the weighted sum over a token's slots, always in the same order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.flashmoe.kernels.align import Blocks
from backends.flashmoe.kernels.launch import Tile
from backends.flashmoe.kernels.weights import INTERPRETED, Weights, add_product, dense

SUMMED = 1024  # hidden units that one program of the sum writes
SUMMING = {"num_warps": 4, "num_stages": 1}


def reference(inner: Tensor, weights: Weights, ids: Tensor, share: Tensor) -> Tensor:
    """inner [N * k, I], weights [E, H, I], expert ids and router weights `share` [N, k] -> [N, H] fp32."""
    matrix = dense(weights)[ids.clamp_min(0)]  # [N, k, H, I]
    answers = torch.einsum("nki,nkhi->nkh", inner.float().view(*ids.shape, -1), matrix)
    if weights.bias is not None:
        answers = answers + weights.bias[ids.clamp_min(0)]
    return (answers * share[..., None]).masked_fill(ids[..., None] < 0, 0).sum(1)


def down(
    inner: Tensor, weights: Weights, ids: Tensor, share: Tensor, blocks: Blocks, tile: Tile, programs: int
) -> Tensor:
    """As `reference`, in bf16. Rows of `inner` of skipped slots are not read. Deterministic to the bit.

    `blocks` holds the kept slots of `ids`; `programs`: of the persistent matrix kernel.
    """
    experts, outputs, inputs = weights.shape
    pairs, width = inner.shape
    assert inner.dtype == torch.bfloat16 and inner.is_contiguous() and weights.data.is_contiguous()
    assert ids.dtype == torch.int32 and share.dtype == torch.float32 and ids.numel() == share.numel() == pairs
    assert inner.numel() < 2**31  # offsets have 32 bits
    assert width == inputs and outputs % tile.columns == 0 and inputs % (tile.depth * tile.splits) == 0
    assert blocks.rows == tile.rows
    assert weights.bias is None or weights.bias.shape == (experts, outputs)
    parts = inner.new_empty(tile.splits, pairs, outputs, dtype=torch.float32)
    kernel[(programs,)](
        inner, weights.data, weights.scales, parts, blocks.slots, blocks.expert, blocks.work, pairs,
        **constants(weights, tile, programs), WIDE=INTERPRETED, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    out = inner.new_empty(ids.shape[0], outputs)
    sum_kernel[(ids.shape[0], triton.cdiv(outputs, SUMMED))](
        parts, ids, share, weights.bias if weights.bias is not None else share, out, pairs,
        **sum_constants(weights, blocks.top, tile), **SUMMING,
    )  # fmt: skip
    return out


def constants(weights: Weights, tile: Tile, programs: int) -> dict[str, object]:
    """The matrix kernel's constexpr arguments but WIDE."""
    _, outputs, inputs = weights.shape
    return {
        "HIDDEN": outputs,
        "INNER": inputs,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "SPLITS": tile.splits,
        "PROGRAMS": programs,
        "FORM": str(weights.form),
        "MATRIX": weights.data[0].numel(),
        "SCALES": weights.scales[0].numel() if weights.scales.numel() else 0,
    }


def sum_constants(weights: Weights, top: int, tile: Tile) -> dict[str, object]:
    """The constexpr arguments of the sum."""
    return {
        "TOP": top,
        "HIDDEN": weights.shape[1],
        "SPLITS": tile.splits,
        "WIDTH": SUMMED,
        "BIAS": weights.bias is not None,
    }


@triton.jit(do_not_specialize=["pairs"])  # one program for all, the one that machine_code.py checks
def kernel(
    inner, data, scales, parts, slots, expert_of, work, pairs,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr, PROGRAMS: tl.constexpr, FORM: tl.constexpr, MATRIX: tl.constexpr, SCALES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Persistent, split-K: each program takes every PROGRAMS-th (block, tile, split). Writes the partial products
    parts [SPLITS, pairs, HIDDEN] fp32, without router weights."""
    TILES: tl.constexpr = HIDDEN // COLUMNS
    PART: tl.constexpr = INNER // SPLITS
    item = tl.program_id(0)
    todo = tl.load(work) * TILES * SPLITS
    while item < todo:
        block = item // (TILES * SPLITS)
        expert = tl.load(expert_of + block).to(tl.int64)
        slot = tl.load(slots + block * ROWS + tl.arange(0, ROWS))
        row = item // SPLITS % TILES * COLUMNS + tl.arange(0, COLUMNS)
        start = item % SPLITS * PART
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        x_at = inner + slot[:, None] * INNER + start + tl.arange(0, DEPTH)[None, :]
        for at in range(0, PART, DEPTH):
            x = tl.load(x_at + at, mask=(slot >= 0)[:, None], other=0.0)
            total = add_product(
                total, x, data + expert * MATRIX, scales + expert * SCALES, row, start + at, INNER, DEPTH, FORM, WIDE
            )
        out = parts + (item % SPLITS * pairs + slot).to(tl.int64)[:, None] * HIDDEN + row[None, :]
        tl.store(out, total, mask=(slot >= 0)[:, None])
        item += PROGRAMS


@triton.jit(do_not_specialize=["pairs"])
def sum_kernel(
    parts, ids, share, bias, out, pairs,
    TOP: tl.constexpr, HIDDEN: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for which in tl.static_range(TOP):
        slot = token * TOP + which
        expert = tl.load(ids + slot)
        real = (column < HIDDEN) & (expert >= 0)
        answer = tl.zeros((WIDTH,), tl.float32)
        for part in tl.static_range(SPLITS):
            answer += tl.load(parts + (part * pairs + slot).to(tl.int64) * HIDDEN + column, mask=real, other=0.0)
        if BIAS:
            answer += tl.load(bias + expert * HIDDEN + column, mask=real, other=0.0)
        total += answer * tl.load(share + slot)
    tl.store(out + token.to(tl.int64) * HIDDEN + column, total.to(tl.bfloat16), mask=column < HIDDEN)
