"""Is the error that skipping makes still as small as when it was calibrated?

In one step of `every`, each layer is computed twice from the same hidden states, with and without skipping. A moving
average of its tokens' relative errors is compared with a calibrated bound. Above the bound the pressure to skip is
halved, below it the pressure rises slowly. Far above the bound, or above it at the lowest pressure, the guard trips:
nothing is skipped any more, and the steps that are compared compute the skipping output aside. It resets after a number
of good comparisons in a row, which doubles with each trip.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor

WORST = 100.0  # what a value counts at most, and one that is no number: so an average stays a number
LEAST = 1e-3  # the least bound, for a layer in which nothing was skipped while it was calibrated


@dataclass(frozen=True, slots=True)
class Terms:
    """A guard's parameters. Steps are decode steps; a look is a step in which it compares."""

    every: int = 16  # steps from one look to the next
    smooth: float = 0.2  # weight of a new value in the moving average
    settle: int = 4  # looks between two changes of pressure
    rise: float = 0.05  # added to the pressure after `settle` looks within the bound
    floor: float = 0.125  # the lowest pressure; above the bound there, the guard trips
    trip: float = 2.0  # trips above this multiple of the bound
    calm: int = 32  # good looks in a row before a guard that tripped once resets
    slack: float = 0.95  # a look is good, while tripped, below this part of the bound


@dataclass(slots=True)
class Guard:
    """`bounds`: what the moving average of each gauge may reach; a gauge is `layer N` (relative error of its output) or
    `kl` (KL divergence of the model's output, nats a token)."""

    bounds: Mapping[str, float]
    terms: Terms = field(default_factory=Terms)
    pressure: float = 1.0  # 1: policies as given; toward 0: they skip less
    exact: bool = False  # tripped: nothing is skipped
    looking: bool = False  # this step is a look
    steps: int = 0
    trips: int = 0
    means: dict[str, float] = field(default_factory=dict)
    _looks: int = 0  # since pressure last changed
    _good: int = 0  # good looks in a row, while tripped
    _fresh: set[str] = field(default_factory=set)  # gauges with a new value since pressure last changed

    def begin(self, steps: int) -> None:
        """Starts a forward of so many steps: acts on the last look, and sets `looking` for this one."""
        if self.looking:
            self._decide()
        before, self.steps = self.steps, self.steps + steps
        self.looking = before // self.terms.every != self.steps // self.terms.every

    def look(self, layer: int, skipped: Tensor, whole: Tensor) -> None:
        """Compares a layer's outputs [N, H] with and without skipping, for the same hidden states."""
        self.watch(f"layer {layer}", distance(skipped - whole, whole))

    def watch(self, gauge: str, value: float) -> None:
        """Adds a value to a gauge's moving average."""
        value = min(WORST, value)  # in this order WORST for what is no number
        mean = self.means.get(gauge, value)
        self.means[gauge] = mean + self.terms.smooth * (value - mean)
        self._fresh.add(gauge)

    @property
    def strain(self) -> float:
        """The largest moving average over its bound; 0 without one."""
        return self._worst(self.bounds.keys())

    def metrics(self) -> dict[str, float]:
        """The guard's values by Prometheus series."""
        own = {"pressure": self.pressure, "exact": float(self.exact), "trips": self.trips, "strain": self.strain}
        gauges = {f'error{{gauge="{gauge}"}}': mean for gauge, mean in self.means.items()}
        return {f"flashmoe_guard_{name}": float(value) for name, value in {**own, **gauges}.items()}

    def _decide(self) -> None:
        if self.exact:
            self._good = self._good + 1 if self.strain < self.terms.slack else 0
            if self._good >= self.terms.calm << (self.trips - 1):
                self.exact, self._good, self._looks = False, 0, 0
            return
        self._looks += 1
        if self._looks < self.terms.settle:
            return
        strain = self._worst(self._fresh)  # an old value of a gauge that is seldom watched must not count twice
        self._looks, self._fresh = 0, set()
        if strain > self.terms.trip or (strain > 1 and self.pressure <= self.terms.floor):
            self.exact, self.trips, self.pressure = True, self.trips + 1, 1.0
        elif strain > 1:
            self.pressure = max(self.terms.floor, self.pressure / 2)
        else:
            self.pressure = min(1.0, self.pressure + self.terms.rise)

    def _worst(self, gauges: AbstractSet[str]) -> float:
        bounds = ((gauge, self.bounds[gauge]) for gauge in gauges if gauge in self.bounds)
        return max((self.means.get(gauge, 0.0) / most for gauge, most in bounds), default=0.0)


def distance(apart: Tensor, whole: Tensor) -> float:
    """The mean of the tokens' relative errors: `apart` [N, H], by which they differ from their outputs `whole` [N, H].
    Tokens of which both are 0, as padding's, are left out; 0 if there are no others.

    Each token counts alike, as the norms of a few, attention's sinks, are hundreds of times those of the others.
    """
    off, size = (torch.linalg.vector_norm(each, dim=1, dtype=torch.float32) for each in (apart, whole))
    errors = torch.where(off == 0, 0, off / size)
    real = (off + size != 0).sum().clamp(min=1)
    return (errors.sum() / real).item()


def bound(values: Tensor, smooth: float, sigmas: float = 6.0) -> float:
    """A bound for the moving average, of weight `smooth`, of values [n]: their mean plus `sigmas` standard deviations
    of that average, at least LEAST. Raises ValueError for a single value, which has no deviation."""
    if len(values) < 2:
        raise ValueError("a bound needs two values at least: calibrate on a longer text")
    return max(LEAST, (values.mean() + sigmas * values.std() * (smooth / (2 - smooth)) ** 0.5).item())
