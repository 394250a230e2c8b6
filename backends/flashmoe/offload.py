"""How does a model run whose experts do not all fit?

Each layer keeps its last used experts near (on the device) and fetches others from where the model was loaded to. While
a layer runs, the next layer's router is asked early, with this layer's input, which experts will be wanted; those are
fetched ahead. A fetch that nobody foresaw is waited for: on a real link that costs as much as many layers.
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
    """One layer's near experts, at most `room`; the least recently used goes first."""

    def __init__(self, experts: Any, room: int, device: str) -> None:
        self.experts, self.room, self.device = experts, room, device
        self.names = [name for name in NAMES if getattr(experts, name, None) is not None]
        self.near: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self.hits = self.misses = self.ahead = 0

    def fetch(self, expert: int) -> None:
        """Makes an expert near, and the most recent."""
        if expert not in self.near:
            while len(self.near) >= self.room:
                self.near.popitem(last=False)
            far = {name: getattr(self.experts, name)[expert] for name in self.names}
            self.near[expert] = {name: tensor.to(self.device, copy=True) for name, tensor in far.items()}
        self.near.move_to_end(expert)

    def run(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The layer's answer. Experts are run one by one, so `room` may be less than what a step asks; those that are
        near come first, before a fetch drives them out."""
        out = torch.zeros_like(hidden)
        asked = [expert for expert in ids.unique().tolist() if expert != SKIPPED]
        for expert in sorted(asked, key=lambda expert: expert not in self.near):
            self.hits += expert in self.near
            self.misses += expert not in self.near
            self.fetch(expert)
            out += mix(self._only(expert), hidden, ids.masked_fill(ids != expert, SKIPPED), weights)
        return out

    def foresee(self, experts: list[int]) -> None:
        """Fetches what will probably be asked; the likeliest come last, so that they stay longest."""
        self.ahead += sum(expert not in self.near for expert in experts)
        for expert in experts:
            self.fetch(expert)

    def _only(self, expert: int) -> Any:
        """Experts as `mix` reads them, of which one is there."""
        layout = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate", "act_fn")
        parts = {name: getattr(self.experts, name) for name in layout if hasattr(self.experts, name)}
        return SimpleNamespace(**parts, **{name: {expert: near} for name, near in self.near[expert].items()})


class Offload:
    """Runs a model with `room` near experts a layer, of which up to `ahead` are fetched early."""

    def __init__(self, model: Any, room: int, ahead: int = 0, device: str = "cpu") -> None:
        self.pages = [Pages(experts, room, device) for experts in layers(model)]
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
        """The experts that the layer's router would give most weight if it saw this input, the heaviest last."""
        scores = self.routers[layer](hidden)
        weights, ids = scores[1], scores[2]
        total = hidden.new_zeros(self.pages[layer].experts.num_experts).index_add(0, ids.flatten(), weights.flatten())
        best = total.topk(self.ahead)
        return best.indices[best.values > 0].flip(0).tolist()

    @property
    def hit_rate(self) -> float:
        """Of the experts asked in a step, those that were near."""
        hits = sum(pages.hits for pages in self.pages)
        return hits / max(1, hits + sum(pages.misses for pages in self.pages))
