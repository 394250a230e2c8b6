"""Which slots does each expert compute?   Slots sorted by expert and padded to blocks, as vLLM's moe_align_block_size.

A slot is one of a token's top-k experts, numbered token * k + place. A matrix kernel takes one block at a time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from backends.flashmoe.kernels.launch import ROUTED, most_blocks
from backends.flashmoe.policy import SKIPPED

TOKENS = 16  # tokens that the program handles in one iteration
ALONE = {"num_warps": 8, "num_stages": 1, "maxnreg": 255}  # one program has the multiprocessor's registers to itself
_SKIPPED, _TOKENS = tl.constexpr(SKIPPED), tl.constexpr(TOKENS)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Slots by expert, in blocks of `rows`. Of the tensors only the first `work[0]` blocks are valid."""

    top: int  # k
    rows: int
    slots: Tensor  # [most blocks, rows] int32: token * top + place, -1 as padding
    expert: Tensor  # [most blocks] int32: the expert of each block
    work: Tensor  # [2] int32: the number of blocks, the number of distinct experts


def reference_blocks(ids: Tensor, experts: int, rows: int) -> Blocks:
    """The blocks of expert ids [N, k]: by expert, then by token; in torch, to test the kernel against."""
    of = [(ids.reshape(-1) == expert).nonzero()[:, 0].split(rows) for expert in range(experts)]
    parts = [(expert, part) for expert, split in enumerate(of) for part in split if part.numel()]
    owners = [expert for expert, _ in parts]
    blocks = [functional.pad(part, (0, rows - part.numel()), value=SKIPPED) for _, part in parts]
    slots = torch.stack(blocks) if blocks else ids.new_empty(0, rows)
    work = torch.tensor([len(owners), len(set(owners))], dtype=torch.int32)
    return Blocks(ids.shape[1], rows, slots.int(), torch.tensor(owners, dtype=torch.int32), work)


def align(ids: Tensor, experts: int, rows: int) -> Blocks:
    """The blocks of expert ids [N, k] int32, SKIPPED for slots that are skipped."""
    tokens, top = ids.shape
    assert ids.dtype == torch.int32 and ids.is_contiguous() and tokens > 0
    if tokens > ROUTED:
        return sorted_blocks(ids, experts, rows)
    blocks = empty(ids, experts, rows)
    constexprs = constants(experts, top, rows)
    align_kernel[(1,)](ids, blocks.slots, blocks.expert, blocks.work, tokens, **constexprs, **ALONE)
    return blocks


def sorted_blocks(ids: Tensor, experts: int, rows: int) -> Blocks:
    """As `align`, by a dozen of torch's own kernels: for prefill, whose many tokens one program would take too long
    for."""
    flat = ids.reshape(-1)
    owner = flat.masked_fill(flat < 0, experts).long()  # skipped slots are sorted last
    order = owner.argsort(stable=True)
    count = owner.new_zeros(experts + 1).scatter_add_(0, owner, torch.ones_like(owner))
    blocks = (count + rows - 1) // rows
    first, before = blocks.cumsum(0) - blocks, count.cumsum(0) - count
    owner = owner[order]
    most = most_blocks(flat.numel(), experts, rows)
    place = first[owner] * rows + torch.arange(flat.numel(), device=ids.device) - before[owner]
    place = place.masked_fill(owner == experts, most * rows)  # skipped slots all go into one extra cell at the end
    slots = ids.new_full((most * rows + 1,), SKIPPED).scatter_(0, place, order.int())
    number = torch.arange(most, device=ids.device)
    expert = torch.searchsorted((first + blocks)[:experts], number, right=True).clamp(max=experts - 1)
    work = torch.stack((blocks[:experts].sum(), (count[:experts] > 0).sum()))
    return Blocks(ids.shape[1], rows, slots[:-1].view(most, rows), expert.int(), work.int())


def constants(experts: int, top: int, rows: int) -> dict[str, object]:
    """The kernel's constexpr arguments."""
    width = triton.next_power_of_2(experts)
    return {"E": experts, "WIDTH": width, "TOP": top, "ROWS": rows}


def empty(ids: Tensor, experts: int, rows: int) -> Blocks:
    """Uninitialised blocks, large enough for any ids of the shape [N, k]."""
    blocks = most_blocks(ids.numel(), experts, rows)
    return Blocks(ids.shape[1], rows, ids.new_empty(blocks, rows), ids.new_empty(blocks), ids.new_empty(2))


@triton.jit(do_not_specialize=["tokens"])  # one program for all, the one that machine_code.py checks
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
    """How many slots of each token, from `at` on, have each expert: [TOKENS, WIDTH] int32."""
    slot = (at + tl.arange(0, _TOKENS)) * TOP
    asked = tl.zeros((_TOKENS, WIDTH), tl.int32)
    for which in tl.static_range(TOP):
        chosen = tl.load(ids + slot + which, mask=slot < tokens * TOP, other=_SKIPPED)
        asked += (chosen[:, None] == expert[None, :]).to(tl.int32)
    return asked


@triton.jit
def begin(count, slots, expert_of, work, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Writes expert, work and the padding of the blocks, given the number of slots of each expert, `count` [WIDTH].
    Returns the offset in `slots` at which each expert's begin: [WIDTH]."""
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
    """Writes the slots [TOKENS, WIDTH] of the next tokens, -1 for none, at offsets `start` [WIDTH] on. Returns the
    offsets behind them: [WIDTH]."""
    mine = (slot >= 0).to(tl.int32)
    tl.store(slots + start[None, :] + tl.cumsum(mine, 0) - mine, slot, mask=slot >= 0)
    return start + tl.sum(mine, 0)
