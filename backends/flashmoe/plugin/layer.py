"""vLLM's layer of experts, asking fewer of them. Imports what `shape` found to be there."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear

from backends.flashmoe.plugin.settings import VARIABLE, Plan, Settings
from backends.flashmoe.plugin.slots import distinct, masked, reduced, routed, with_brought
from backends.flashmoe.plugin.worker import Worker

log = logging.getLogger("vllm.flashmoe")
# Kernels that leave out a single slot with id -1 when they sum a token's experts. Most do so for padding only, where
# all slots of a token are -1: Marlin without a map of experts adds rows that were never written, TritonExperts reads
# what -1 points to, and the CPU's kernel counts at index -1.
TAKES_SKIPPED = {"HummingIndexedExperts"}


def install(settings: Settings) -> None:
    """Puts both classes into vLLM's registry, once. Another plug-in's class stays in place, and the log says so."""
    taken = [op_registry_oot[name] for name in ("RoutedExperts", "GateLinear") if name in op_registry_oot]
    if taken == [Experts, _Gate]:
        return
    if taken:
        log.error("flashmoe skips no expert: another plug-in has put %s in place", taken[0])
        return
    Experts.settings = settings
    RoutedExperts.register_oot(Experts)
    GateLinear.register_oot(_Gate)
    log.info("flashmoe is on: %s", settings)


class Experts(RoutedExperts):
    """Asks the experts that the policies of its layer leave; all where they are none."""

    settings: Settings
    worker: Worker | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config, device = get_current_vllm_config(), next(self.parameters()).device
        self._layer = number(self.layer_name)
        hashed = 0 <= self._layer < hash_layers(config.model_config.hf_text_config)
        self._plan: Plan = self.settings.at(self._layer, hashed)
        worker = Experts.worker = Experts.worker or Worker(self.settings, config, device)
        own = worker.own if self.settings.takes_own(self._layer, hashed) else None
        self.register_buffer("flashmoe_k", own.k if own else None, persistent=False)
        self._watch = worker.watch if self._plan or own else None
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
        looking = self._watch is not None and self._watch.looking()
        if looking:
            self._look(x, topk_weights, topk_ids)
        exact = self._watch.exact if self._watch else None
        weights, ids = self._fewer(topk_weights, topk_ids, exact)
        if self.settings.log_s:
            self._count(topk_ids, ids)
        return super().forward_modular(x, weights, ids, shared_experts, shared_experts_input)

    def forward_monolithic(
        self, x: Tensor, router_logits: Tensor | None = None, input_ids: Tensor | None = None
    ) -> Any:
        """Refuses: its kernel routes inside. Comes in the run that vLLM starts with, so the server does not start."""
        raise RuntimeError(
            f"{VARIABLE}: {type(self.quant_method).__name__} routes inside of its kernel, where none can be skipped;"
            " choose another --moe-backend, or start without the variable"
        )

    def _fewer(self, weights: Tensor, ids: Tensor, exact: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights and ids of the slots that are read; all of them where `exact` is set."""
        policies: Sequence[Any] = self._plan
        if self.flashmoe_k is not None:
            policies = with_brought(policies, self.flashmoe_k[: len(ids)])
        if not policies:
            return weights, ids
        routing = routed(self._layer, self.global_num_experts, ids, weights)
        keep = masked(routing, policies, exact)
        fewer, lighter = reduced(routing, keep, self.settings.renormalise, self._takes_skipped())
        return lighter.to(weights.dtype), fewer.to(ids.dtype)

    def _look(self, x: Tensor, weights: Tensor, ids: Tensor) -> None:
        """Lets the guard compare. Copies, as a kernel may write its answer where it read."""
        skipped = super().forward_modular(x.clone(), *self._fewer(weights, ids, None))
        whole = super().forward_modular(x.clone(), weights, ids)
        if self._watch and isinstance(skipped, Tensor) and isinstance(whole, Tensor):
            self._watch.look(self._layer, skipped, whole)

    def _takes_skipped(self) -> bool:
        kernel = getattr(self.quant_method, "moe_kernel", None)
        return not self.use_ep and kernel is not None and type(kernel.fused_experts).__name__ in TAKES_SKIPPED

    def _count(self, asked: Tensor, read: Tensor) -> None:
        for at, ids in enumerate((asked, read)):
            self.flashmoe_counts[at] += distinct(ids, self.global_num_experts)
        if self._seen is not self.flashmoe_counts:
            self._seen.copy_(self.flashmoe_counts, non_blocking=True)


class _Gate(GateLinear):
    """vLLM's gate as it is. MegaMoE has a gate but no layer of experts, so this is where it is met."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        backend = str(get_current_vllm_config().kernel_config.moe_backend)
        if "mega_moe" in backend:
            raise RuntimeError(
                f"{VARIABLE}: --moe-backend {backend} bypasses vLLM's layer of experts, so none can be skipped;"
                " choose another, or start without the variable"
            )
        super().__init__(*args, **kwargs)


def number(name: str) -> int:
    """ "model.layers.7.mlp.experts" -> 7. A name without a number is no layer that settings can name: -1."""
    found: Sequence[str] = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(found[0]) if found else -1


def hash_layers(config: Any) -> int:
    """How many layers, from the first, route by a table of token ids."""
    kinds = getattr(config, "mlp_layer_types", None) or ()
    return getattr(config, "num_hash_layers", None) or sum(kind == "hash_moe" for kind in kinds)
