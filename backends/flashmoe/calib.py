"""What do a model's routers select on real text, and how large are the experts' outputs?   A sample of tokens for each
MoE layer, to train the predictor and to rank experts for pruning."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.flashmoe.experts import layers, outputs, run_with


@dataclass(frozen=True, slots=True)
class Sample:
    """N tokens in one layer."""

    hidden: Tensor  # [N, H] fp16: the router's input
    ids: Tensor  # [N, k] selected experts
    weights: Tensor  # [N, k] router weights
    norms: Tensor  # [N, k] norms of the experts' outputs, without the router weight

    def __len__(self) -> int:
        return len(self.ids)


class Reservoir:
    """A uniform sample of at most `size` rows of a stream (reservoir sampling)."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seen = size, 0
        self.random = torch.Generator().manual_seed(seed)
        self.rows: tuple[Tensor, ...] = ()

    def add(self, *columns: Tensor) -> None:
        """Takes n rows; each column is a tensor [n, ...]."""
        n = len(columns[0])
        at = torch.arange(self.seen, self.seen + n)
        late = at >= self.size
        at[late] = (torch.rand(int(late.sum()), generator=self.random) * (at[late] + 1)).long()
        if not self.rows:
            self.rows = tuple(column.new_empty(self.size, *column.shape[1:]) for column in columns)
        for row, column in zip(self.rows, columns, strict=True):
            row[at[at < self.size]] = column[at < self.size]
        self.seen += n

    def sample(self) -> Sample:
        count = min(self.seen, self.size)
        return Sample(*(row[:count] for row in self.rows))


def texts(path: Path) -> Iterator[str]:
    """The texts of a JSONL file (`.gz` too): `text`, or the contents of `messages`. Raises ValueError for a line that
    has neither."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for number, line in enumerate(file, 1):
            record = json.loads(line)
            if "text" in record:
                yield record["text"]
            elif "messages" in record:
                yield "\n".join(str(message.get("content") or "") for message in record["messages"])
            else:
                raise ValueError(f"{path}:{number}: neither text nor messages")


@contextmanager
def capture(model: Any, size: int) -> Iterator[list[Reservoir]]:
    """While it is open, every forward fills the reservoirs, one for each MoE layer, with up to `size` tokens."""
    found = layers(model)
    kept = [Reservoir(size, seed) for seed in range(len(found))]

    def runner(index: int) -> Any:
        def run(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            each = outputs(experts, hidden, ids)
            kept[index].add(hidden.half(), ids, weights, each.norm(dim=2))
            return (each * weights[..., None]).sum(1).to(hidden.dtype)

        return run

    with run_with(model, [runner(index) for index in range(len(found))]), torch.no_grad():
        yield kept
