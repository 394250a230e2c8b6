"""What happened?   Metrics, one log line per exchange, and spans of those that are sampled."""

import asyncio
import atexit
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from gateway.policy import Policy
from gateway.recorded import Record
from gateway.standing import LIMITS, MODES, enforcement
from gateway.store import State
from gateway.telemetry.counts import CONTENT_TYPE as METRICS
from gateway.telemetry.counts import Gauge, shown
from gateway.telemetry.lines import line, text
from gateway.telemetry.meters import Meters
from gateway.telemetry.outlet import Outlet
from gateway.trace import Trace, sampled
from gateway.types import TierState, Verdict

__all__ = ["METRICS", "Gauge", "Outlet", "Telemetry"]

# vLLM >= 0.28 thinks unless told not to.
THINKS = (
    "triage: answers have no content, the model thinks first. Set chat_template_kwargs {thinking: false, "
    "enable_thinking: false} on the tier (engine: vllm sends it by itself), or in the server's own "
    "--default-chat-template-kwargs"
)
TOGETHER = 128  # exchanges that are counted together, or fewer when metrics are asked for
log = logging.getLogger("gateway")
States = Callable[[], Mapping[str, TierState]]


class Telemetry:
    """The process's metrics, its exchange log and its traces: `trace_ratio` of the exchanges, 0: none at all."""

    def __init__(self, log: bool, trace_ratio: float = 0.0) -> None:
        self.meters = Meters()
        self._thinks = False
        self._ended: deque[Record] = deque()  # to be counted
        self._counting = threading.Lock()
        self._untold: list[Record] = []  # of this turn of the event loop
        self._gauges: dict[str, Gauge] = {}
        self._log = Outlet(sys.__stdout__) if log else None
        self._ratio = trace_ratio
        self._export = None
        if trace_ratio:
            from gateway.telemetry.export import Export  # noqa: PLC0415  the SDK's memory, only where it is used

            self._export = Export(self.meters.unsent.cell(), trace_ratio)
        if log or trace_ratio:
            atexit.register(self.close)
        empty = "Processes to which the classifier answers without content."
        self.show(Gauge("gateway_verdicts_empty", empty, lambda: self._thinks))

    def show(self, gauge: Gauge) -> None:
        """Show this gauge from here on, in place of the one of its name."""
        self._gauges[gauge.name] = gauge

    def use(self, policy: Policy, states: States, store: Callable[[], State]) -> None:
        """Show `policy` as the one in force; only its model names become label values. A replica's label is its index
        in the policy: readers of metrics need not know where servers are.
        """
        self._count()
        self.meters.use(policy)
        self._use_tiers(policy, states)
        kept = "Processes that keep a limit so at present."

        def keeps(limit: str, mode: str) -> bool:
            return enforcement(policy.callers, store())[limit] == mode

        self.show(Gauge("gateway_limits", kept, keeps, ["limit", "kept"], [*product(LIMITS, MODES)]))
        self.show(Gauge("gateway_store_up", "1 while the shared store answers.", lambda: store() != "down"))
        info = policy.told()
        self.show(Gauge("gateway_policy_info", "The policy in force.", lambda *_: 1.0, [*info], [(*info.values(),)]))

    def _use_tiers(self, policy: Policy, states: States) -> None:
        tiers = [(name,) for name in policy.tiers]
        for name, told, what in (
            ("gateway_inflight_requests", "Open exchanges with servers.", "inflight"),
            ("gateway_queued_requests", "Requests that wait for a tier.", "queued"),
            ("gateway_places", "Exchanges that may be open with a tier's servers.", "places"),
        ):
            self.show(Gauge(name, told, lambda tier, what=what: getattr(states()[tier], what), ["tier"], tiers))
        up = "1 while a replica is asked, 0 while it is left alone."
        replicas = [(name, str(at)) for name, tier in policy.tiers.items() for at in range(len(tier.replicas))]
        self.show(
            Gauge("gateway_replica_up", up, lambda tier, at: states()[tier].up[int(at)], ["tier", "replica"], replicas)
        )

    def watch(self, files: Mapping[str, Callable[[], object]]) -> None:
        """Show which files cannot be used. `files`: by what each is for, what tells so by a value that is true."""
        unusable, names = "Processes to which a file of theirs is of no use at present.", [(name,) for name in files]
        self.show(Gauge("gateway_file_broken", unusable, lambda name: bool(files[name]()), ["file"], names))

    def expires(self, life: Callable[[], tuple[float, float]]) -> None:
        """Show when the certificate of the listener ends, and from when on it should have been renewed. Not every
        gateway has one."""
        ends = "When the certificate that callers see ends, in Unix seconds."
        due = "From when on that certificate should have been renewed, in Unix seconds."
        self.show(Gauge("gateway_certificate_expiration_timestamp_seconds", ends, lambda: life()[0]))
        self.show(Gauge("gateway_certificate_due_timestamp_seconds", due, lambda: life()[1]))

    @property
    def tracers(self) -> Any:
        """OpenTelemetry's TracerProvider for what is served elsewhere; None where nothing is traced."""
        return self._export.tracers if self._export else None

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        """The trace of a request that begins; None where it is not sampled."""
        return sampled(headers, self._ratio) if self._ratio else None

    def record(self, record: Record) -> None:
        """Takes an exchange that has ended. It is counted later, together with others; its log line and spans are
        written together with those of the same turn of the event loop."""
        ended = self._ended
        ended.append(record)
        if len(ended) == TOGETHER:
            _behind(self._count)
        if self._log or record.trace:
            self._untold.append(record)
            if len(self._untold) == 1:
                _behind(self._tell)
        if record.decision and record.decision.verdict and record.cache != "coalesced":
            self._alarm(record.decision.verdict)

    def _count(self) -> None:
        with self._counting:  # who shows the metrics does so in a thread
            ended = self._ended
            self.meters.add([ended.popleft() for _ in range(len(ended))])

    def _tell(self) -> None:
        untold, self._untold = self._untold, []
        told = [(record, self.meters.told(record.model)) for record in untold]
        for record, model in told:
            if record.trace and self._export:
                self._export.put(record, record.trace, model, self.meters.models)
        if self._log and told:
            at = int(time.time() * 1000) / 1000
            self._log.write(text([line(record, model, at) for record, model in told]))

    def _alarm(self, verdict: Verdict) -> None:
        """Logs when the classifier starts to answer without content, and when it answers again: a line each."""
        thinks = verdict.reason == "empty"
        if verdict.source == "cache" or thinks == self._thinks or not (thinks or verdict.label):
            return
        self._thinks = thinks
        log.warning(THINKS if thinks else "triage: answers have content again")

    def close(self) -> None:
        """Write the lines of what ended in this turn, send what is left of its spans."""
        self._tell()
        if self._log:
            self._log.close()
        if self._export:
            self._export.close()

    def render(self) -> bytes:
        """The metrics as Prometheus' text, of the type METRICS. Meant for a thread."""
        self._count()
        return shown([*self.meters.all, *self._gauges.copy().values()])


def _behind(work: Callable[[], None]) -> None:
    """Call `work` at the end of this turn of the event loop; outside of a loop at once."""
    try:
        asyncio.get_running_loop().call_soon(work)
    except RuntimeError:
        work()
