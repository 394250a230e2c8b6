"""Is skipping still as harmless as it was when it was calibrated?

In one step of `every` both answers are computed from the same hidden states: what is skipped and what is whole. Their
distance, smoothed, is held against a calibrated bound. Above it the pressure to skip is halved, below it the pressure
rises slowly; far above it, or above it with nothing left to ease, the guard trips: whole answers are served, and it is
the skipped ones that are computed aside. It lets go when they have been good for a while, twice as long each time.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Terms:
    """How a guard acts. Steps are decode steps; looks are the steps in which it compares."""

    every: int = 16  # steps from look to look
    smooth: float = 0.2  # what a look weighs in the moving average
    settle: int = 4  # looks between two changes of pressure
    rise: float = 0.05  # pressure gained by a good settle, of 1
    floor: float = 0.125  # pressure below which there is nothing left to ease
    trip: float = 2.0  # times the bound
    calm: int = 32  # good looks before a tripped guard lets go the first time
    slack: float = 0.95  # of the bound; what counts as good while tripped


@dataclass(slots=True)
class Guard:
    """Bounds are what each gauge's moving average may reach: an error by layer name, `kl` for the final answer."""

    bounds: Mapping[str, float]
    terms: Terms = field(default_factory=Terms)
    pressure: float = 1.0  # 1: policies as given; toward 0: they skip less
    exact: bool = False  # tripped: whole answers are served
    looking: bool = False  # this step is compared
    steps: int = 0
    trips: int = 0
    means: dict[str, float] = field(default_factory=dict)
    _looks: int = 0  # since pressure last changed
    _good: int = 0  # in a row, while tripped
    _fresh: set[str] = field(default_factory=set)  # gauges watched since pressure last changed

    def begin(self, steps: int) -> None:
        """So many steps start: closes the last look, and says whether to look at these."""
        if self.looking:
            self._decide()
        before, self.steps = self.steps, self.steps + steps
        self.looking = before // self.terms.every != self.steps // self.terms.every

    def look(self, layer: int, skipped: Tensor, whole: Tensor) -> None:
        """Compares a layer's two answers to the same hidden states: the size of the difference, of the whole."""
        self.watch(f"layer {layer}", distance(skipped, whole))

    def watch(self, gauge: str, value: float) -> None:
        mean = self.means.get(gauge, value)
        self.means[gauge] = mean + self.terms.smooth * (value - mean)
        self._fresh.add(gauge)

    @property
    def strain(self) -> float:
        """The worst gauge that has a bound, as a multiple of it."""
        return self._worst(self.bounds.keys())

    def metrics(self) -> dict[str, float]:
        """What a dashboard shows: names follow Prometheus."""
        own = {"pressure": self.pressure, "exact": float(self.exact), "trips": self.trips, "strain": self.strain}
        gauges = {f"error{{gauge={gauge!r}}}": mean for gauge, mean in self.means.items()}
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
        strain = self._worst(self._fresh)  # a gauge that is seldom watched must not be held against it twice
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


def distance(skipped: Tensor, whole: Tensor) -> float:
    """The norm of the difference, of the whole's."""
    return ((skipped - whole).norm() / whole.norm()).item()


def bound(values: Tensor, smooth: float, sigmas: float = 6.0) -> float:
    """What the moving average of such values [n] should stay below: `sigmas` of its own deviations above the mean."""
    return (values.mean() + sigmas * values.std() * (smooth / (2 - smooth)) ** 0.5).item()
