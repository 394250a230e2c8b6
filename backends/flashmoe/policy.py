"""Which of the routed experts are computed, and which are skipped?

A slot is one of the k experts that the router selected for a token; the shared expert is no slot and always runs. A
policy is a pure function from the router's output (`Routing`) and the mask of slots kept so far to a new mask. Policies
are applied in order: `(TopK(3), Piggyback())` is the batch-aware selection published as OEA. After the last one, a
token that was left with no slot gets back the one with the largest worth. Router weights of the kept slots stay as they
are unless `renormalise` is set: scaling them up to the old sum makes the layer's output worse.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

SKIPPED = -1  # the expert id of a skipped slot; vLLM's router marks padding with the same


@dataclass(frozen=True, slots=True)
class Routing:
    """The router's output for N tokens in one layer. The k slots of a token are in no order."""

    layer: int
    experts: int  # E, in this layer
    ids: Tensor  # [N, k] int64 expert ids; SKIPPED for padding, with weight and worth 0
    weights: Tensor  # [N, k] router weights
    worth: Tensor  # [N, k] the estimated norm of weight * expert output; the weight itself without a predictor
    step: Tensor  # [N] int64 from 0: the decode step of each token; a step's tokens share the expert weights they read
    steps: int | None = None  # the number of steps; None: taken from `step`, which synchronises with the device


class Policy(Protocol):
    """`keep` [N, k] bool -> [N, k] bool. `eased(pressure)`: the policy with milder parameters; 1 leaves it as it is,
    near 0 skips hardly anything."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def eased(self, pressure: float) -> "Policy": ...

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class TopK:
    """Keeps the k slots of a token with the largest worth."""

    k: int

    def eased(self, pressure: float) -> Policy:
        return TopK(round(self.k / pressure))

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        return keep & (rank(routing.worth.masked_fill(~keep, -1)) < self.k)


@dataclass(frozen=True, slots=True)
class Share:
    """Keeps the fewest slots whose worth adds up to `share` of the token's total worth (top-p over slots)."""

    share: float

    def eased(self, pressure: float) -> Policy:
        return Share(1 - (1 - self.share) * pressure)

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        worth = routing.worth.masked_fill(~keep, 0)
        ordered, order = worth.sort(dim=1, descending=True)
        before = ordered.cumsum(1) - ordered  # worth of the larger slots before each
        needed = before < self.share * ordered.sum(1, keepdim=True)
        return keep & torch.zeros_like(keep).scatter(1, order, needed)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Skips slots whose worth is below `ratio` times the token's largest (NAEE's rule, for any k)."""

    ratio: float

    def eased(self, pressure: float) -> Policy:
        return Ratio(self.ratio * pressure)

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        return keep & (routing.worth >= self.ratio * routing.worth.amax(1, keepdim=True))


@dataclass(frozen=True, slots=True)
class Piggyback:
    """Puts back every slot whose expert another token of the same step keeps: its weights are read anyway."""

    def eased(self, pressure: float) -> Policy:
        return self

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        return keep | _at_slots(routing, per_expert(routing, keep.float()) > 0)


@dataclass(frozen=True, slots=True)
class Budget:
    """Keeps at most `experts` distinct experts a step: those with the largest worth summed over tokens."""

    experts: int

    def eased(self, pressure: float) -> Policy:
        return Budget(round(self.experts / pressure))

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        # Ranks that share experts must keep the same ones, and a GPU sums in any order: in fp32 that decides near ties.
        total = per_expert(routing, (routing.worth * keep).double())
        return keep & _at_slots(routing, rank(total) < self.experts)


@dataclass(frozen=True, slots=True)
class Price:
    """Keeps an expert in a step if its squared share of a token's worth, averaged over the step's tokens, is at least
    `price`. The share is 0 for tokens that the expert was not selected for.

    Outputs of different experts are nearly orthogonal, so a token's squared error is about the sum of the squared norms
    of the outputs it skips. One threshold for all experts, layers and steps then gives the least error for the experts
    that are read.
    """

    price: float

    def eased(self, pressure: float) -> Policy:
        return Price(self.price * pressure)

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        worth = routing.worth * keep
        share = (worth / worth.sum(1, keepdim=True)).nan_to_num(0)
        tokens = torch.bincount(routing.step)[:, None]
        return keep & _at_slots(routing, per_expert(routing, share.square()) / tokens >= self.price)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """A list of policies by layer number; layers that are not named skip nothing."""

    plan: Mapping[int, Sequence[Policy]]

    def eased(self, pressure: float) -> Policy:
        return LayerPlan({at: [policy.eased(pressure) for policy in plan] for at, plan in self.plan.items()})

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        for policy in self.plan.get(routing.layer, ()):
            keep = policy(routing, keep)
        return keep


def decide(routing: Routing, policies: Sequence[Policy]) -> Tensor:
    """The mask of the kept slots after all policies: [N, k] bool, at least one for each token that is no padding."""
    asked = keep = routing.ids != SKIPPED
    for policy in policies:
        keep = policy(routing, keep)
    best = rank(routing.worth) == 0
    return (keep | (best & ~keep.any(1, keepdim=True))) & asked


def skip(routing: Routing, keep: Tensor, renormalise: bool = False) -> tuple[Tensor, Tensor]:
    """Expert ids and router weights [N, k], with id SKIPPED and weight 0 where `keep` is False. `renormalise`: the kept
    weights are scaled up to the sum of all."""
    weights = routing.weights * keep
    if renormalise:
        weights = weights * (routing.weights.sum(1, keepdim=True) / weights.sum(1, keepdim=True)).nan_to_num(0)
    return routing.ids.masked_fill(~keep, SKIPPED), weights


def rank(values: Tensor) -> Tensor:
    """The rank of each value in its row [N, k], 0 for the largest; of equal values the first comes first."""
    order = values.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


def per_expert(routing: Routing, values: Tensor) -> Tensor:
    """Sums values [N, k] for each step and expert: [steps, E]."""
    steps = int(routing.step.max()) + 1 if routing.steps is None else routing.steps
    cell = routing.step[:, None] * routing.experts + routing.ids.clamp(min=0)  # padding adds its 0 to expert 0
    total = values.new_zeros(steps * routing.experts).index_add(0, cell.reshape(-1), values.reshape(-1))
    return total.view(steps, routing.experts)


def _at_slots(routing: Routing, table: Tensor) -> Tensor:
    """A table [steps, E] looked up for the step and expert of each slot: [N, k]."""
    return table[routing.step].gather(1, routing.ids.clamp(min=0))


def written(policy: Policy) -> dict[str, Any]:
    """A policy as JSON data, which `named` reads back."""
    if isinstance(policy, LayerPlan):
        return {"kind": "LayerPlan", "plan": {at: [written(one) for one in plan] for at, plan in policy.plan.items()}}
    values = {each.name: getattr(policy, each.name) for each in fields(policy)}
    return {"kind": type(policy).__name__, **values}


def named(entry: Mapping[str, Any]) -> Policy:
    """The policy in the JSON data of `written`."""
    values = {name: value for name, value in entry.items() if name != "kind"}
    if entry["kind"] == "LayerPlan":
        return LayerPlan({int(at): [named(one) for one in plan] for at, plan in values["plan"].items()})
    return KINDS[entry["kind"]](**values)


KINDS: dict[str, Callable[..., Policy]] = {
    kind.__name__: kind for kind in (TopK, Share, Ratio, Piggyback, Budget, Price)
}
