"""Which slots does a kernel get, and how many experts does it read for them?

Free of waits for the device and of shapes that depend on values, so a CUDA graph may hold it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.flashmoe.policy import SKIPPED, Policy, Routing, decide, rank, skip


@dataclass(frozen=True, slots=True)
class Brought:
    """Keeps the best k slots of tokens whose request brings a k, and of others what `otherwise` keeps."""

    k: Tensor  # [N] int32; 0: none
    otherwise: Sequence[Policy]

    def eased(self, pressure: float) -> Policy:
        return Brought(self.k, [policy.eased(pressure) for policy in self.otherwise])

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        k, theirs = self.k[:, None], keep
        for policy in self.otherwise:
            theirs = policy(routing, theirs)
        return torch.where(k > 0, keep & (rank(routing.worth.masked_fill(~keep, -1)) < k), theirs)


def with_brought(policies: Sequence[Policy], k: Tensor) -> Sequence[Policy]:
    """The policies of a layer where a request's k takes the place of the first one; what comes after it still holds:
    what the batch reads anyway is kept for everyone."""
    return [Brought(k, policies[:1]), *policies[1:]]


def reduced(routing: Routing, keep: Tensor, renormalise: bool, takes_skipped: bool) -> tuple[Tensor, Tensor]:
    """Ids and weights [N, k] with what is not kept at weight 0.

    Its id is SKIPPED for a kernel that `takes_skipped`; else that of the token's best slot, which is read anyway, so no
    expert is read for it. Of padding, whose slots all came SKIPPED, they stay so.
    """
    ids, weights = skip(routing, keep, renormalise)
    if not takes_skipped:
        best = routing.weights.masked_fill(~keep, -torch.inf).argmax(1, keepdim=True)
        ids = torch.where(keep, ids, routing.ids.gather(1, best))
    return ids, weights


def masked(routing: Routing, policies: Sequence[Policy], exact: Tensor | None) -> Tensor:
    """What the policies keep [N, k]; everything that is asked where `exact` [1] bool is set."""
    keep = decide(routing, policies)
    return keep if exact is None else keep | (exact & (routing.ids != SKIPPED))


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
