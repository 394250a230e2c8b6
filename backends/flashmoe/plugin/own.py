"""Which k does the request of each token in a batch ask for?

A request sets it as `vllm_xargs: {"flashmoe_k": 2}`, for the tokens that it generates; its prompt follows the layer's
mode, as other requests may share the prompt's KV blocks. vLLM gives a layer the tokens of a step without their
requests, so the requests are read from the model runner where it prepares the step.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backends.flashmoe.plugin.shape import parameters

KEY = "flashmoe_k"
SCHEDULED = "vllm.v1.core.sched.output"
READ = {  # the attributes used, by class
    "SchedulerOutput": ("scheduled_new_reqs", "finished_req_ids", "num_scheduled_tokens"),
    "NewRequestData": ("req_id", "prompt_len", "sampling_params"),
}
Batch = tuple[Sequence[str], Iterable[int], Iterable[int]]  # request ids, tokens of this step, tokens before it


class Own:
    """`k` [most tokens of a step] int32 on the model's device: each token's k, 0 where its request sets none. The
    tensor is never reallocated, so a CUDA graph may hold its address."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.k = torch.zeros(tokens, dtype=torch.int32, device=device)
        self.tokens = 0  # generated with a k of their request, so far
        self._brought: dict[str, tuple[int, int]] = {}  # by request id: prompt tokens, k
        self._filled = 0  # leading rows of `k` that may be other than 0

    def learn(self, scheduled: Any) -> None:
        """Updates the requests with a k from the new and finished ones of a step's SchedulerOutput."""
        for name in scheduled.finished_req_ids:
            self._brought.pop(name, None)
        for one in scheduled.scheduled_new_reqs:
            if k := brought(one.sampling_params):
                self._brought[one.req_id] = (one.prompt_len, k)

    def spread(self, names: Sequence[str], counts: Iterable[int], done: Iterable[int]) -> None:
        """Sets `k` for a step. By request, in the batch's order: its id, its tokens in this step and those before."""
        if not self._brought and not self._filled:
            return
        sizes = [int(n) for n in counts]
        rows = torch.zeros(max(sum(sizes), self._filled), dtype=torch.int32, pin_memory=self.k.is_cuda)
        at, self._filled = 0, 0
        for name, size, before in zip(names, sizes, done, strict=True):
            prompt, k = self._brought.get(name, (0, 0))
            first, end = at + max(0, prompt - int(before)), at + size
            if k and first < end:
                rows[first:end] = k
                self.tokens += end - first
                self._filled = end
            at = end
        self.k[: len(rows)].copy_(rows, non_blocking=True)


def brought(params: Any) -> int:
    """A request's k, at most 1024; 0 for none, and for what is no whole number from 1 up: an error would end the
    worker."""
    k = ((params and params.extra_args) or {}).get(KEY)
    return min(k, 1024) if isinstance(k, int) and not isinstance(k, bool) and k >= 1 else 0


@dataclass(frozen=True, slots=True)
class Runner:
    """A model runner of vLLM: its module, the method that prepares a step, that method's parameters, and a function
    from the runner, the SchedulerOutput and the method's result to the arguments of `Own.spread`."""

    place: str
    prepare: str
    takes: tuple[str, ...]
    batch: Callable[[Any, Any, Any], Batch]


def _first(runner: Any, scheduled: Any, _: Any) -> Batch:
    batch, counts = runner.input_batch, scheduled.num_scheduled_tokens
    return batch.req_ids, [counts[name] for name in batch.req_ids], batch.num_computed_tokens_cpu[: batch.num_reqs]


def _second(_: Any, __: Any, batch: Any) -> Batch:
    return batch.req_ids, batch.num_scheduled_tokens, batch.num_computed_tokens_np


RUNNERS = {
    False: Runner(
        "vllm.v1.worker.gpu_model_runner",
        "_prepare_inputs",
        ("self", "scheduler_output", "num_scheduled_tokens"),
        _first,
    ),
    True: Runner(
        "vllm.v1.worker.gpu.model_runner",
        "prepare_inputs",
        ("self", "scheduler_output", "batch_req_state", "batch_desc", "num_active_loras"),
        _second,
    ),
}


def unfit(config: Any) -> str | None:
    """Why a server with this VllmConfig cannot take a k from requests; None if it can."""
    parallel = config.parallel_config
    if parallel.data_parallel_size > 1 or parallel.use_sequence_parallel_moe:
        return "with data or sequence parallelism a layer is given other tokens than the runner prepared"
    if parallel.use_ubatching or parallel.prefill_context_parallel_size > 1:
        return "a step's tokens are split over several forwards or devices"
    if config.speculative_config is not None:
        return "with speculative decoding a draft's layers are given other tokens than the runner prepared"
    known = RUNNERS[config.use_v2_model_runner]
    found = importlib.import_module(known.place).GPUModelRunner
    if (has := parameters(found, known.prepare)) != known.takes:
        return f"{known.place}.{known.prepare} takes {', '.join(has)}, not {', '.join(known.takes)}"
    if parameters(found, "execute_model")[:2] != ("self", "scheduler_output"):
        return f"{known.place}.execute_model does not take a scheduler_output first"
    step = importlib.import_module(SCHEDULED)
    lacking = [
        f"{kind}.{name}" for kind, names in READ.items() for name in names if not _has(getattr(step, kind), name)
    ]
    return f"{SCHEDULED} has no {lacking[0]}" if lacking else None


def _has(kind: Any, name: str) -> bool:
    """Whether a data class has a field or property."""
    return name in inspect.get_annotations(kind) or hasattr(kind, name)


def attach(config: Any, own: Own) -> None:
    """Wraps two methods of the runner's class so that `own` is updated in each step. To be called once in a process."""
    known = RUNNERS[config.use_v2_model_runner]
    runner = importlib.import_module(known.place).GPUModelRunner
    execute, prepare = runner.execute_model, getattr(runner, known.prepare)

    @functools.wraps(execute)
    def executed(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        own.learn(scheduler_output)
        return execute(self, scheduler_output, *args, **kwargs)

    @functools.wraps(prepare)
    def prepared(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        made = prepare(self, scheduler_output, *args, **kwargs)
        own.spread(*known.batch(self, scheduler_output, made))
        return made

    runner.execute_model = executed
    setattr(runner, known.prepare, prepared)
