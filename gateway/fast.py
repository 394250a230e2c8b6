"""How does an exchange go over a connection without ASGI between?   All other paths go to the ASGI app.

The rules of the connection, its timers, pipelining, flow control and end are those of `gateway.protocol`; this file
puts its own request-and-answer cycle in the place of uvicorn's for the completion paths. An answer's head and first
piece leave in one write.
"""

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gateway.api import Exchange
from gateway.asgi import Front
from gateway.dialects import DIALECTS
from gateway.errors import TooLarge
from gateway.protocol import Connection
from gateway.types import Headers

HOT = {path.encode(): path for path in DIALECTS}
_FIRST = {int(status): b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # what no header may hold


class FastConnection(Connection):
    """Serves the completion paths by itself."""

    def __init__(self, front: Front, **uvicorn: Any) -> None:
        super().__init__(front.settings, **uvicorn)
        self.front = front
        self.serving: Cycle | None = None

    def begin(self) -> None:
        path = HOT.get(self.url.partition(b"?")[0])
        if path is None:
            super().begin()
            return
        before = self.cycle
        cycle: Any = Cycle(self, path)
        self.cycle = cycle
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.serving:  # not the newest when requests are pipelined
            self.serving.lost()


class Cycle:
    """One request and its answer: a Wire to the gateway, and to the connection what uvicorn's own cycle is."""

    def __init__(self, connection: FastConnection, path: str) -> None:
        parser = connection.parser
        self._connection, self._transport, self._flow = connection, connection.transport, connection.flow
        self.method, self.path = parser.get_method().decode("ascii"), path
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in connection.headers}
        self._old = parser.get_http_version() == "1.0"
        self._continue = connection.expect_100_continue
        self._left: Callable[[], None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._head = b""
        self._chunked = False
        # What the connection reads and sets, by uvicorn's names.
        self.keep_alive = not self._old and parser.should_keep_alive()
        self.body = bytearray()
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False

    async def run_asgi(self, _: Any) -> None:
        """Serve the exchange. Whatever ends it before its answer is complete ends the connection."""
        self._connection.serving = self
        front = self._connection.front
        try:
            await Exchange(front.doors, front.settings, self).run()
        finally:
            if self._connection.serving is self:  # the next one may have begun
                self._connection.serving = None
            if not self.response_complete:
                self._transport.close()

    @property
    def message_event(self) -> "Cycle":
        """Where the connection says that something came. Not an attribute: no cycle for the collector to find."""
        return self

    def set(self) -> None:
        """Something came: more of the body, its end, or the end of the connection."""
        if self.disconnected and self._left:
            left, self._left = self._left, None
            left()
        if self._news and not self._news.done():
            self._news.set_result(None)

    def lost(self) -> None:
        self.disconnected = not self.response_complete
        self.set()

    def ready(self) -> bytes | None:
        return None if self.more_body or self.disconnected else bytes(self.body)

    async def read(self, limit: int) -> bytes | None:
        if self._continue and self.more_body and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self.more_body and not self.disconnected and len(self.body) <= limit:
            self._flow.resume_reading()
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        if self.disconnected:
            return None
        if len(self.body) > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
        return bytes(self.body)

    def watch(self, left: Callable[[], None]) -> None:
        self._left = left
        self._flow.resume_reading()  # a request that waits behind this one has paused it; only who reads sees the end
        if self.disconnected:
            asyncio.get_running_loop().call_soon(self.set)

    def unwatch(self) -> None:
        self._left = None

    async def start(self, status: int, headers: Headers) -> None:
        self.response_started = True
        told = [*self._connection.server_state.default_headers, *headers]
        if not any(name == b"content-length" for name, _ in headers):
            self._chunked = not self._old
            if self._chunked:
                told.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive:
            told.append((b"connection", b"close"))
        if _UNSAFE.search(b"".join([value for _, value in told])):
            raise ValueError("a header holds a control character")
        self._head = b"".join([_FIRST[status], *[b"%s: %s\r\n" % pair for pair in told], b"\r\n"])

    async def write(self, data: bytes, more: bool) -> None:
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected:
            return
        head, self._head = self._head, b""
        self._transport.write(head + self._framed(data, more))
        if not more:
            self._end()

    def _framed(self, data: bytes, more: bool) -> bytes:
        if self.method == "HEAD":
            return b""
        if not self._chunked:
            return data
        piece = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
        return piece if more else piece + b"0\r\n\r\n"

    def _end(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        self._connection.on_response_complete()
