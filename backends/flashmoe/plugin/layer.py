"""How do vLLM's MoE layers skip experts?   Subclasses of its classes. Import only after `shape.unfit` gave None."""

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.config import CUDAGraphMode, get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear

from backends.flashmoe.plugin.settings import VARIABLE, Plan, Settings
from backends.flashmoe.plugin.slots import distinct, leaves_out, masked, reduced, routed, with_brought
from backends.flashmoe.plugin.worker import Worker

log = logging.getLogger("vllm.flashmoe")


def install(settings: Settings) -> None:
    """Registers both classes with vLLM, once. Where another plug-in registered one, only logs an error."""
    taken = [op_registry_oot[name] for name in ("RoutedExperts", "GateLinear") if name in op_registry_oot]
    if taken == [Experts, _Gate]:
        return
    if taken:
        log.error("flashmoe skips no expert: another plug-in has put %s in place", taken[0])
        return
    Experts.settings = settings
    RoutedExperts.register_oot(Experts)
    GateLinear.register_oot(_Gate)
    RoutedExperts.__init__ = _telling(RoutedExperts.__init__)
    log.info("flashmoe is on: %s", settings)


def _telling(made: Any) -> Any:
    """`RoutedExperts.__init__` that also logs an error, once a class, for a model's own subclass: vLLM's registry goes
    by the class that is asked for, so such a layer is not replaced."""

    @functools.wraps(made)
    def told(self: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self, Experts):
            _passed_over(type(self).__name__)
        made(self, *args, **kwargs)

    return told


@functools.cache
def _passed_over(name: str) -> None:
    log.error("flashmoe skips no expert in layers of %s: the model has them in place of vLLM's RoutedExperts", name)


class Experts(RoutedExperts):
    """vLLM's RoutedExperts with the policies of its layer applied to the router's output.

    Raises RuntimeError, which ends the server's start, where shared experts are slots like the routed ones.
    """

    settings: Settings
    worker: Worker | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.expert_map_manager.num_fused_shared_experts:
            raise RuntimeError(
                f"{VARIABLE}: shared experts that are fused with the routed ones would be skipped as these are; start"
                " with VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS=0, or without the variable"
            )
        config, device = get_current_vllm_config(), next(self.parameters()).device
        self._layer = number(self.layer_name)
        hashed = 0 <= self._layer < hash_layers(config.model_config.hf_text_config)
        self._plan: Plan = self.settings.at(self._layer, hashed)
        worker = Experts.worker = Experts.worker or Worker(self.settings, config, device)
        own = worker.own if self.settings.takes_own(self._layer, hashed) else None
        self.register_buffer("flashmoe_k", own.k if own else None, persistent=False)
        self._watch = worker.watch.joined(self.layer_name) if worker.watch and (self._plan or own) else None
        self.register_buffer("flashmoe_exact", self._watch.exact if self._watch else None, persistent=False)
        counts, self._seen = worker.counts.row(device)
        self.register_buffer("flashmoe_counts", counts, persistent=False)

    def forward_modular(
        self,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any = None,
        shared_experts_input: Any = None,
    ) -> Any:
        if self._looking():
            self._look(x, topk_weights, topk_ids)
        weights, ids = self._fewer(topk_weights, topk_ids, self.flashmoe_exact)
        if self.settings.log_s:
            self._count(topk_ids, ids)
        return super().forward_modular(x, weights, ids, shared_experts, shared_experts_input)

    def forward_monolithic(
        self, x: Tensor, router_logits: Tensor | None = None, input_ids: Tensor | None = None
    ) -> Any:
        """Raises RuntimeError: such a kernel does the routing itself. vLLM calls it in its profile run, so the server
        does not start."""
        raise RuntimeError(
            f"{VARIABLE}: {type(self.quant_method).__name__} routes inside of its kernel, where none can be skipped;"
            " choose another --moe-backend, or start without the variable"
        )

    def _fewer(self, weights: Tensor, ids: Tensor, exact: Tensor | None) -> tuple[Tensor, Tensor]:
        """Router weights and expert ids [N, k] with the policies applied; where `exact` is set, nothing is skipped."""
        policies: Sequence[Any] = self._plan
        if self.flashmoe_k is not None:
            policies = with_brought(policies, self.flashmoe_k[: len(ids)])
        if not policies:
            return weights, ids
        routing = routed(self._layer, self.global_num_experts, ids, weights)
        keep = masked(routing, policies, exact)
        fewer, lighter = reduced(routing, keep, self.settings.renormalise, self._takes_skipped())
        return lighter.to(weights.dtype), fewer.to(ids.dtype)

    def _looking(self) -> bool:
        if self._watch is None:
            return False
        step = get_forward_context()
        if step.attn_metadata is None or step.cudagraph_runtime_mode != CUDAGraphMode.NONE:
            return False  # a profile run, or a CUDA graph's
        return self._watch.looking(self.layer_name, step)

    def _look(self, x: Tensor, weights: Tensor, ids: Tensor) -> None:
        """Lets the guard compare the outputs with and without skipping. On copies, as a kernel may work in place."""
        skipped = super().forward_modular(x.clone(), *self._fewer(weights, ids, None))
        whole = super().forward_modular(x.clone(), weights, ids)
        if self._watch and isinstance(skipped, Tensor) and isinstance(whole, Tensor):
            self._watch.look(self._layer, skipped, whole)

    def _takes_skipped(self) -> bool:
        kernel = getattr(self.quant_method, "moe_kernel", None)
        name = type(kernel.fused_experts if kernel else self.quant_method).__name__
        try:
            return leaves_out(name, self.use_ep)
        except LookupError:
            raise RuntimeError(
                f"{VARIABLE}: what {name} makes of a skipped slot is not known, and it might lose experts that are not"
                " skipped; choose another --moe-backend, or start without the variable"
            ) from None

    def _count(self, asked: Tensor, read: Tensor) -> None:
        for at, ids in enumerate((asked, read)):
            self.flashmoe_counts[at] += distinct(ids, self.global_num_experts)
        if self._seen is not self.flashmoe_counts:
            self._seen.copy_(self.flashmoe_counts, non_blocking=True)


class _Gate(GateLinear):
    """vLLM's router linear, unchanged. MegaMoE has one but no RoutedExperts, so MegaMoE is refused here, by a
    RuntimeError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        backend = str(get_current_vllm_config().kernel_config.moe_backend)
        if "mega_moe" in backend:
            raise RuntimeError(
                f"{VARIABLE}: --moe-backend {backend} bypasses vLLM's layer of experts, so none can be skipped;"
                " choose another, or start without the variable"
            )
        super().__init__(*args, **kwargs)


def number(name: str) -> int:
    """ "model.layers.7.mlp.experts" -> 7. -1 for a name without a number."""
    found: Sequence[str] = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(found[0]) if found else -1


def hash_layers(config: Any) -> int:
    """The number of hash-routed layers (experts by token id); they are the first ones."""
    kinds = getattr(config, "mlp_layer_types", None) or ()
    return getattr(config, "num_hash_layers", None) or sum(kind == "hash_moe" for kind in kinds)
