"""Which experts can be removed from a model, so that it needs less memory?

An expert's saliency is the mean norm of its weighted output over the tokens routed to it. The least salient are removed
from the experts' weights and the router; what remains is an ordinary, smaller checkpoint. Skipping, by contrast, saves
memory traffic and no memory: over a few steps every expert is used.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backends.flashmoe.calib import Sample
from backends.flashmoe.experts import layers

COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")  # names of the number of experts in configurations


def saliency(sample: Sample, experts: int) -> Tensor:
    """The saliency of each expert of a layer: [E]; 0 for one that no token of the sample was routed to."""
    added = (sample.weights * sample.norms).flatten().float()
    total = torch.zeros(experts).index_add(0, sample.ids.flatten(), added)
    return total / torch.bincount(sample.ids.flatten(), minlength=experts).clamp_min(1)


def prune(model: Any, saliencies: Sequence[Tensor], keep: int) -> None:
    """Leaves each layer its `keep` most salient experts, in place; `saliencies` holds [E] for each layer. Raises
    ValueError when `keep` is below top_k, or a router cannot lose experts: a hash-routed layer's come from a table of
    token ids, and a choice among groups (DeepSeek V3) takes its groups from the experts' positions."""
    if keep < model.config.num_experts_per_tok:
        raise ValueError(f"{keep} experts are fewer than the {model.config.num_experts_per_tok} that a token asks")
    if (getattr(model.config, "n_group", None) or 1) > 1:
        raise ValueError("experts are chosen by groups, which would be other ones")
    routers = [router_of(model, experts) for experts in layers(model)]
    if any(hasattr(router, "tid2eid") for router in routers):
        raise ValueError("a layer's experts are named by token: it has to stay whole")
    for experts, router, salient in zip(layers(model), routers, saliencies, strict=True):
        kept = salient.topk(keep).indices.sort().values
        for module in (experts, router):
            _cut(module, kept, experts.num_experts)
        experts.num_experts = keep
        router.num_experts = keep
    for name in COUNTS:
        if hasattr(model.config, name):
            setattr(model.config, name, keep)


def router_of(model: Any, experts: Any) -> Any:
    """The router of a module of experts: its sibling with a weight matrix."""
    block = next(module for module in model.modules() if experts in list(module.children()))
    return next(child for child in block.children() if getattr(child, "weight", torch.empty(0)).ndim == 2)


def _cut(module: Any, kept: Tensor, experts: int) -> None:
    """Keeps the rows `kept` of every parameter and buffer whose first dimension is the number of experts."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if len(parameter) == experts:
            setattr(module, name, nn.Parameter(parameter.data[kept], requires_grad=parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if len(buffer) == experts:
            setattr(module, name, buffer[kept])
