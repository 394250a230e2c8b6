"""How much perplexity does a way of running a model cost?"""

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TINY = Path(__file__).parent / "tiny"  # the shipped model and its texts
LENGTH, BATCH = 256, 16  # bytes of a sequence; sequences decoded together


@dataclass(frozen=True, slots=True)
class Quality:
    """Losses of N sequences, nats a token; two ways of running are compared sequence by sequence."""

    losses: Tensor  # [N]

    @property
    def perplexity(self) -> float:
        return math.exp(self.losses.mean().item())

    def over(self, exact: "Quality") -> float:
        """The increase of perplexity over `exact`."""
        return self.perplexity - exact.perplexity

    def error(self, exact: "Quality") -> float:
        """The standard error of `over`, from the differences sequence by sequence."""
        apart = (self.losses - exact.losses).std() / len(self.losses) ** 0.5
        return self.perplexity * apart.item()


def held_out(sequences: int) -> Tensor:
    """Text that the tiny model was not trained on: ids [sequences, LENGTH]."""
    data = gzip.decompress((TINY / "held_out.bin.gz").read_bytes())[: sequences * LENGTH]
    return torch.tensor(list(data)).view(sequences, LENGTH)


@torch.inference_mode()
def quality(model: Any, ids: Tensor, batch: int = BATCH) -> Quality:
    """Teacher-forced losses of ids [N, T], `batch` sequences at a time."""
    losses = []
    for some in ids.split(batch):
        logits = model(input_ids=some, use_cache=False).logits[:, :-1]
        each = functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="none")
        losses.append(each.view(len(some), -1).mean(1))
    return Quality(torch.cat(losses))
