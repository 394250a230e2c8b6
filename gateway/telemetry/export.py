"""How do spans leave the process?   By OpenTelemetry's SDK, from a thread of its own.

The SDK reads its variables itself: OTEL_BSP_* say how many wait and how long, OTEL_SERVICE_NAME and
OTEL_RESOURCE_ATTRIBUTES who we are. To be imported only where something is traced: it takes memory.
"""

import logging
import threading
from collections.abc import Mapping

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from gateway import __version__
from gateway.recorded import Record
from gateway.telemetry.counts import Cell
from gateway.telemetry.sending import Sender
from gateway.telemetry.spans import spans
from gateway.trace import Trace

# Tells of each fault in a tracestate, with its text. Callers write those.
logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
LAST = 2.0  # seconds for what is left when the process ends; the SDK alone would take thirty


class Export:
    """Sends the spans of what it is given, and those that others make by `tracers`, of which `ratio` is sampled, until
    it is closed. Where too many wait the SDK drops the oldest, and says so in the log."""

    def __init__(self, lost: Cell, ratio: float) -> None:
        told = OTELResourceDetector().detect().attributes
        self._resource = Resource.create({"service.name": "tiergate", "service.version": __version__, **told})
        self._waiting = BatchSpanProcessor(Sender(lost))
        sampler = ParentBased(TraceIdRatioBased(ratio))
        self.tracers = TracerProvider(sampler, self._resource, shutdown_on_exit=False)
        self.tracers.add_span_processor(self._waiting)
        self._over = threading.Event()
        self._ending = threading.Thread(target=self._end, name="last spans", daemon=True)
        self._ending.start()  # here, since Python 3.12 starts none at exit

    def put(self, record: Record, trace: Trace, model: str | None, served: Mapping[str, str]) -> None:
        """As in spans(). Returns at once."""
        for span in spans(record, trace, model, served, self._resource):
            self._waiting.on_end(span)

    def close(self) -> None:
        """Send what is left, for LAST seconds at most, however often it is asked to."""
        if not self._over.is_set():
            self._over.set()
            self._ending.join(LAST)

    def _end(self) -> None:
        self._over.wait()
        self._waiting.shutdown()  # type: ignore[no-untyped-call]  # the SDK's
