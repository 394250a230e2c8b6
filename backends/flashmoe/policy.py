"""Which of the routed experts are worth reading?

A policy is a pure function from what the router said (`Routing`) and a mask of the slots kept so far to a new mask.
Policies compose in order: `(TopK(3), Piggyback())` is batch-aware selection as published under the name OEA. After the
last one the slot worth most is put back wherever a token was left with none; the shared expert is no slot and stays.
Weights are left as they are unless `renormalise` is asked for: a smaller sum is nearer to the truth than a wrong share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

SKIPPED = -1  # the id of a slot that is not read; vLLM's router marks its padding by the same


@dataclass(frozen=True, slots=True)
class Routing:
    """What is known of N tokens in one layer before an expert is read. The k slots of a token are in no order."""

    layer: int
    experts: int  # E, in this layer
    ids: Tensor  # [N, k] int64; SKIPPED where none is asked, with weight and worth 0
    weights: Tensor  # [N, k]
    worth: Tensor  # [N, k] the estimated norm of weight * expert output; the weight itself without a predictor
    step: Tensor  # [N] int64 from 0; tokens of one step are computed together, so they share what is read
    steps: int | None = None  # how many, if known: to look it up waits for the device


class Policy(Protocol):
    """`keep` [N, k] bool -> [N, k] bool. `eased` is the policy under less pressure: 1 as given, near 0 skips little."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def eased(self, pressure: float) -> "Policy": ...

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class TopK:
    """Keeps the k slots worth most."""

    k: int

    def eased(self, pressure: float) -> Policy:
        return TopK(round(self.k / pressure))

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        return keep & (rank(routing.worth.masked_fill(~keep, -1)) < self.k)


@dataclass(frozen=True, slots=True)
class Share:
    """Keeps the fewest slots whose worth makes up `share` of the token's total."""

    share: float

    def eased(self, pressure: float) -> Policy:
        return Share(1 - (1 - self.share) * pressure)

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        worth = routing.worth.masked_fill(~keep, 0)
        ordered, order = worth.sort(dim=1, descending=True)
        before = ordered.cumsum(1) - ordered  # what the better slots already make up
        needed = before < self.share * ordered.sum(1, keepdim=True)
        return keep & torch.zeros_like(keep).scatter(1, order, needed)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Skips slots worth less than `ratio` of the token's best (NAEE's rule, for any k)."""

    ratio: float

    def eased(self, pressure: float) -> Policy:
        return Ratio(self.ratio * pressure)

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        return keep & (routing.worth >= self.ratio * routing.worth.amax(1, keepdim=True))


@dataclass(frozen=True, slots=True)
class Piggyback:
    """Puts back every slot whose expert a token of the step reads anyway."""

    def eased(self, pressure: float) -> Policy:
        return self

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        return keep | _at_slots(routing, per_expert(routing, keep.float()) > 0)


@dataclass(frozen=True, slots=True)
class Budget:
    """Reads at most `experts` in a step: those whose slots are worth most together."""

    experts: int

    def eased(self, pressure: float) -> Policy:
        return Budget(round(self.experts / pressure))

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        total = per_expert(routing, routing.worth * keep)
        return keep & _at_slots(routing, rank(total) < self.experts)


@dataclass(frozen=True, slots=True)
class Price:
    """Reads an expert in a step if the squares of what it is to each token, on average, reach `price`.

    What an expert is to a token is its slot's share of the token's worth, 0 where it was not asked. Skipped outputs lie
    nearly at right angles, so the square of what a token loses is about the sum of the squares of what is skipped, and
    one price for all experts, layers and steps loses least for what is read.
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
    """Another list of policies for each layer; layers that are not named keep all."""

    plan: Mapping[int, Sequence[Policy]]

    def eased(self, pressure: float) -> Policy:
        return LayerPlan({at: [policy.eased(pressure) for policy in plan] for at, plan in self.plan.items()})

    def __call__(self, routing: Routing, keep: Tensor) -> Tensor:
        for policy in self.plan.get(routing.layer, ()):
            keep = policy(routing, keep)
        return keep


def decide(routing: Routing, policies: Sequence[Policy]) -> Tensor:
    """The mask that a list of policies leaves: [N, k] bool, at least one slot kept of each token that asks for any."""
    asked = keep = routing.ids != SKIPPED
    for policy in policies:
        keep = policy(routing, keep)
    best = rank(routing.worth) == 0
    return (keep | (best & ~keep.any(1, keepdim=True))) & asked


def skip(routing: Routing, keep: Tensor, renormalise: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and weights [N, k] with what is not kept marked: id SKIPPED, weight 0."""
    weights = routing.weights * keep
    if renormalise:
        weights = weights * (routing.weights.sum(1, keepdim=True) / weights.sum(1, keepdim=True)).nan_to_num(0)
    return routing.ids.masked_fill(~keep, SKIPPED), weights


def rank(values: Tensor) -> Tensor:
    """The place of each value in its row, 0 for the largest; the first of equals comes first."""
    order = values.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


def per_expert(routing: Routing, values: Tensor) -> Tensor:
    """Sums values [N, k] for each step and expert: [steps, E]."""
    steps = int(routing.step.max()) + 1 if routing.steps is None else routing.steps
    cell = routing.step[:, None] * routing.experts + routing.ids.clamp(min=0)  # what is not asked adds its 0
    total = values.new_zeros(steps * routing.experts).index_add(0, cell.reshape(-1), values.reshape(-1))
    return total.view(steps, routing.experts)


def _at_slots(routing: Routing, table: Tensor) -> Tensor:
    """What a table [steps, E] says of each slot: [N, k]."""
    return table[routing.step].gather(1, routing.ids.clamp(min=0))


def written(policy: Policy) -> dict[str, Any]:
    """A policy as JSON can hold it; `named` reads it."""
    if isinstance(policy, LayerPlan):
        return {"kind": "LayerPlan", "plan": {at: [written(one) for one in plan] for at, plan in policy.plan.items()}}
    values = {each.name: getattr(policy, each.name) for each in fields(policy)}
    return {"kind": type(policy).__name__, **values}


def named(entry: Mapping[str, Any]) -> Policy:
    """The policy that `written` wrote."""
    values = {name: value for name, value in entry.items() if name != "kind"}
    if entry["kind"] == "LayerPlan":
        return LayerPlan({int(at): [named(one) for one in plan] for at, plan in values["plan"].items()})
    return KINDS[entry["kind"]](**values)


KINDS: dict[str, Callable[..., Policy]] = {
    kind.__name__: kind for kind in (TopK, Share, Ratio, Piggyback, Budget, Price)
}
