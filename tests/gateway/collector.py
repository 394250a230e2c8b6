"""A collector of traces: takes OTLP over HTTP, as protobuf, and keeps what comes."""

import gzip
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

JSON = dict[str, Any]


@dataclass
class Collector:
    """`statuses` are answered with, one after another, then 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[JSON] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def sent(self) -> list[ResourceSpans]:
        """What was taken, by who sent it, in the order of its coming."""
        return [one for body in self.bodies for one in ExportTraceServiceRequest.FromString(body).resource_spans]

    @property
    def spans(self) -> list[Span]:
        """All that was taken, in the order of their beginning."""
        found = [span for one in self.sent for scope in one.scope_spans for span in scope.spans]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def plain(attributes: Iterable[KeyValue]) -> JSON:
    """OTLP's pairs as a dict."""
    pairs = [(pair.key, getattr(pair.value, str(pair.value.WhichOneof("value")))) for pair in attributes]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@contextmanager
def collecting(*statuses: int, alone: float | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Collector]:
    """`alone`: the seconds for which it wants to be left alone where it takes nothing."""
    found = Collector(statuses=list(statuses))

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            status = found.statuses.pop(0) if found.statuses else 200
            if status == 200:
                found.bodies.append(body)
                found.headers.append({name.lower(): value for name, value in self.headers.items()})
                found.paths.append(self.path)
            self.send_response(status)
            if status != 200 and alone is not None:
                self.send_header("retry-after", str(alone))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            found.url = f"https://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()
