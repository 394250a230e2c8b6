"""Which slots does a kernel get, and how many experts does it read for them?

Free of waits for the device and of shapes that depend on values, so a CUDA graph may hold it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from backends.flashmoe.policy import SKIPPED, Policy, Routing, decide, skip


def reduced(
    routing: Routing, policies: Sequence[Policy], renormalise: bool, takes_skipped: bool
) -> tuple[Tensor, Tensor]:
    """Ids and weights [N, k] with what is not kept at weight 0.

    Its id is SKIPPED for a kernel that `takes_skipped`; else that of the token's best slot, which is read anyway, so no
    expert is read for it. Of padding, whose slots all came SKIPPED, they stay so.
    """
    keep = decide(routing, policies)
    ids, weights = skip(routing, keep, renormalise)
    if not takes_skipped:
        best = routing.weights.masked_fill(~keep, -torch.inf).argmax(1, keepdim=True)
        ids = torch.where(keep, ids, routing.ids.gather(1, best))
    return ids, weights


def routed(layer: int, experts: int, ids: Tensor, weights: Tensor) -> Routing:
    """What vLLM's router says of N tokens of one step; the weight is what a slot is worth."""
    long = ids.long()
    weights = weights.masked_fill(long == SKIPPED, 0)
    step = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    return Routing(layer, experts, long, weights, weights.float(), step, 1)


def distinct(ids: Tensor, experts: int) -> Tensor:
    """How many different experts ids [N, k] name, SKIPPED not counted: [] int64."""
    named = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device)
    return named.scatter(0, ids.reshape(-1).long() + 1, 1)[1:].sum()
