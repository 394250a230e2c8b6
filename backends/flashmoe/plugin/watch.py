"""Is the error that skipping makes still small, inside of vLLM?   `guard` decides.

In one step of `every` a layer computes its output with and without skipping and compares them. Steps that replay a CUDA
graph run no Python, so only others are compared. A captured graph can only follow one flag on the device, `exact`, with
which nothing is skipped: so this guard has no pressure to lower, and trips at its bound.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from backends.flashmoe.guard import Guard, Terms, distance
from backends.flashmoe.plugin.settings import Looks


class Watch:
    """One guard for all layers of a process. The ranks of a tensor-parallel group decide alike: `summed` gives each the
    sum of their tensors."""

    def __init__(self, looks: Looks, device: torch.device, summed: Callable[[Tensor], Tensor]) -> None:
        self.exact = torch.zeros(1, dtype=torch.bool, device=device)
        self._bound, self._bounds, self._summed = looks.bound, dict[str, float](), summed
        self._guard = Guard(self._bounds, Terms(every=looks.every, floor=1.0))
        self._first = ""
        self._step: object = None  # the last forward of the model that is served

    def joined(self, layer: str) -> "Watch":
        """Itself. To be called with the name of each layer that is made, those of the model that is served first."""
        self._first = self._first or layer
        return self

    def looking(self, layer: str, step: object) -> bool:
        """Whether this forward, vLLM's context `step`, is compared; called by each layer.

        A step begins at the layer that joined first. A drafting model runs forwards of its own: they are not looked at,
        as what it proposes is verified, and not counted, as every 64th might always be one of them.
        """
        if layer == self._first and step is not self._step:
            self._step = step
            self._guard.begin(1)
            self.exact.fill_(self._guard.exact)
        return self._guard.looking and step is self._step

    def look(self, layer: int, skipped: Tensor, whole: Tensor) -> None:
        """Compares a layer's outputs with and without skipping, of which each rank has a part of the sum. Synchronises
        with the device."""
        apart, whole = self._summed(skipped - whole), self._summed(whole)
        self._bounds[f"layer {layer}"] = self._bound
        self._guard.watch(f"layer {layer}", distance(apart, whole))

    def figures(self) -> dict[str, float]:
        """The guard's values by the names that `stats.GUARD` has."""
        guard = self._guard
        return {"exact": float(guard.exact), "trips": guard.trips, "strain": guard.strain, "steps": guard.steps}
