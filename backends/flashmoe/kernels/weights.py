"""How are a layer's expert matrices stored, and how does a kernel load a tile of them?"""

import os
from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.flashmoe.kernels.launch import Format

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # its bf16 products are wrong, so it multiplies in fp32
BLOCK = 128  # rows and columns that share a scale of Format.FP8
GROUP = 32  # columns that share a scale of Format.MXFP4
LARGEST = 128  # the largest e8m0 scale that the kernels can apply: 2 ** (128 - 127)
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BLOCK, _GROUP = tl.constexpr(BLOCK), tl.constexpr(GROUP)


@dataclass(frozen=True, slots=True)
class Weights:
    """A matrix [rows, columns] for each of E experts, row-major as in torch's Linear ([out, in])."""

    form: Format
    data: Tensor  # [E, rows, columns] bf16 or float8_e4m3fn; MXFP4: [E, rows, columns / 2] uint8
    scales: Tensor  # FP8: [E, rows / 128, columns / 128] fp32; MXFP4: [E, rows, columns / 32] uint8; BF16: empty
    bias: Tensor | None = None  # [E, rows] bf16

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, rows, columns)"""
        experts, rows, columns = self.data.shape
        return experts, rows, columns * (2 if self.form is Format.MXFP4 else 1)


def pack(dense: Tensor, form: Format, bias: Tensor | None = None) -> Weights:
    """`dense` [E, rows, columns] quantised to `form`. Raises ValueError for MXFP4 of absolute values above 12."""
    none = dense.new_empty(0, dtype=torch.float32)
    kept = None if bias is None else bias.bfloat16().contiguous()
    if form is Format.BF16:
        return Weights(form, dense.bfloat16().contiguous(), none, kept)
    data, scales = _fp8(dense.float()) if form is Format.FP8 else _mxfp4(dense.float())
    return Weights(form, data, scales, kept)


def dense(weights: Weights) -> Tensor:
    """The dequantised weights: [E, rows, columns] fp32."""
    if weights.form is Format.BF16:
        return weights.data.float()
    if weights.form is Format.FP8:
        return weights.data.float() * weights.scales.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    table = torch.tensor([*FP4, *(-value for value in FP4)], device=weights.data.device)
    values = table[torch.stack((weights.data & 15, weights.data >> 4), -1).flatten(2).long()]
    return values * torch.exp2(weights.scales.float() - 127).repeat_interleave(GROUP, 2)


def _fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    experts, rows, columns = values.shape
    blocks = values.view(experts, rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = (blocks.abs().amax((2, 4)) / torch.finfo(torch.float8_e4m3fn).max).clamp_min(1e-12)
    scaled = blocks / scales[:, :, None, :, None]
    return scaled.view(values.shape).to(torch.float8_e4m3fn), scales.contiguous()


def _mxfp4(values: Tensor) -> tuple[Tensor, Tensor]:
    groups = values.unflatten(2, (-1, GROUP))
    exponents = torch.log2(groups.abs().amax(-1).clamp_min(2.0**-100) / FP4[-1]).ceil() + 127
    if exponents.max() > LARGEST:
        raise ValueError("MXFP4 here holds values up to 12")
    scaled = groups / torch.exp2(exponents - 127)[..., None]
    middles = torch.tensor([(low + high) / 2 for low, high in pairwise(FP4)], device=values.device)
    codes = torch.bucketize(scaled.abs(), middles) + 8 * (scaled < 0)
    flat = codes.flatten(2).to(torch.uint8)
    return (flat[..., ::2] | flat[..., 1::2] << 4).contiguous(), exponents.to(torch.uint8).contiguous()


@triton.jit
def add_product(
    total, x, data, scales, rows, at, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, FORM: tl.constexpr, WIDE: tl.constexpr
):
    """`total` [M, N] + x [M, DEPTH] @ W[rows, at : at + DEPTH].T, W being one expert's matrix, rows [N]. `WIDE`:
    multiply in fp32."""
    if FORM == "mxfp4":
        tile = _read_fp4(data, scales, rows, at, COLUMNS, DEPTH)
    else:
        tile = tl.load(data + rows[:, None] * COLUMNS + (at + tl.arange(0, DEPTH))[None, :]).to(tl.bfloat16)
    if WIDE:
        product = tl.dot(x.to(tl.float32), tl.trans(tile.to(tl.float32)))
    else:
        product = tl.dot(x, tl.trans(tile))
    if FORM == "fp8":
        product *= tl.load(scales + rows // _BLOCK * (COLUMNS // _BLOCK) + at // _BLOCK)[None, :]
    return total + product


@triton.jit
def _read_fp4(data, scales, rows, at, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """A tile [N, DEPTH] of MXFP4, dequantised to bf16."""
    half = tl.arange(0, DEPTH // 2)
    pair = tl.load(data + rows[:, None] * (COLUMNS // 2) + (at // 2 + half)[None, :]).to(tl.int32)
    power = tl.load(scales + rows[:, None] * (COLUMNS // _GROUP) + ((at + 2 * half) // _GROUP)[None, :])
    # A code's exponent and mantissa bits, put where fp32 has its own, read as the value times 2**-126 (0.5: subnormal).
    scale = ((power.to(tl.int32) + 126) << 23).to(tl.float32, bitcast=True)
    low = ((pair & 7) << 22) | ((pair & 8) << 28)
    high = ((pair & 112) << 18) | ((pair & 128) << 24)
    first = (low.to(tl.float32, bitcast=True) * scale).to(tl.bfloat16)
    second = (high.to(tl.float32, bitcast=True) * scale).to(tl.bfloat16)
    return tl.interleave(first, second)
