"""Which layers and routings are measured?   Random ones, made on the device, and our kernels' launchers on them."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backends.flashmoe.kernels import down, gate_up
from backends.flashmoe.kernels.align import align
from backends.flashmoe.kernels.devices import known
from backends.flashmoe.kernels.gate_up import SWIGLU, V4, Activation
from backends.flashmoe.kernels.launch import Format, Launch, Shape, choose
from backends.flashmoe.kernels.weights import BLOCK, GROUP, Weights
from backends.flashmoe.policy import SKIPPED, Piggyback, Routing
from loadtest.kernels.clock import device
from loadtest.kernels.plan import Mask

CHUNK = 4  # tokens that the reference takes at once: it copies each slot's matrices
FEW = 2  # multiprocessors that are assumed where there is no GPU


@dataclass(frozen=True, slots=True)
class Layer:
    """The experts of one layer."""

    shape: Shape
    form: Format
    up: Weights
    down: Weights
    act: Activation


@dataclass(frozen=True, slots=True)
class Draw:
    """The routing of one step in a layer."""

    hidden: Tensor  # [B, H] bf16
    ids: Tensor  # [B, k] int32, SKIPPED where a slot is not kept; in the order of their weights
    share: Tensor  # [B, k] fp32, 0 where a slot is not kept

    @property
    def distinct(self) -> int:
        """The number of distinct experts that are read."""
        return int(self.ids[self.ids != SKIPPED].unique().numel())


def layer(name: str, shape: Shape, form: Format, seed: int = 0) -> Layer:
    """A layer of random weights, scaled so that outputs have about the norm of inputs."""
    chance = torch.Generator(device()).manual_seed(seed)
    act = V4 if name in {"v4-flash", "tiny"} else SWIGLU
    first = _weights(form, (shape.experts, 2 * shape.inner, shape.hidden), chance)
    return Layer(shape, form, first, _weights(form, (shape.experts, shape.hidden, shape.inner), chance), act)


def draws(shape: Shape, batch: int, mask: Mask, routing: str, count: int) -> list[Draw]:
    """`count` routings of `batch` tokens, before the mask the same for every format and mask."""
    chance = torch.Generator(device()).manual_seed(batch)
    popular = torch.randperm(shape.experts, generator=chance, device=chance.device).float() + 1
    bias = -popular.log() if routing == "zipf" else torch.zeros_like(popular)
    return [_draw(shape, batch, mask, bias, chance) for _ in range(count)]


def launched(shape: Shape, form: Format, tokens: int) -> Launch:
    """The launch configuration for such a layer on this device."""
    if device().type != "cuda":
        return choose(shape, form, tokens, FEW)
    facts = torch.cuda.get_device_properties(0)
    found = known(facts.name)
    return found.launch(shape, form, tokens) if found else choose(shape, form, tokens, facts.multi_processor_count)


def ours(one: Layer, draw: Draw, launch: Launch) -> Tensor:
    """The layer's output [B, H] by our kernels, from expert ids on."""
    blocks = align(draw.ids, one.shape.experts, launch.down.rows)
    inner = gate_up.gate_up(draw.hidden, one.up, blocks, one.act, launch.gate_up, launch.programs)
    return down.down(inner, one.down, draw.ids, draw.share, blocks, launch.down, launch.programs)


def truth(one: Layer, draw: Draw) -> Tensor:
    """The layer's output [B, H] by torch, in fp32 but for the inner values. Only read experts are dequantised."""
    asked, ids = draw.ids.clamp_min(0).unique(return_inverse=True)
    ids = ids.int().masked_fill(draw.ids == SKIPPED, SKIPPED)
    first, last = (_chosen(weights, asked) for weights in (one.up, one.down))
    said = []
    for hidden, some, share in zip(*(t.split(CHUNK) for t in (draw.hidden, ids, draw.share)), strict=True):
        inner = gate_up.reference(hidden, first, some, one.act).bfloat16()
        said.append(down.reference(inner, last, some, share))
    return torch.cat(said)


def error(found: Tensor, expected: Tensor) -> float:
    """The relative error: norm of the difference over the expected norm; infinite where values are not finite."""
    apart = (found.float() - expected).norm() / expected.norm().clamp_min(1e-30)
    return float(apart.nan_to_num(float("inf")))


def _chosen(weights: Weights, experts: Tensor) -> Weights:
    scales = weights.scales[experts] if weights.scales.numel() else weights.scales
    return replace(weights, data=weights.data[experts], scales=scales)


def _draw(shape: Shape, batch: int, mask: Mask, bias: Tensor, chance: torch.Generator) -> Draw:
    where = bias.device
    noise = torch.rand(batch, shape.experts, generator=chance, device=where).clamp(1e-6, 1 - 1e-6)
    ids = (bias - (-noise.log()).log()).topk(shape.top).indices  # without putting back, by their popularity
    weights = torch.randn(batch, shape.top, generator=chance, device=where).softmax(1).sort(1, descending=True).values
    hidden = torch.randn(batch, shape.hidden, generator=chance, device=where).bfloat16()
    kept = mask.base(shape.top)
    budget = int(kept) + (torch.rand(batch, generator=chance, device=where) < kept % 1)
    keep = torch.arange(shape.top, device=where) < budget[:, None]
    if mask.piggyback:
        one = torch.zeros(batch, dtype=torch.int64, device=where)
        keep = Piggyback()(Routing(0, shape.experts, ids, weights, weights, one, 1), keep)
    return Draw(hidden, ids.int().masked_fill(~keep, SKIPPED).contiguous(), (weights * keep).contiguous())


def _weights(form: Format, size: tuple[int, int, int], chance: torch.Generator) -> Weights:
    """Matrices [E, rows, columns] of random bits whose rows have about length 1."""
    experts, rows, columns = size
    where, near = chance.device, columns**-0.5
    if form is Format.BF16:
        data = torch.empty(size, dtype=torch.bfloat16, device=where).normal_(0, near, generator=chance)
        return Weights(form, data, torch.empty(0, device=where))
    if form is Format.FP8:
        bits = torch.randint(0, 256, size, dtype=torch.uint8, device=where, generator=chance)
        scales = torch.full((experts, rows // BLOCK, columns // BLOCK), 2 * near, device=where)
        return Weights(form, bits.bitwise_and_(0b10111111).view(torch.float8_e4m3fn), scales)  # below 2, and no NaN
    data = torch.randint(0, 256, (experts, rows, columns // 2), dtype=torch.uint8, device=where, generator=chance)
    scales = torch.full((experts, rows, columns // GROUP), 127 + round(math.log2(near / 3)), dtype=torch.uint8)
    return Weights(form, data, scales.to(where))
