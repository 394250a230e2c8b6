"""A collector of traces: takes OTLP over HTTP and keeps what comes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

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
    def spans(self) -> list[JSON]:
        """All that was taken, in the order of their beginning; `attributes` as a dict."""
        batches = [msgspec.json.decode(body)["resourceSpans"][0]["scopeSpans"][0]["spans"] for body in self.bodies]
        found = [span | {"attributes": plain(span["attributes"])} for batch in batches for span in batch]
        return sorted(found, key=lambda span: int(span["startTimeUnixNano"]))


def plain(attributes: list[JSON]) -> JSON:
    """OTLP's pairs as a dict."""
    found = {pair["key"]: next(iter(pair["value"].items())) for pair in attributes}
    assert len(found) == len(attributes)
    return {name: int(value) if kind == "intValue" else value for name, (kind, value) in found.items()}


@contextmanager
def collecting(*statuses: int) -> Iterator[Collector]:
    found = Collector(statuses=list(statuses))

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = found.statuses.pop(0) if found.statuses else 200
            if status == 200:
                found.bodies.append(body)
                found.headers.append({name.lower(): value for name, value in self.headers.items()})
                found.paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()
