"""How large will an expert's output be, before the expert is computed?

The router scores how well an expert fits a token, not the norm of its output. A small MLP on the router's input, the
hidden state, estimates the log norm of each expert's output; a slot's worth is its router weight times that norm. The
MLP's first matrix takes the same input as the router and has no bias, so both can be one stacked matrix product.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TRUNK = 64  # width of the MLP's hidden layers


class Head(nn.Module):
    """The MLP of one layer: hidden states [N, H] -> log norms of all experts' outputs [N, E] fp32."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(hidden, TRUNK, bias=False)
        self.inner = nn.Sequential(nn.SiLU(), nn.Linear(TRUNK, TRUNK), nn.SiLU(), nn.Linear(TRUNK, TRUNK), nn.SiLU())
        self.out = nn.Linear(TRUNK, experts)

    def forward(self, hidden: Tensor) -> Tensor:
        estimate: Tensor = self.out(self.inner(self.trunk(hidden.float())))
        return estimate


class Predictor(nn.Module):
    """One head for each MoE layer, in the order of the layers. `card`: how it was made and what it does, as JSON."""

    def __init__(self, hidden: int, experts: Sequence[int]) -> None:
        super().__init__()
        self.hidden, self.experts = hidden, list(experts)
        self.card: dict[str, Any] = {}
        self.heads = nn.ModuleList(Head(hidden, count) for count in experts)

    @torch.no_grad()
    def worth(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The estimated norm of what each slot adds: hidden [N, H], ids and weights [N, k] -> [N, k]."""
        return weights.float() * self.heads[layer](hidden).gather(1, ids).exp()

    def save(self, path: Path) -> None:
        """Writes the weights to `path` and the card into their header."""
        shape = {"hidden": self.hidden, "experts": self.experts}
        save_file(self.state_dict(), path, {"shape": json.dumps(shape), "card": json.dumps(self.card)})


def load(path: Path | str) -> Predictor:
    """A predictor, without gradients, from a file that `save` wrote. Raises OSError where there is none."""
    with safe_open(path, "pt") as file:
        noted = file.metadata()
        predictor = Predictor(**json.loads(noted["shape"]))
    predictor.load_state_dict(load_file(path))
    predictor.card = json.loads(noted["card"])
    return predictor.eval().requires_grad_(False)
