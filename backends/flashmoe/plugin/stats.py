"""Which series of ours does vLLM's own /metrics show?   A class of `vllm.stat_logger_plugins`."""

import os
from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import StatLoggerBase

from backends.flashmoe.plugin.settings import VARIABLE
from backends.flashmoe.plugin.shared import told

Shown = tuple[type[CounterMetricFamily] | type[GaugeMetricFamily], str, str]
COUNTED: dict[str, Shown] = {
    "asked": (CounterMetricFamily, "flashmoe_experts_asked", "Experts that routers named, once a layer and step"),
    "read": (CounterMetricFamily, "flashmoe_experts_read", "Those of them that were read"),
    "own_tokens": (CounterMetricFamily, "flashmoe_own_tokens", "Generated tokens whose request brought a k"),
}
GUARD: dict[str, Shown] = {
    "exact": (GaugeMetricFamily, "flashmoe_guard_exact", "1 while the guard has whole answers served"),
    "strain": (GaugeMetricFamily, "flashmoe_guard_strain", "The worst layer's distance to whole answers, of its bound"),
    "trips": (CounterMetricFamily, "flashmoe_guard_trips", "Times that the guard tripped"),
    "steps": (CounterMetricFamily, "flashmoe_guard_steps", "Steps that the guard could have looked at"),
}


class Stats(StatLoggerBase):
    """Registers the workers' figures with prometheus_client, once; nothing while the plug-in is off."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        if os.environ.get(VARIABLE, "").strip() and not Figures.shown:
            Figures.shown = True  # one for all engines
            REGISTRY.register(Figures())

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: vLLM shows its own figures."""

    def log_engine_initialized(self) -> None:
        """Nothing to do."""


class Figures(Collector):
    """The workers' figures as Prometheus metric families, read at each scrape."""

    shown = False

    def collect(self) -> Iterable[Metric]:
        workers = told()
        yield from _families(COUNTED, workers)
        yield from _families(GUARD, {name: one["guard"] for name, one in workers.items() if "guard" in one})


def _families(shown: dict[str, Shown], workers: dict[str, dict[str, Any]]) -> Iterable[Metric]:
    for key, (kind, name, what) in shown.items():
        family = kind(name, what, labels=["worker"])
        for worker in [worker for worker, figures in workers.items() if key in figures]:
            family.add_metric([worker], workers[worker][key])
        yield family
