"""Is this the vLLM that the plug-in was written for?

vLLM's MoE layer changed its class twice (`FusedMoE` alone; then a runner; then `RoutedExperts`), so its interface is
compared and not the version number. Tested with vLLM 0.32.0 and 0.33.0's Python.
"""

import importlib
import inspect
from typing import Any

LAYER = ("vllm.model_executor.layers.fused_moe.routed_experts", "RoutedExperts")
GATE = ("vllm.model_executor.layers.fused_moe.router.gate_linear", "GateLinear")
STRATEGIES = (  # modules of the decisions endpoint, in 0.32.0 and in 0.33.0
    "vllm.entrypoints.generate.structured_decisions.strategies",
    "vllm.entrypoints.openai.decisions.strategies",
)
# The exact parameters of each method that is overridden: an additional one might have to be passed on.
METHODS = {
    "forward_modular": ("self", "x", "topk_weights", "topk_ids", "shared_experts", "shared_experts_input"),
    "forward_monolithic": ("self", "x", "router_logits", "input_ids"),
}


def unfit() -> str | None:
    """Why the installed vLLM cannot be extended; None if it can."""
    try:
        layer, gate = (getattr(importlib.import_module(module), name) for module, name in (LAYER, GATE))
    except (ImportError, AttributeError) as error:
        return f"this vLLM has no {LAYER[1]} or {GATE[1]} where 0.32.0 has them ({error})"
    return other_shape(layer) or not_pluggable(layer) or not_pluggable(gate)


def other_shape(layer: Any) -> str | None:
    """The first difference between a class and METHODS; None without one."""
    for name, expected in METHODS.items():
        if not (has := parameters(layer, name)):
            return f"{layer.__name__} has no {name}"
        if has != expected:
            return f"{layer.__name__}.{name} takes {', '.join(has)}, not {', '.join(expected)}"
    return None


def parameters(owner: Any, name: str) -> tuple[str, ...]:
    """The names of a method's parameters, `self` included; () if there is no such method."""
    found = getattr(owner, name, None)
    return tuple(inspect.signature(found).parameters) if found else ()


def not_pluggable(layer: Any) -> str | None:
    if not callable(getattr(layer, "register_oot", None)):
        return f"{layer.__name__} cannot be replaced: vLLM's registry of layers does not know it"
    return None
