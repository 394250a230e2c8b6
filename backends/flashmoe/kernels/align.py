"""Which slots does each expert work on? Slots by expert, in blocks that a matrix kernel takes one at a time."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from backends.flashmoe.kernels.launch import ROUTED, most_blocks
from backends.flashmoe.policy import SKIPPED

TOKENS = 16  # that the program holds at once
ALONE = {"num_warps": 8, "num_stages": 1, "maxnreg": 255}  # for one program, which shares no registers with others
_SKIPPED, _TOKENS = tl.constexpr(SKIPPED), tl.constexpr(TOKENS)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Slots by expert, in blocks of `rows`. Only what `work` counts is written."""

    top: int
    rows: int
    slots: Tensor  # [most blocks, rows] int32: token * top + place, -1 to fill a block
    expert: Tensor  # [most blocks] int32
    work: Tensor  # [2] int32: blocks, distinct experts


def reference_blocks(ids: Tensor, experts: int, rows: int) -> Blocks:
    """The blocks of ids [N, k]: experts in their order, the slots of each in the order of tokens."""
    of = [(ids.reshape(-1) == expert).nonzero()[:, 0].split(rows) for expert in range(experts)]
    parts = [(expert, part) for expert, split in enumerate(of) for part in split if part.numel()]
    owners = [expert for expert, _ in parts]
    blocks = [functional.pad(part, (0, rows - part.numel()), value=SKIPPED) for _, part in parts]
    slots = torch.stack(blocks) if blocks else ids.new_empty(0, rows)
    work = torch.tensor([len(owners), len(set(owners))], dtype=torch.int32)
    return Blocks(ids.shape[1], rows, slots.int(), torch.tensor(owners, dtype=torch.int32), work)


def align(ids: Tensor, experts: int, rows: int) -> Blocks:
    """The blocks of ids [N, k] int32 that were chosen elsewhere, SKIPPED where none is."""
    tokens, top = ids.shape
    assert ids.dtype == torch.int32 and ids.is_contiguous() and tokens > 0
    if tokens > ROUTED:
        return sorted_blocks(ids, experts, rows)
    blocks = empty(ids, experts, rows)
    constexprs = constants(experts, top, rows)
    align_kernel[(1,)](ids, blocks.slots, blocks.expert, blocks.work, tokens, **constexprs, **ALONE)
    return blocks


def sorted_blocks(ids: Tensor, experts: int, rows: int) -> Blocks:
    """As `align`, by a dozen of torch's own kernels: for prompts, whose tokens one program would take one by one."""
    flat = ids.reshape(-1)
    owner = flat.masked_fill(flat < 0, experts).long()  # what is skipped comes last
    order = owner.argsort(stable=True)
    count = owner.new_zeros(experts + 1).scatter_add_(0, owner, torch.ones_like(owner))
    blocks = (count + rows - 1) // rows
    first, before = blocks.cumsum(0) - blocks, count.cumsum(0) - count
    owner = owner[order]
    most = most_blocks(flat.numel(), experts, rows)
    place = first[owner] * rows + torch.arange(flat.numel(), device=ids.device) - before[owner]
    place = place.masked_fill(owner == experts, most * rows)  # one cell behind the last takes all of what is skipped
    slots = ids.new_full((most * rows + 1,), SKIPPED).scatter_(0, place, order.int())
    number = torch.arange(most, device=ids.device)
    expert = torch.searchsorted((first + blocks)[:experts], number, right=True).clamp(max=experts - 1)
    work = torch.stack((blocks[:experts].sum(), (count[:experts] > 0).sum()))
    return Blocks(ids.shape[1], rows, slots[:-1].view(most, rows), expert.int(), work.int())


def constants(experts: int, top: int, rows: int) -> dict[str, object]:
    """What the kernel is compiled for."""
    width = triton.next_power_of_2(experts)
    return {"E": experts, "WIDTH": width, "TOP": top, "ROWS": rows}


def empty(ids: Tensor, experts: int, rows: int) -> Blocks:
    """Room for the blocks of ids [N, k]."""
    blocks = most_blocks(ids.numel(), experts, rows)
    return Blocks(ids.shape[1], rows, ids.new_empty(blocks, rows), ids.new_empty(blocks), ids.new_empty(2))


@triton.jit(do_not_specialize=["tokens"])  # one program for any number, which is the one that was checked
def align_kernel(
    ids, slots, expert_of, work, tokens,
    E: tl.constexpr, WIDTH: tl.constexpr, TOP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    expert = tl.arange(0, WIDTH)
    count = tl.zeros((WIDTH,), tl.int32)
    at = 0
    while at < tokens:
        count += tl.sum(_asked(ids, at, tokens, expert, TOP, WIDTH), 0)
        at += _TOKENS
    start = begin(count, slots, expert_of, work, WIDTH, ROWS)
    at = 0
    while at < tokens:
        asked = _asked(ids, at, tokens, expert, TOP, WIDTH)
        free = start[None, :] + tl.cumsum(asked, 0) - asked
        slot = (at + tl.arange(0, _TOKENS)) * TOP
        for which in tl.static_range(TOP):
            chosen = tl.load(ids + slot + which, mask=slot < tokens * TOP, other=_SKIPPED)
            hit = chosen[:, None] == expert[None, :]
            tl.store(slots + tl.sum(tl.where(hit, free, 0), 1), slot + which, mask=chosen >= 0)
            free += hit.to(tl.int32)
        start += tl.sum(asked, 0)
        at += _TOKENS


@triton.jit
def _asked(ids, at, tokens, expert, TOP: tl.constexpr, WIDTH: tl.constexpr):
    """How many slots of each token ask each expert: [TOKENS, WIDTH]."""
    slot = (at + tl.arange(0, _TOKENS)) * TOP
    asked = tl.zeros((_TOKENS, WIDTH), tl.int32)
    for which in tl.static_range(TOP):
        chosen = tl.load(ids + slot + which, mask=slot < tokens * TOP, other=_SKIPPED)
        asked += (chosen[:, None] == expert[None, :]).to(tl.int32)
    return asked


@triton.jit
def begin(count, slots, expert_of, work, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Writes all of the blocks of `count` [WIDTH] slots of each expert but the slots; where each expert's begin."""
    expert = tl.arange(0, WIDTH)
    blocks = (count + ROWS - 1) // ROWS
    first = tl.cumsum(blocks, 0) - blocks
    tl.store(work, tl.sum(blocks, 0))
    tl.store(work + 1, tl.sum((count > 0).to(tl.int32), 0))
    part = 0
    while part < tl.max(blocks, 0):
        tl.store(expert_of + first + part, expert, mask=part < blocks)
        part += 1
    offset = count[:, None] + tl.arange(0, ROWS)[None, :]
    at = first[:, None] * ROWS + offset
    tl.store(slots + at, tl.full((WIDTH, ROWS), -1, tl.int32), mask=offset < (blocks * ROWS)[:, None])
    return first * ROWS


@triton.jit
def place(slot, start, slots):
    """Writes the slots [TOKENS, WIDTH] of the next tokens, -1 for none, from `start` on; where the next begin."""
    mine = (slot >= 0).to(tl.int32)
    tl.store(slots + start[None, :] + tl.cumsum(mine, 0) - mine, slot, mask=slot >= 0)
    return start + tl.sum(mine, 0)
