"""How much will an expert say, before it is read?

The router knows how well an expert fits, not how large its answer is. A small network on the router's own input
estimates the logarithm of each expert's output norm; a slot is worth its weight times that norm. The first matrix has
the router's input and no bias, so a kernel can stack it under the router's and pay one multiplication for both.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TRUNK = 64  # inner width


class Head(nn.Module):
    """One layer's estimate: router input [N, H] -> log norms of all experts' outputs [N, E]."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(hidden, TRUNK, bias=False)
        self.inner = nn.Sequential(nn.SiLU(), nn.Linear(TRUNK, TRUNK), nn.SiLU(), nn.Linear(TRUNK, TRUNK), nn.SiLU())
        self.out = nn.Linear(TRUNK, experts)

    def forward(self, hidden: Tensor) -> Tensor:
        estimate: Tensor = self.out(self.inner(self.trunk(hidden.float())))
        return estimate


class Predictor(nn.Module):
    """A head for each layer of routed experts, in their order."""

    def __init__(self, hidden: int, experts: Sequence[int]) -> None:
        super().__init__()
        self.hidden, self.experts = hidden, list(experts)
        self.heads = nn.ModuleList(Head(hidden, count) for count in experts)

    @torch.no_grad()
    def worth(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The estimated norm of what each slot adds: hidden [N, H], ids and weights [N, k] -> [N, k]."""
        return weights.float() * self.heads[layer](hidden).gather(1, ids).exp()

    def save(self, path: Path, card: dict[str, object]) -> None:
        """Writes the weights to `path` and the card, which must be JSON, into their header."""
        shape = {"hidden": self.hidden, "experts": self.experts}
        save_file(self.state_dict(), path, {"shape": json.dumps(shape), "card": json.dumps(card)})


def load(path: Path | str) -> tuple[Predictor, dict[str, Any]]:
    """A predictor and its card, as `save` wrote them."""
    with safe_open(path, "pt") as file:
        noted = file.metadata()
        predictor = Predictor(**json.loads(noted["shape"]))
    predictor.load_state_dict(load_file(path))
    return predictor.eval().requires_grad_(False), json.loads(noted["card"])
