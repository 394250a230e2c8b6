"""How do spans leave the process?   OTLP over HTTP, as JSON, from a thread of its own.

OpenTelemetry's own takes five to nine times as long for a span, with the interpreter's lock held (LOG.md). Where spans
go is told by its variables: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
"""

import logging
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from gateway import __version__
from gateway.telemetry.counts import Cell
from gateway.telemetry.spans import pairs

PERIOD = 2.0  # seconds that spans gather
BATCH = 64  # exchanges in one request; made in one go, with the interpreter's lock held
MOST = 2048  # exchanges that wait; what comes while so many wait is dropped, and counted
TIMEOUT = 10.0  # seconds for the collector
LAST = 2.0  # seconds for what is left when the process ends
LATER = frozenset({408, 429, 502, 503, 504})  # statuses after which the same spans may be sent again
Exchange = Iterable[dict[str, Any]]  # its spans; made in the thread
log = logging.getLogger("gateway")


class Sender:
    """Sends what it is given, until it is closed. `dropped` counts exchanges whose spans nobody got."""

    def __init__(self, environ: Mapping[str, str], dropped: Cell, period: float = PERIOD) -> None:
        self._dropped, self._period = dropped, period
        self._url, self._headers, self._resource = address(environ), headers(environ), resource(environ)
        self._due: deque[Exchange] = deque()
        self._troubled = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="spans", daemon=True)
        self._thread.start()

    def put(self, exchange: Exchange) -> None:
        if len(self._due) >= MOST:
            self._dropped[0] += 1
        else:
            self._due.append(exchange)

    def close(self) -> None:
        """Send what is left, for LAST seconds at most."""
        self._ending.set()
        self._thread.join(LAST)

    def _work(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(self._period)
            while self._due and self._sent():
                pass

    def _sent(self) -> bool:
        """Whether there is sense in sending more at once."""
        batch = [list(self._due.popleft()) for _ in range(min(BATCH, len(self._due)))]
        body = self._encoded(batch)
        try:
            with urllib.request.urlopen(urllib.request.Request(self._url, body, self._headers), timeout=TIMEOUT):  # noqa: S310
                self._tell(None)
                return True
        except urllib.error.HTTPError as error:
            again, why = error.code in LATER, f"status {error.code}"
        except (OSError, ValueError) as error:  # ValueError: no URL
            again, why = True, str(error)
        self._tell(why)
        if again and len(self._due) + len(batch) <= MOST:
            self._due.extendleft(reversed(batch))
        else:
            self._dropped[0] += len(batch)
        return False

    def _encoded(self, batch: list[list[dict[str, Any]]]) -> bytes:
        scope = {"name": "tiergate", "version": __version__}
        found = {"scope": scope, "spans": [span for exchange in batch for span in exchange]}
        return msgspec.json.encode({"resourceSpans": [{"resource": self._resource, "scopeSpans": [found]}]})

    def _tell(self, trouble: str | None) -> None:
        """One line when spans begin not to arrive, one when they do again."""
        if bool(trouble) == self._troubled:
            return
        self._troubled = bool(trouble)
        if trouble:
            log.warning("traces: %s does not take spans (%s)", self._url, trouble)
        else:
            log.warning("traces: %s takes spans again", self._url)


def address(environ: Mapping[str, str]) -> str:
    """The collector's URL for traces."""
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
    return environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or base.rstrip("/") + "/v1/traces"


def headers(environ: Mapping[str, str]) -> dict[str, str]:
    """The headers of each request to the collector."""
    given = environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
    return {"content-type": "application/json", "user-agent": f"tiergate/{__version__}", **_listed(given)}


def resource(environ: Mapping[str, str]) -> dict[str, Any]:
    """What is told of this process, as OTLP's JSON has it."""
    told = {"service.name": "tiergate", "service.version": __version__}
    told |= _listed(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if name := environ.get("OTEL_SERVICE_NAME"):
        told["service.name"] = name
    return {"attributes": pairs(told)}


def _listed(text: str) -> dict[str, str]:
    """`key=value,key=value`, percent-encoded."""
    found = (part.split("=", 1) for part in text.split(",") if "=" in part)
    return {unquote(name.strip()): unquote(value.strip()) for name, value in found}
