"""How do spans reach a collector?   OTLP over HTTP, where and as OpenTelemetry's OTEL_EXPORTER_OTLP_* say.

OpenTelemetry's own exporter brings requests and protobuf: 8 MB, for bytes that gateway/telemetry/otlp.py makes.
"""

import gzip
import logging
import os
import random
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from http.client import HTTPException
from itertools import groupby
from operator import attrgetter
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request, UnknownHandler

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.util.re import parse_env_headers

from gateway.telemetry.counts import Cell
from gateway.telemetry.otlp import request

AGAIN = frozenset({"429", "502", "503", "504"})  # as OTLP says
PAUSE = 1.0  # seconds before the second try, doubled before each that follows; a fifth more or less
SECONDS = 10.0  # for all tries of a batch
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "none": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}
log = logging.getLogger("gateway")


class Sender(SpanExporter):
    """An exporter for the SDK's processor, which calls it in a thread, with spans of one resource that have no events
    and links. `lost` counts the spans that could not be sent."""

    def __init__(self, lost: Cell) -> None:
        self._lost = lost
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
        self._url = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or f"{base.removesuffix('/')}/v1/traces"
        self._headers = {"content-type": "application/x-protobuf", **parse_env_headers(told("HEADERS"), liberal=True)}
        self._seconds = seconds()
        packing = told("COMPRESSION").strip().lower()
        self._pack = PACKED.get(packing, bytes)
        if packing not in PACKED:
            log.warning("spans: OTEL_EXPORTER_OTLP_COMPRESSION is unknown, they go as they are: %.64r", packing)
        elif self._pack is not bytes:
            self._headers["content-encoding"] = packing
        self._door = door(secure=self._url.startswith("https:"))
        self._over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        scopes = groupby(spans, attrgetter("instrumentation_scope"))  # ours and FastAPI's
        data = b"".join([request(spans[0].resource, scope, alike) for scope, alike in scopes])  # such texts add up
        if why := self._send(self._pack(data)):
            self._lost[0] += len(spans)
            log.warning("spans: %d were not taken: %s", len(spans), why)
        return SpanExportResult.FAILURE if why else SpanExportResult.SUCCESS

    def _send(self, data: bytes) -> str:
        """Why it was given up; nothing where it was taken."""
        end, pause = time.monotonic() + self._seconds, PAUSE
        while True:
            why, again, asked = self._post(data, max(end - time.monotonic(), 0.001))
            wait = pause * random.uniform(0.8, 1.2) if asked is None else asked  # noqa: S311  no secret
            if not again or time.monotonic() + wait > end or self._over.wait(wait):
                return why
            pause *= 2

    def _post(self, data: bytes, limit: float) -> tuple[str, bool, float | None]:
        """What went wrong, whether to try again, and after how many seconds if the collector says."""
        asking = Request(self._url, data, self._headers)  # noqa: S310  the operator's address; HTTP alone has a door
        try:
            with self._door.open(asking, timeout=limit) as answer:
                status, asked = str(answer.status), answer.headers.get("retry-after", "")
        except (OSError, HTTPException) as error:
            return str(error) or type(error).__name__, True, None
        why = "" if status.startswith("2") else f"status {status}"
        return why, status in AGAIN, float(asked) if asked.isdecimal() else None

    def shutdown(self) -> None:
        self._over.set()


def told(name: str) -> str:
    """An OTLP option from the environment: the variable for traces, else the one for all signals."""
    every = os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "")
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or every


def seconds() -> float:
    given = told("TIMEOUT")
    try:
        return float(given or SECONDS)
    except ValueError:
        log.warning("spans: OTEL_EXPORTER_OTLP_TIMEOUT is no number of seconds, %g are taken: %.64r", SECONDS, given)
        return SECONDS


def door(secure: bool) -> OpenerDirector:
    """HTTP, by the environment's proxy where it names one; it follows no redirection."""
    found = OpenerDirector()
    for way in (ProxyHandler(), HTTPHandler(), UnknownHandler()):
        found.add_handler(way)
    if secure:
        found.add_handler(HTTPSHandler(context=trusting()))
    return found


def trusting() -> ssl.SSLContext:
    own = told("CLIENT_CERTIFICATE")
    try:
        found = ssl.create_default_context(cafile=told("CERTIFICATE") or None)
        if own:
            found.load_cert_chain(own, told("CLIENT_KEY") or None)
    except OSError as error:
        log.warning("spans: a file of OTEL_EXPORTER_OTLP_*CERTIFICATE or CLIENT_KEY is left out: %s", error)
        return ssl.create_default_context()
    return found
