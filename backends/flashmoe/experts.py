"""How are the experts of one MoE layer computed in torch, leaving out the skipped ones?

Works on every transformers class that `use_experts_implementation` covers: it reads their layout flags.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from backends.flashmoe.policy import SKIPPED

NAME = "flashmoe"  # as an experts implementation of transformers


# Computes one MoE layer: (module of experts, hidden [N, H], ids [N, k], router weights [N, k]) -> [N, H].
Runner = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def register() -> None:
    """Registers NAME as an experts implementation of transformers; safe to call twice."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, _run)


def layers(model: Any) -> list[Any]:
    """The modules of a model that hold the stacked routed experts, one for each MoE layer, in order."""
    return [module for module in model.modules() if hasattr(module, "_apply_gate") and hasattr(module, "num_experts")]


@contextmanager
def run_with(model: Any, runners: Sequence[Runner]) -> Iterator[None]:
    """Computes each MoE layer by its runner; restores the former runners and implementation on leaving."""
    found = layers(model)
    before = [getattr(experts, "runner", None) for experts in found]
    implementation = model.config._experts_implementation
    install(model, runners)
    try:
        yield
    finally:
        model.set_experts_implementation(implementation)
        for experts, runner in zip(found, before, strict=True):
            experts.runner = runner


def install(model: Any, runners: Sequence[Runner | None]) -> None:
    """Computes each MoE layer by its runner from here on; None: by `mix`, which skips nothing of its own."""
    register()
    model.set_experts_implementation(NAME)
    for experts, runner in zip(layers(model), runners, strict=True):
        experts.runner = runner


def answers(experts: Any, hidden: Tensor, expert: int) -> Tensor:
    """The output of one expert for n tokens: [n, H] -> [n, H], without the router weight.

    `experts` is a module that holds all experts of a layer as stacked tensors, in transformers' layout.
    """
    if experts.has_gate:
        inner = experts._apply_gate(_linear(experts, hidden, "gate_up_proj", expert))
    else:
        inner = experts.act_fn(_linear(experts, hidden, "up_proj", expert))
    out = _linear(experts, inner, "down_proj", expert)
    return experts.post_expert_norm(out) if getattr(experts, "has_post_expert_norm", False) else out  # not in 5.17


def asked(ids: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The distinct experts in `ids` [N, k], each with its flat slots (row * k + column)."""
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)
    hit, counts = torch.unique_consecutive(flat[order], return_counts=True)
    for expert, slots in zip(hit.tolist(), order.split(counts.tolist()), strict=True):
        if expert != SKIPPED:
            yield expert, slots


def mix(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of each token's experts: hidden [N, H], ids and weights [N, k] -> [N, H].

    A slot whose id is SKIPPED adds nothing, and the weights of an expert without a slot are not read.
    """
    out = torch.zeros_like(hidden)
    flat = weights.reshape(-1, 1)
    for expert, slots in asked(ids):
        rows = slots // ids.shape[1]
        out = out.index_add(0, rows, (answers(experts, hidden[rows], expert) * flat[slots]).to(out.dtype))
    return out


def outputs(experts: Any, hidden: Tensor, ids: Tensor) -> Tensor:
    """The output of each slot's expert, without the router weight: [N, k, H]; zero where skipped."""
    out = hidden.new_zeros(ids.numel(), hidden.shape[1])
    for expert, slots in asked(ids):
        out[slots] = answers(experts, hidden[slots // ids.shape[1]], expert).to(out.dtype)
    return out.view(*ids.shape, -1)


def _linear(experts: Any, hidden: Tensor, name: str, expert: int) -> Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return functional.linear(hidden, weight.t() if experts.is_transposed else weight, bias)


def _run(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    runner: Runner = getattr(experts, "runner", None) or mix
    return runner(experts, hidden, ids, weights)
