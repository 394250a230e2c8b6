"""Is the error that skipping makes still small, inside of vLLM?   `guard` decides.

In one step of `every` a layer computes its output with and without skipping and compares them. Steps that replay a CUDA
graph run no Python, so only others are compared. A captured graph can only follow one flag on the device, `exact`, with
which nothing is skipped: so this guard has no pressure to lower, and trips at its bound.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.forward_context import get_forward_context

from backends.flashmoe.guard import Guard, Terms, distance, squares
from backends.flashmoe.plugin.settings import Looks


class Watch:
    """One guard for all layers of a process. The ranks of a tensor-parallel group decide alike."""

    def __init__(self, looks: Looks, device: torch.device) -> None:
        self.exact = torch.zeros(1, dtype=torch.bool, device=device)
        self._bound, self._bounds = looks.bound, dict[str, float]()
        self._guard = Guard(self._bounds, Terms(every=looks.every, floor=1.0))
        self._step: Any = None  # vLLM's forward context of the last step seen

    def looking(self) -> bool:
        """Whether this step is compared; called by each layer."""
        step = get_forward_context()
        if step.attn_metadata is None or step.cudagraph_runtime_mode != CUDAGraphMode.NONE:
            return False  # a profile run, or a CUDA graph's
        if step is not self._step:
            self._step = step
            self._guard.begin(1)
            self.exact.fill_(self._guard.exact)
        return self._guard.looking

    def look(self, layer: int, skipped: Tensor, whole: Tensor) -> None:
        """Compares a layer's outputs with and without skipping, summed over ranks. Synchronises with the device."""
        squared = tensor_model_parallel_all_reduce(squares(skipped, whole))
        self._bounds[f"layer {layer}"] = self._bound
        self._guard.watch(f"layer {layer}", distance(squared))

    def figures(self) -> dict[str, float]:
        """The guard's values by the names that `stats.GUARD` has."""
        guard = self._guard
        return {"exact": float(guard.exact), "trips": guard.trips, "strain": guard.strain, "steps": guard.steps}
