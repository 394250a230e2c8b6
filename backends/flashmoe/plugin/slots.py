"""Which slots does vLLM's kernel get, and how many distinct experts does it read?

Without synchronising with the device and without shapes that depend on values, so that CUDA graphs can capture it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.flashmoe.policy import SKIPPED, Policy, Routing, decide, rank, skip

# vLLM's kernels by what they may find in a token's slots; read in 0.32.0 and 0.33.0, and in the FlashInfer of each.
# Most take SKIPPED for padding only, where all slots of a token have it: Marlin without an expert map adds rows that
# were never written, TritonExperts reads at index -1, and the CPU kernel counts at index -1.
LEAVES_OUT = frozenset({  # a single slot that is SKIPPED
    "HummingIndexedExperts", "FlashInferExperts", "OAITritonExperts", "UnfusedOAITritonExperts",
    *(f"TrtLlm{form}ExpertsModular" for form in ("Bf16", "Fp8", "Mxfp4", "NvFp4")),
})  # fmt: skip
REPEATS = frozenset({  # an expert more than once; one of both sets: with expert parallelism
    "TritonExperts", "TritonWNA16Experts", "TritonOrCutlassExperts", "TritonOrDeepGemmExperts",
    "Int4EmulationTritonExperts", "Mxfp8EmulationTritonExperts", "Mxfp8NativeTritonExperts",
    "Nvfp4QuantizationEmulationTritonExperts", "OCP_MXQuantizationEmulationTritonExperts",
    "MarlinExperts", "HummingIndexedExperts", "HummingGroupedExperts", "DeepGemmExperts", "DeepGemmFP4Experts",
    "CutlassExpertsFp8", "CutlassExpertsFp4", "CutlassExpertsMxfp4", "CutlassExpertsW4A8Fp8",
    *(f"{maker}CPUUnquantizedExperts" for maker in ("", "X86", "Arm", "Power")),
    *(f"CPUExperts{form}" for form in ("Fp8", "Fp8W8A8", "Int4", "Int8", "Mxfp4")),
    *(f"{maker}CPUExpertsInt8" for maker in ("Arm", "Power", "Zen")),
})  # fmt: skip


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


def leaves_out(kernel: str, parallel: bool) -> bool:
    """Whether the class of vLLM's kernel leaves out a slot that is SKIPPED; if not, it takes an expert more than once.

    `parallel`: with expert parallelism. Raises LookupError for a class that may do neither: one with a place for each
    token and expert, such as AITER's, would add one slot of an expert, maybe that of weight 0, and lose the others.
    """
    if kernel not in LEAVES_OUT | REPEATS:
        raise LookupError(kernel)
    return kernel in LEAVES_OUT and not (parallel and kernel in REPEATS)


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
