"""How is counted, at the cost of a look-up?   prometheus_client shows it; its own counters cost ten."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Cell = list[float]


class Counts(Collector):
    """A counter by label values. prometheus_client shows it; counting costs a look-up, where its own costs ten."""

    def __init__(self, registry: CollectorRegistry, name: str, told: str, labels: Sequence[str]) -> None:
        self._named = (name, told)
        self._labels = labels
        self._counts: dict[tuple[str, ...], Cell] = {}
        registry.register(self)

    def cell(self, *values: str) -> Cell:
        """The count itself, a list of one."""
        return self._counts.setdefault(values, [0.0])

    def add(self, *values: str, amount: float = 1.0) -> None:
        self.cell(*values)[0] += amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(*self._named, labels=self._labels)
        for values, (count,) in self._counts.copy().items():
            family.add_metric(values, count)
        yield family


class Spreads(Collector):
    """A histogram by label values; `bounds` are the buckets' upper ends. As cheap as Counts."""

    def __init__(
        self, registry: CollectorRegistry, name: str, told: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._named = (name, told)
        self._labels = labels
        self._bounds = bounds
        self._ends = [*map(floatToGoString, bounds), "+Inf"]
        self._found: dict[tuple[str, ...], Cell] = {}  # a count for each bucket, then the sum
        if not labels:
            self._found[()] = self._empty()
        registry.register(self)

    def _empty(self) -> list[float]:
        return [0.0] * (len(self._bounds) + 2)

    def cell(self, *values: str) -> Cell:
        """The buckets and the sum of one series."""
        found = self._found.get(values)
        if found is None:
            found = self._found[values] = self._empty()
        return found

    def put(self, cell: Cell, amount: float) -> None:
        cell[bisect_left(self._bounds, amount)] += 1
        cell[-1] += amount

    def add(self, amount: float, *values: str) -> None:
        self.put(self.cell(*values), amount)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(*self._named, labels=self._labels)
        for values, found in self._found.copy().items():
            *counts, total = found.copy()
            family.add_metric(values, list(zip(self._ends, accumulate(counts), strict=True)), total)
        yield family
