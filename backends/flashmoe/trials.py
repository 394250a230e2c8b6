"""What does each policy cost on the tiny model?   The measurements that `report` prints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backends.flashmoe import measure
from backends.flashmoe.costmodel import between
from backends.flashmoe.experts import layers, outputs, run_with
from backends.flashmoe.measure import Quality
from backends.flashmoe.policy import Budget, Piggyback, Policy, Price, Ratio, Share, TopK
from backends.flashmoe.predictor import Predictor
from backends.flashmoe.session import Plan, Session


@dataclass(frozen=True, slots=True)
class Point:
    """The measurement of a plan."""

    name: str
    kept: float  # mean experts of a token in a layer
    distinct: float  # mean distinct experts in a layer and step
    damage: float  # increase of perplexity over the model without skipping
    error: float  # standard error of `damage`


class Oracle:
    """In place of a predictor: the true norms, from computing every selected expert."""

    def __init__(self, model: Any) -> None:
        self.experts = layers(model)

    def worth(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return weights * outputs(self.experts[layer], hidden, ids).norm(dim=2)


@dataclass(frozen=True, slots=True)
class Bench:
    """A model, its predictor, and text to measure them with."""

    model: Any
    predictor: Predictor
    ids: Tensor  # [N, T]
    exact: Quality  # without skipping

    def point(self, name: str, plan: Plan, batch: int = measure.BATCH) -> Point:
        with Session(self.model, plan, lockstep=True) as session:
            quality = measure.quality(self.model, self.ids, batch)
        damage, error = quality.over(self.exact), quality.error(self.exact)
        return Point(name, session.kept, session.distinct, damage, error)


def ways(bench: Bench) -> dict[str, Callable[[float], Plan]]:
    """By name, a function from a policy's parameter to the plan: each policy by router weight, predictor and oracle."""

    def way(policies: Callable[[float], Sequence[Policy]], by: Any = None, scaled: bool = False) -> Any:
        return lambda knob: Plan(policies(knob), by, renormalise=scaled)

    policies: dict[str, Callable[[float], Sequence[Policy]]] = {
        "top-k": lambda k: [TopK(int(k))],
        "share": lambda share: [Share(share)],
        "NAEE ratio": lambda ratio: [Ratio(ratio)],
        "OEA": lambda k: [TopK(int(k)), Piggyback()],
        "budget": lambda count: [Budget(int(count))],
        "price": lambda each: [Price(each)],
    }
    judges = {"": None, " by predictor": bench.predictor, " by oracle": Oracle(bench.model)}
    found = {name + judge: way(made, by) for name, made in policies.items() for judge, by in judges.items()}
    published = {"top-k, renormalised": "top-k", "OEA as published": "OEA"}
    return found | {name: way(policies[own], scaled=True) for name, own in published.items()}


def curves(bench: Bench) -> dict[str, list[Point]]:
    """Each policy over values of its parameter, at batch size 16."""
    ks, dear = (6, 5, 4, 3, 2), (0.0005, 0.0008, 0.0012, 0.0016, 0.002, 0.0024, 0.0032, 0.0044)
    tried: dict[str, Sequence[float]] = {
        "top-k, renormalised": ks,
        "top-k": ks,
        "top-k by predictor": ks,
        "top-k by oracle": ks,
        "share": (0.9, 0.8, 0.7),
        "share by predictor": (0.9, 0.8, 0.7),
        "NAEE ratio": (0.4, 0.55, 0.7),
        "OEA as published": ks,
        "OEA": ks,
        "OEA by predictor": ks,
        "budget": (30, 28, 26, 24),
        "budget by predictor": (26, 24, 22, 20),
        "price": (0.0014, 0.0018, 0.0022, 0.0026),
        "price by predictor": dear,
        "price by oracle": dear,
    }
    made = ways(bench)

    def curve(name: str) -> list[Point]:
        return [bench.point(f"{name} {knob:g}", made[name](knob)) for knob in tried[name]]

    return {name: curve(name) for name in tried}


def experts_at(points: Sequence[Point], damage: float) -> float:
    """Distinct experts at which a curve has that damage, by linear interpolation; NaN where it does not reach it."""
    return between([(point.damage, point.distinct) for point in points], damage)


def damage_at(points: Sequence[Point], distinct: float) -> float:
    """The damage of a curve at so many distinct experts; NaN where it does not reach them."""
    return between([(point.distinct, point.damage) for point in points], distinct)


def by_batch(bench: Bench, price: float) -> list[tuple[int, float, Point]]:
    """Batch size, distinct experts without skipping, and the point of `Price(price)`, for several batch sizes."""
    found = []
    for batch in (1, 4, 16, 64):
        whole = bench.point("whole", Plan([TopK(99)]), batch).distinct
        found.append((batch, whole, bench.point("price", Plan([Price(price)], bench.predictor), batch)))
    return found


def by_layer(bench: Bench, price: float) -> list[float]:
    """Mean distinct experts a step in each layer, under `Price(price)`."""
    with Session(bench.model, Plan([Price(price)], bench.predictor), lockstep=True) as session:
        measure.quality(bench.model, bench.ids)
    return [tally.experts / tally.steps for tally in session.tallies]


def asked(model: Any, ids: Tensor) -> Tensor:
    """The experts selected for each token in each layer: ids [N, T] -> [layers, N, T, k]."""
    kept: list[list[Tensor]] = [[] for _ in layers(model)]

    def runner(layer: int) -> Any:
        def run(experts: Any, hidden: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
            kept[layer].append(slots)
            return (outputs(experts, hidden, slots) * weights[..., None]).sum(1)

        return run

    with run_with(model, [runner(layer) for layer in range(len(kept))]), torch.inference_mode():
        for batch in ids.split(measure.BATCH):
            model(input_ids=batch, use_cache=False)
    return torch.stack([torch.cat(each).view(*ids.shape, -1) for each in kept])
