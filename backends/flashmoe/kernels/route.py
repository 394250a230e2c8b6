"""Which slots are kept, and which blocks of slots does each expert compute?   Top-k, skipping and align in one launch.

A slot's worth is its router weight, with a predictor's head times the estimated norm of the expert's output. A token's
slots are sorted by worth, largest first.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from backends.flashmoe.kernels.align import ALONE, TOKENS, Blocks, begin, empty, place
from backends.flashmoe.kernels.launch import ROUTED
from backends.flashmoe.policy import SKIPPED, Piggyback, Routing, Share, rank
from backends.flashmoe.predictor import TRUNK, Head

HEADED = 256  # experts of a layer that may have a head: the program for more, such as V4-Pro's 384, spills
_SKIPPED, _TOKENS, _TRUNK = tl.constexpr(SKIPPED), tl.constexpr(TOKENS), tl.constexpr(TRUNK)


@dataclass(frozen=True, slots=True)
class Rule:
    """How router logits become weights, and which slots are kept."""

    top: int  # k
    score: str = "softmax"  # or "sqrtsoftplus"
    scale: float = 1.0  # the sum of a token's k weights before any is skipped
    share: float = 1.0  # as policy.Share
    piggyback: bool = False  # as policy.Piggyback


@dataclass(frozen=True, slots=True)
class Routed:
    """The routing of N tokens, with the rule applied."""

    ids: Tensor  # [N, k] int32, SKIPPED where a slot is not kept
    weights: Tensor  # [N, k] fp32, 0 where a slot is not kept
    blocks: Blocks


def reference(
    logits: Tensor, bias: Tensor, budget: Tensor, rule: Rule, norms: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Expert ids [N, k] and weights [N, k] from logits [N, E], a selection bias [E] and the most slots of each token,
    `budget` [N]; 0 marks padding.

    `norms` [N, E]: the estimated log norms of the experts' outputs.
    """
    scores = functional.softplus(logits).sqrt() if rule.score == "sqrtsoftplus" else logits.softmax(1)
    real = budget[:, None] > 0
    ids = (scores + bias).topk(rule.top).indices
    weights = scores.gather(1, ids)
    weights = weights / weights.sum(1, keepdim=True) * rule.scale
    worth = weights if norms is None else weights * norms.gather(1, ids).exp()
    order = worth.argsort(dim=1, descending=True, stable=True)
    ids, weights, worth = (values.gather(1, order) for values in (ids, weights, worth))
    routing = Routing(0, logits.shape[1], ids, weights, worth, torch.zeros_like(budget, dtype=torch.int64))
    keep = (rank(worth) < budget[:, None]) & real
    if rule.share < 1:
        keep = Share(rule.share)(routing, torch.ones_like(keep)) & keep
    if rule.piggyback:
        keep = Piggyback()(routing, keep) & real
    return ids.masked_fill(~keep, SKIPPED), weights * keep


def route(
    logits: Tensor, bias: Tensor, budget: Tensor, rule: Rule, rows: int, head: "Estimate | None" = None
) -> Routed:
    """As `reference`, with the blocks of `rows` slots. Logits [N, E] fp32, N up to ROUTED; budget [N] int32. With a
    head E is up to HEADED."""
    tokens, experts = logits.shape
    assert logits.dtype == bias.dtype == torch.float32 and budget.dtype == torch.int32
    assert logits.is_contiguous() and bias.shape == (experts,) and budget.shape == (tokens,)
    assert 0 < tokens <= ROUTED and rule.top <= experts
    assert head is None or experts <= HEADED
    ids = torch.empty(tokens, rule.top, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, rule.top, dtype=torch.float32, device=logits.device)
    blocks = empty(ids, experts, rows)
    kept = torch.empty_like(budget)
    estimate = [logits] * 7 if head is None else [head.trunk, *head.matrices]
    kernel[(1,)](
        logits, bias, budget, *estimate, ids, weights, kept, blocks.slots, blocks.expert, blocks.work, tokens,
        **constants(rule, experts, rows, head is not None), **ALONE,
    )  # fmt: skip
    return Routed(ids, weights, blocks)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predictor's head for N tokens, its first matrix product already done (stacked under the router's)."""

    trunk: Tensor  # [N, TRUNK] fp32: that product
    matrices: tuple[Tensor, ...]  # weight [out, in] and bias of the two inner layers and of the output layer, fp32

    @classmethod
    def of(cls, head: Head, trunk: Tensor) -> "Estimate":
        """`trunk` is head.trunk(hidden)."""
        layers = (head.inner[1], head.inner[3], head.out)
        return cls(trunk, tuple(t.detach().contiguous() for layer in layers for t in (layer.weight, layer.bias)))


def constants(rule: Rule, experts: int, rows: int, head: bool) -> dict[str, object]:
    """The kernel's constexpr arguments."""
    return {
        "E": experts,
        "WIDTH": triton.next_power_of_2(experts),
        "TOP": rule.top,
        "ROWS": rows,
        "SOFTMAX": rule.score == "softmax",
        "SCALE": rule.scale,
        "SHARE": rule.share,
        "PIGGYBACK": rule.piggyback,
        "HEAD": head,
    }


@triton.jit(do_not_specialize=["tokens"])
def kernel(
    logits, bias, budget, trunk, w1, b1, w2, b2, w3, b3, ids, weights, kept, slots, expert_of, work, tokens,
    E: tl.constexpr, WIDTH: tl.constexpr, TOP: tl.constexpr, ROWS: tl.constexpr,
    SOFTMAX: tl.constexpr, SCALE: tl.constexpr, SHARE: tl.constexpr, PIGGYBACK: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    asked = tl.zeros((WIDTH,), tl.int32)  # slots of each expert, kept or not
    based = tl.zeros((WIDTH,), tl.int32)  # of them, kept by budget and share, before piggyback
    expert = tl.arange(0, WIDTH)
    at = 0
    while at < tokens:
        row, at = at + tl.arange(0, _TOKENS), at + _TOKENS
        if HEAD:  # first, while few registers are live
            norm = _norms(trunk, w1, b1, w2, b2, w3, b3, row, tokens, E, WIDTH)
            tl.debug_barrier()
        allowed = tl.load(budget + row, mask=row < tokens, other=0)
        real = (row < tokens)[:, None] & (expert < E)[None, :]
        x = tl.load(logits + row[:, None] * E + expert[None, :], mask=real, other=0.0)
        weight = _weights(x, bias, real, E, WIDTH, TOP, SOFTMAX, SCALE)
        worth = weight * tl.exp(norm) if HEAD else weight
        chosen = (weight > 0) & (allowed[:, None] > 0)
        first = _sort(worth, weight, chosen, allowed, ids, weights, kept, row, tokens, WIDTH, TOP, SHARE)
        asked += tl.sum(chosen.to(tl.int32), 0)
        based += tl.sum(first, 0)
    tl.debug_barrier()  # ids, weights and kept are read by other threads than wrote them
    count = tl.where(based > 0, asked, 0) if PIGGYBACK else based
    start = begin(count, slots, expert_of, work, WIDTH, ROWS)
    at = 0
    while at < tokens:
        row, at = at + tl.arange(0, _TOKENS), at + _TOKENS
        base = tl.load(kept + row, mask=row < tokens, other=0)
        slot = tl.full((_TOKENS, WIDTH), -1, tl.int32)
        for which in range(TOP):
            at_slot = row * TOP + which
            hit = tl.load(ids + at_slot, mask=row < tokens, other=_SKIPPED)[:, None] == expert[None, :]
            keep = hit & ((which < base)[:, None] | (PIGGYBACK & (based > 0)[None, :]))
            slot = tl.where(keep, at_slot[:, None], slot)
            gone = (row < tokens) & (tl.sum(keep.to(tl.int32), 1) == 0)
            tl.store(ids + at_slot, tl.full((_TOKENS,), _SKIPPED, tl.int32), mask=gone)
            tl.store(weights + at_slot, tl.zeros((_TOKENS,), tl.float32), mask=gone)
        start = place(slot, start, slots)


@triton.jit
def _weights(
    x, bias, real, E: tl.constexpr, WIDTH: tl.constexpr, TOP: tl.constexpr, SOFTMAX: tl.constexpr, SCALE: tl.constexpr
):
    """The router weights of the top-k experts, 0 for the others: [TOKENS, WIDTH]."""
    expert = tl.arange(0, WIDTH)
    if SOFTMAX:  # the divisor cancels out of the weights, but matters where the bias is added
        raised = tl.where(real, tl.exp(x - tl.max(tl.where(real, x, float("-inf")), 1)[:, None]), 0.0)
        score = raised / tl.maximum(tl.sum(raised, 1), 1e-30)[:, None]
    else:
        low = tl.exp(-tl.abs(x))  # of a small one 1 + low has few digits left, or none: its series then
        score = tl.sqrt(tl.maximum(x, 0.0) + tl.where(low < 1e-3, low - low * low / 2, tl.log(1 + low)))
    left = tl.where(real, score + tl.load(bias + expert, mask=expert < E, other=0.0)[None, :], float("-inf"))
    weight = tl.zeros_like(score)
    for _ in range(TOP):
        hit = tl.argmax(left, 1)[:, None] == expert[None, :]
        weight = tl.where(hit & real, tl.maximum(score, 1e-30), weight)  # above 0 marks the top-k
        left = tl.where(hit, float("-inf"), left)
    return weight / tl.maximum(tl.sum(weight, 1), 1e-30)[:, None] * SCALE


@triton.jit
def _norms(trunk, w1, b1, w2, b2, w3, b3, row, tokens, E: tl.constexpr, WIDTH: tl.constexpr):
    """The head's estimated log norms: [TOKENS, WIDTH]."""
    unit, expert = tl.arange(0, _TRUNK), tl.arange(0, WIDTH)
    square = unit[None, :] * _TRUNK + unit[:, None]  # transposed
    x = tl.load(trunk + row[:, None] * _TRUNK + unit[None, :], mask=(row < tokens)[:, None], other=0.0)
    x = tl.dot(x * tl.sigmoid(x), tl.load(w1 + square)) + tl.load(b1 + unit)[None, :]
    x = tl.dot(x * tl.sigmoid(x), tl.load(w2 + square)) + tl.load(b2 + unit)[None, :]
    last = tl.load(w3 + expert[None, :] * _TRUNK + unit[:, None], mask=(expert < E)[None, :], other=0.0)
    return tl.dot(x * tl.sigmoid(x), last) + tl.load(b3 + expert, mask=expert < E, other=0.0)[None, :]


@triton.jit
def _sort(
    worth, weight, chosen, allowed, ids, weights, kept, row, tokens,
    WIDTH: tl.constexpr, TOP: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Writes the top-k slots sorted by worth. Returns 1 for those kept by share and budget: [TOKENS, WIDTH] int32."""
    expert = tl.arange(0, WIDTH)
    left = tl.where(chosen, worth, -1.0)
    limit = tl.sum(tl.where(chosen, worth, 0.0), 1) * SHARE
    before = tl.zeros((_TOKENS,), tl.float32)
    base = tl.zeros((_TOKENS,), tl.int32)
    first = tl.zeros((_TOKENS, WIDTH), tl.int32)
    for which in range(TOP):
        best = tl.argmax(left, 1)
        hit = (best[:, None] == expert[None, :]) & chosen
        keep = (which < allowed) & ((SHARE >= 1) | (before < limit))
        tl.store(ids + row * TOP + which, tl.where(allowed > 0, best, _SKIPPED), mask=row < tokens)
        tl.store(weights + row * TOP + which, tl.sum(tl.where(hit, weight, 0.0), 1), mask=row < tokens)
        first += (hit & keep[:, None]).to(tl.int32)
        base += keep.to(tl.int32)
        before += tl.sum(tl.where(hit, worth, 0.0), 1)
        left = tl.where(hit, -1.0, left)
    tl.store(kept + row, base, mask=row < tokens)
    return first
