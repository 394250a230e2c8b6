"""Can an expert's last output be used again for the sequence's next token? Seldom; off unless someone turns it on.

An output is reused for the same sequence only if the cosine similarity of the two hidden states is at least `bound`.
Consecutive tokens share many experts, but their hidden states differ, so a low bound does worse than skipping.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from backends.flashmoe.experts import Runner, layers, outputs
from backends.flashmoe.policy import SKIPPED


@dataclass(slots=True)
class Memory:
    """One layer's last input and output of each expert, for each sequence."""

    inputs: Tensor  # [B, E, H]; zero: none
    answers: Tensor  # [B, E, H], without the router weight


class Reuse:
    """Computes layers with reuse, for `sequences` that are decoded together. Nothing is reused at a bound above 1."""

    def __init__(self, model: Any, sequences: int, bound: float) -> None:
        self.sequences, self.bound = sequences, bound
        self.asked = self.reused = 0  # slots
        self.memories: list[Memory | None] = [None] * len(layers(model))

    def runners(self) -> list[Runner]:
        return [self._runner(layer) for layer in range(len(self.memories))]

    def forget(self) -> None:
        """Drops all outputs; to be called before other sequences are decoded."""
        self.memories = [None] * len(self.memories)

    def _runner(self, layer: int) -> Runner:
        def run(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            """hidden [B * T, H], sequence after sequence, so a step's tokens are every T-th row."""
            memory = self.memories[layer]
            if memory is None:
                zero = hidden.new_zeros(self.sequences, experts.num_experts, hidden.shape[1])
                memory = self.memories[layer] = Memory(zero, zero.clone())
            out, length = torch.empty_like(hidden), len(hidden) // self.sequences
            for step in range(length):
                each = self._step(memory, experts, hidden[step::length], ids[step::length])
                out[step::length] = (each * weights[step::length, :, None]).sum(1).to(out.dtype)
            return out

        return run

    def _step(self, memory: Memory, experts: Any, hidden: Tensor, ids: Tensor) -> Tensor:
        """Outputs of one step, computed or reused: hidden [B, H], ids [B, k] -> [B, k, H]."""
        rows = torch.arange(len(ids))[:, None]
        near = functional.cosine_similarity(memory.inputs[rows, ids], hidden[:, None], dim=2) >= self.bound
        each = outputs(experts, hidden, ids.masked_fill(near, SKIPPED))
        each[near] = memory.answers[rows, ids][near]
        fresh = ~near
        memory.inputs[rows.expand_as(ids)[fresh], ids[fresh]] = hidden[:, None].expand_as(each)[fresh]
        memory.answers[rows.expand_as(ids)[fresh], ids[fresh]] = each[fresh]
        self.asked += near.numel()
        self.reused += int(near.sum())
        return each
