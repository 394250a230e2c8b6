"""What are our kernels compared with?   transformers' ways to run experts, and vLLM's Triton kernel where it is.

They get ids and weights; converting those, and vLLM's lists of blocks, are made beforehand and not timed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DeepseekV4Config, MixtralConfig
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from backends.flashmoe.kernels.launch import Format
from loadtest.kernels.clock import Call
from loadtest.kernels.layers import Draw, Layer
from loadtest.kernels.plan import copied
from loadtest.kernels.vllm import Unfit, Vllm

COPIED = 8e9  # bytes above which batched_mm's copies are not waited for
GRAPH = " in a graph"
Prepared = Callable[[Draw], Call]  # what one routing takes, made ready, as a call without arguments


class Rivals:
    """Other ways to run a layer. `folder`: where vLLM's `fused_moe.py` lies, if it is not installed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.vllm = Vllm(folder)

    def graphed(self, way: str) -> bool:
        """Whether it can be captured in a CUDA graph; the others are launched from Python, as their users do."""
        return way.endswith(GRAPH) or way == "vllm"

    def of(self, way: str, layer: Layer, batch: int) -> Prepared:
        """Raises Unfit, with the reason, where there is nothing to compare."""
        if layer.form is not Format.BF16:
            raise Unfit("only bf16 is compared: another way has other arithmetic in the other formats")
        if way == "vllm":
            return self.vllm.prepared(layer, batch)
        name = way.removesuffix(GRAPH)
        if name == "batched_mm" and copied(layer.shape, batch) > COPIED:
            raise Unfit(f"would copy {copied(layer.shape, batch) / 1e9:.0f} GB of weights")
        return _transformers(name, layer)


def module(layer: Layer) -> Any:
    """The experts of transformers, on the layer's own memory."""
    shape, clamped = layer.shape, layer.act.limit > 0
    kind, config = (
        (DeepseekV4Experts, DeepseekV4Config(n_routed_experts=shape.experts, swiglu_limit=layer.act.limit))
        if clamped
        else (MixtralExperts, MixtralConfig(num_local_experts=shape.experts))
    )
    config.hidden_size = shape.hidden
    setattr(config, "moe_intermediate_size" if clamped else "intermediate_size", shape.inner)
    with torch.device("meta"):
        experts = kind(config)
    experts.gate_up_proj = nn.Parameter(layer.up.data, requires_grad=False)
    experts.down_proj = nn.Parameter(layer.down.data, requires_grad=False)
    return experts


def _transformers(name: str, layer: Layer) -> Prepared:
    experts = module(layer)
    experts.config._experts_implementation = name

    def prepare(draw: Draw) -> Call:
        ids, share = draw.ids.long(), draw.share.bfloat16()
        return lambda: experts(draw.hidden, ids, share)

    return prepare
