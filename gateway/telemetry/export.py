"""How do spans leave the process?   By OpenTelemetry's SDK: OTLP over HTTP, as protobuf, from a thread of its own.

The SDK reads its variables itself: OTEL_EXPORTER_OTLP_* say where to and how, OTEL_BSP_* how many wait and how long,
OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES who we are. To be imported only where something is traced: it takes
memory.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from gateway import __version__
from gateway.recorded import Record
from gateway.telemetry.counts import Cell
from gateway.telemetry.otlp import request
from gateway.telemetry.spans import SCOPE, spans
from gateway.trace import Trace

# Tells of each fault in a tracestate, with its text. Callers write those.
logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
LAST = 2.0  # seconds for what is left when the process ends; the SDK alone would take thirty


class Counting(OTLPSpanExporter):
    """OpenTelemetry's exporter; `lost` counts the spans that it gave up."""

    def __init__(self, lost: Cell) -> None:
        super().__init__()
        self._lost = lost

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        ours = [span for span in spans if span.instrumentation_scope is SCOPE]
        rest = [span for span in spans if span.instrumentation_scope is not SCOPE]
        found = SpanExportResult.SUCCESS
        for some, send in ((ours, self._send), (rest, super().export)):
            if some and send(some) is not SpanExportResult.SUCCESS:
                self._lost[0] += len(some)
                found = SpanExportResult.FAILURE
        return found

    def _send(self, ours: Sequence[ReadableSpan]) -> SpanExportResult:
        """By the SDK's client, which is not for others to use: where a version has none, as all other spans."""
        client = getattr(self, "_client", None)
        if client is None or self._shutdown:
            return super().export(ours)
        sent = client.export(request(ours[0].resource, SCOPE, ours))
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE


class Own(Resource):
    """A resource that knows its hash; the exporter asks with each span, and the SDK's writes itself as JSON for it."""

    def __init__(self, *told: Any) -> None:
        super().__init__(*told)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class Export:
    """Sends the spans of what it is given, and those that others make by `tracers`, of which `ratio` is sampled, until
    it is closed. Where too many wait the SDK drops the oldest, and says so in the log."""

    def __init__(self, lost: Cell, ratio: float) -> None:
        told = OTELResourceDetector().detect().attributes
        found = Resource.create({"service.name": "tiergate", "service.version": __version__, **told})
        self._resource = Own(found.attributes, found.schema_url)
        self._waiting = BatchSpanProcessor(Counting(lost))
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
        self._waiting.shutdown()  # type: ignore[no-untyped-call]
