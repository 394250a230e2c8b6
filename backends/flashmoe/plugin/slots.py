"""Which slots does vLLM's kernel get, and how many distinct experts does it read?

Without synchronising with the device and without shapes that depend on values, so that CUDA graphs can capture it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.flashmoe.policy import SKIPPED, Policy, Routing, decide, rank, skip


@dataclass(frozen=True, slots=True)
class Brought:
    """Keeps the k slots of largest worth of tokens whose request sets a k; of others what `otherwise` keeps."""

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
    """A layer's policies with the first one replaced by a request's `k` [N] where that is set. Later ones, such as
    piggyback, apply to all tokens."""
    return [Brought(k, policies[:1]), *policies[1:]]


def reduced(routing: Routing, keep: Tensor, renormalise: bool, takes_skipped: bool) -> tuple[Tensor, Tensor]:
    """Expert ids and router weights [N, k], with weight 0 where `keep` is False.

    Such a slot's id is SKIPPED for a kernel that `takes_skipped`; else it is that of the token's largest kept slot,
    which is read anyway. Padding stays SKIPPED.
    """
    ids, weights = skip(routing, keep, renormalise)
    if not takes_skipped:
        best = routing.weights.masked_fill(~keep, -torch.inf).argmax(1, keepdim=True)
        ids = torch.where(keep, ids, routing.ids.gather(1, best))
    return ids, weights


def masked(routing: Routing, policies: Sequence[Policy], exact: Tensor | None) -> Tensor:
    """The mask [N, k] bool of the slots that the policies keep; all but padding where `exact` [1] bool is set."""
    keep = decide(routing, policies)
    return keep if exact is None else keep | (exact & (routing.ids != SKIPPED))


def routed(layer: int, experts: int, ids: Tensor, weights: Tensor) -> Routing:
    """vLLM's router output for the N tokens of one step as a Routing; a slot's worth is its weight."""
    long = ids.long()
    weights = weights.masked_fill(long == SKIPPED, 0)
    step = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    return Routing(layer, experts, long, weights, weights.float(), step, 1)


def distinct(ids: Tensor, experts: int) -> Tensor:
    """The number of distinct experts in ids [N, k], without SKIPPED: [] int64."""
    named = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device)
    return named.scatter(0, ids.reshape(-1).long() + 1, 1)[1:].sum()
