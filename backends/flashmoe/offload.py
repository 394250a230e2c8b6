"""How often is an expert already in fast memory, if a model's experts do not all fit there?

Each layer has an LRU cache of copied experts; a miss copies one from the model's own tensors. Before a layer is
computed, the next layer's router is run on this layer's input to predict its experts, which are prefetched. Memory is
only simulated here: copies stay on the same device, and what counts is the hit rate, not a time.
"""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from backends.flashmoe.experts import Runner, layers, mix
from backends.flashmoe.policy import SKIPPED
from backends.flashmoe.prune import router_of

NAMES = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "up_proj_bias", "down_proj", "down_proj_bias")


class Pages:
    """One layer's LRU cache of at most `room` experts: `near`, the copied parameters by expert and name."""

    def __init__(self, experts: Any, room: int) -> None:
        self.experts, self.room = experts, room
        self.names = [name for name in NAMES if getattr(experts, name, None) is not None]
        self.near: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self.hits = self.misses = 0

    def fetch(self, expert: int) -> None:
        """Copies an expert into the cache, if it is missing, and makes it the most recently used."""
        if expert not in self.near:
            while len(self.near) >= self.room:
                self.near.popitem(last=False)
            self.near[expert] = {name: getattr(self.experts, name)[expert].clone() for name in self.names}
        self.near.move_to_end(expert)

    def run(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The layer's output: hidden [N, H], ids and weights [N, k] -> [N, H]. Experts are computed one by one, so a
        step may need more than `room`; cached ones come first, before a miss evicts them."""
        out = torch.zeros_like(hidden)
        asked = [expert for expert in ids.unique().tolist() if expert != SKIPPED]
        for expert in sorted(asked, key=lambda expert: expert not in self.near):
            self.hits += expert in self.near
            self.misses += expert not in self.near
            self.fetch(expert)
            out += mix(self._only(expert), hidden, ids.masked_fill(ids != expert, SKIPPED), weights)
        return out

    def foresee(self, experts: list[int]) -> None:
        """Prefetches experts, the least likely first, so that the likeliest are evicted last."""
        for expert in experts:
            self.fetch(expert)

    def _only(self, expert: int) -> Any:
        """A stand-in for the module of experts, as `mix` reads it, with the parameters of one cached expert."""
        layout = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate", "act_fn")
        parts = {name: getattr(self.experts, name) for name in layout if hasattr(self.experts, name)}
        return SimpleNamespace(**parts, **{name: {expert: near} for name, near in self.near[expert].items()})


class Offload:
    """Runs a model with `room` cached experts a layer; `ahead`: how many are prefetched for the next layer."""

    def __init__(self, model: Any, room: int, ahead: int = 0) -> None:
        self.pages = [Pages(experts, room) for experts in layers(model)]
        self.routers = [router_of(model, experts) for experts in layers(model)]
        self.ahead = min(ahead, room)

    def runners(self) -> list[Runner]:
        return [self._runner(layer) for layer in range(len(self.pages))]

    def _runner(self, layer: int) -> Runner:
        def run(_: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            if self.ahead and layer + 1 < len(self.pages):
                self.pages[layer + 1].foresee(self._guess(layer + 1, hidden))
            return self.pages[layer].run(hidden, ids, weights)

        return run

    def _guess(self, layer: int, hidden: Tensor) -> list[int]:
        """The `ahead` experts with the largest router weight, summed over tokens, if the layer had this input; the
        largest last."""
        scores = self.routers[layer](hidden)
        weights, ids = scores[1], scores[2]
        total = hidden.new_zeros(self.pages[layer].experts.num_experts).index_add(0, ids.flatten(), weights.flatten())
        best = total.topk(self.ahead)
        return best.indices[best.values > 0].flip(0).tolist()

    @property
    def hit_rate(self) -> float:
        """The part of the experts needed in a layer and step that were cached."""
        hits = sum(pages.hits for pages in self.pages)
        return hits / max(1, hits + sum(pages.misses for pages in self.pages))
