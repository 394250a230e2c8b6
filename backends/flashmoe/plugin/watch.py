"""Are the answers of layers that skip still near to whole ones? As `guard` decides, inside of vLLM.

In one step of `every` a layer computes aside what it would answer skipping and what it would answer whole. Steps that a
CUDA graph replays run no Python, so only others are looked at. What a recorded graph can obey is one flag on the
device: `exact`, with which everything is kept. So this guard has nothing to ease, and trips at its bound.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.forward_context import get_forward_context

from backends.flashmoe.guard import Guard, Terms
from backends.flashmoe.plugin.settings import Looks


class Watch:
    """One guard for the layers of a process. Ranks that share a layer's experts come to the same verdict."""

    def __init__(self, looks: Looks, device: torch.device) -> None:
        self.exact = torch.zeros(1, dtype=torch.bool, device=device)
        self._bound, self._bounds = looks.bound, dict[str, float]()
        self._guard = Guard(self._bounds, Terms(every=looks.every, floor=1.0))
        self._step: Any = None  # vLLM's record of the forward that was seen last

    def looking(self) -> bool:
        """Whether this step is compared; asked by each layer."""
        step = get_forward_context()
        if step.attn_metadata is None or step.cudagraph_runtime_mode != CUDAGraphMode.NONE:
            return False  # a trial run, or a graph's
        if step is not self._step:
            self._step = step
            self._guard.begin(1)
            self.exact.fill_(self._guard.exact)
        return self._guard.looking

    def look(self, layer: int, skipped: Tensor, whole: Tensor) -> None:
        """Compares the two answers to the same hidden states. Waits for the device."""
        sums = torch.stack([(skipped - whole).float().square().sum(), whole.float().square().sum()])
        apart, size = tensor_model_parallel_all_reduce(sums).tolist()
        self._bounds[f"layer {layer}"] = self._bound
        self._guard.watch(f"layer {layer}", (apart / size) ** 0.5 if size else 0.0)

    def figures(self) -> dict[str, float]:
        guard = self._guard
        return {"exact": float(guard.exact), "trips": guard.trips, "strain": guard.strain, "steps": guard.steps}
