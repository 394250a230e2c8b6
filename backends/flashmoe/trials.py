"""What does each way of skipping cost on the tiny model? One function for each claim; `report` prints them."""

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
    """A plan, measured."""

    name: str
    kept: float  # experts a token
    distinct: float  # experts a layer and step
    damage: float  # perplexity above that of the whole model
    error: float  # its standard error


class Oracle:
    """Stands where a predictor stands, and knows: it reads every expert to tell which were worth it."""

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
    exact: Quality  # of the whole model

    def point(self, name: str, plan: Plan, batch: int = measure.BATCH) -> Point:
        with Session(self.model, plan, lockstep=True) as session:
            quality = measure.quality(self.model, self.ids, batch)
        damage, error = quality.over(self.exact), quality.error(self.exact)
        return Point(name, session.kept, session.distinct, damage, error)


def ways(bench: Bench) -> dict[str, Callable[[float], Plan]]:
    """Every way to skip by its name, which makes a plan of a knob."""

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
    """Every policy over its knob, at batch 16."""
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
    """Distinct experts at which a curve does so much damage: straight lines between its points. NaN: not reached."""
    return between([(point.damage, point.distinct) for point in points], damage)


def damage_at(points: Sequence[Point], distinct: float) -> float:
    """The damage a curve does when it reads so many experts."""
    return between([(point.distinct, point.damage) for point in points], distinct)


def by_batch(bench: Bench, price: float) -> list[tuple[int, float, Point]]:
    """One price at several batch sizes, beside what the whole model reads there."""
    found = []
    for batch in (1, 4, 16, 64):
        whole = bench.point("whole", Plan([TopK(99)]), batch).distinct
        found.append((batch, whole, bench.point("price", Plan([Price(price)], bench.predictor), batch)))
    return found


def by_layer(bench: Bench, price: float) -> list[float]:
    """Distinct experts that a price leaves each layer."""
    with Session(bench.model, Plan([Price(price)], bench.predictor), lockstep=True) as session:
        measure.quality(bench.model, bench.ids)
    return [tally.experts / tally.steps for tally in session.tallies]


def asked(model: Any, ids: Tensor) -> Tensor:
    """The experts that each token asks in each layer: ids [N, T] -> [layers, N, T, k]."""
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
