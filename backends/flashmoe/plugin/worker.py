"""What do the layers of one worker share?   Its counts, the k that requests set, its guard."""

import logging
from typing import Any

import torch
from vllm.config import CompilationMode, CUDAGraphMode
from vllm.distributed import tensor_model_parallel_all_reduce

from backends.flashmoe.plugin import own
from backends.flashmoe.plugin.counts import Counts, publish
from backends.flashmoe.plugin.own import Own
from backends.flashmoe.plugin.settings import VARIABLE, Settings
from backends.flashmoe.plugin.watch import Watch
from backends.flashmoe.policy import Budget, Piggyback

log = logging.getLogger("vllm.flashmoe")


class Worker:
    """Made with the first layer, from vLLM's VllmConfig and the model's device. Publishes its figures.

    Raises RuntimeError, which ends the server's start, for a guard that could never compare.
    """

    def __init__(self, settings: Settings, config: Any, device: torch.device) -> None:
        self.counts, self.own, self.watch = Counts(), None, None
        if settings.looks:
            refuse_blind(settings, config, device)
            self.watch = Watch(settings.looks, device, tensor_model_parallel_all_reduce)
        if settings.requests:
            self.own = _own(config, device)
        parallel = config.parallel_config
        publish(f"{parallel.data_parallel_rank}.{parallel.rank}", self.figures, settings.log_s)

    def figures(self) -> dict[str, Any]:
        """The worker's figures by name, those of the guard under `guard`."""
        found = self.counts.figures()
        if self.own:
            found["own_tokens"] = self.own.tokens
        if self.watch:
            found["guard"] = self.watch.figures()
        return found


def _own(config: Any, device: torch.device) -> Own | None:
    """None, and an error in the log, where requests cannot set a k: theirs is then ignored."""
    if unfit := own.unfit(config):
        log.error("flashmoe passes over %s of requests: %s", own.KEY, unfit)
        return None
    made = Own(config.scheduler_config.max_num_batched_tokens, device)
    own.attach(config, made)
    return made


def refuse_blind(settings: Settings, config: Any, device: torch.device) -> None:
    """Raises RuntimeError for a guard that could never compare, or not what matters."""
    compiled = config.compilation_config
    if config.parallel_config.data_parallel_size > 1:
        raise RuntimeError(f"{VARIABLE}: no guard with data parallelism, whose ranks must run each layer equally often")
    if device.type == "cpu" and compiled.mode != CompilationMode.NONE:
        raise RuntimeError(f"{VARIABLE}: a guard on a CPU needs --enforce-eager: compiled, no step can be looked at")
    plans = [settings.plan, *settings.layers.values()]
    shared = any(isinstance(policy, Piggyback | Budget) for plan in plans for policy in plan)
    if shared and device.type != "cpu" and compiled.cudagraph_mode != CUDAGraphMode.NONE:
        raise RuntimeError(
            f"{VARIABLE}: a guard of mode batch-aware needs --enforce-eager: with CUDA graphs it sees long prompts, of"
            " which other experts are skipped than of small batches"
        )
