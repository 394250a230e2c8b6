"""How does an exchange go over a connection without ASGI between?   All other paths go to the ASGI app.

The rules of the connection, its timers, pipelining, flow control and end are those of `gateway.protocol`; this file
puts its own request-and-answer cycle in the place of uvicorn's for the completion paths. An answer's head and first
piece leave in one write.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gateway.api import Exchange
from gateway.asgi import Front
from gateway.dialects import DIALECTS
from gateway.errors import TooLarge
from gateway.protocol import HIGH_WATER, Connection
from gateway.types import Headers

HOT = {path.encode(): path for path in DIALECTS}
_FIRST = {int(status): b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_CONTROLS = bytes([*range(9), *range(10, 32), 127])  # what no header may hold


class FastConnection(Connection):
    """Serves the completion paths by itself."""

    def __init__(self, front: Front, **uvicorn: Any) -> None:
        super().__init__(front.settings, front.doors.telemetry.meters.unread.add, **uvicorn)
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

    def on_body(self, body: bytes) -> None:
        cycle: object = self.cycle
        if type(cycle) is Cycle:
            self._body += len(body)
            cycle.take(body)
        else:
            super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.serving:  # not the newest when requests are pipelined
            self.serving.lost()


class Cycle:
    """One request and its answer: a Wire to the gateway, and to the connection what uvicorn's own cycle is."""

    __slots__ = (
        "_chunked", "_connection", "_continue", "_flow", "_head", "_left", "_news", "_old", "_pieces", "_size",
        "_transport", "disconnected", "headers", "keep_alive", "method", "more_body", "path", "response_complete",
        "response_started",
    )  # fmt: skip

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
        self._pieces: list[bytes] = []  # of the request's body
        self._size = 0
        # What the connection reads and sets, by uvicorn's names.
        self.keep_alive = not self._old and parser.should_keep_alive()
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False

    async def run_asgi(self, _: Any) -> None:
        """Serve the exchange. Whatever ends it before its answer is complete ends the connection."""
        connection = self._connection
        connection.serving = self
        front = connection.front
        try:
            await Exchange(front.doors, front.settings, self).run()
        finally:
            if connection.serving is self:  # the next one may have begun
                connection.serving = None
            if not (self.response_complete or self.disconnected):  # a refusal has its own way to end the line
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

    def take(self, body: bytes) -> None:
        """More of the body."""
        if self.response_complete:
            return
        self._pieces.append(body)
        self._size += len(body)
        if self._size > HIGH_WATER:
            self._flow.pause_reading()
        self.set()

    def ready(self) -> bytes | None:
        return None if self.more_body or self.disconnected else b"".join(self._pieces)

    async def read(self, limit: int) -> bytes | None:
        if self._continue and self.more_body and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self.more_body and not self.disconnected and self._size <= limit:
            self._flow.resume_reading()
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        if self.disconnected:
            return None
        if self._size > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
        return b"".join(self._pieces)

    def watch(self, left: Callable[[], None]) -> None:
        self._left = left
        self._flow.resume_reading()  # a request that waits behind this one has paused it; only who reads sees the end
        if self.disconnected:
            asyncio.get_running_loop().call_soon(self.set)

    def unwatch(self) -> None:
        self._left = None

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        self.response_started = True
        self._chunked = length is None and not self._old
        told = [b"%s: %s\r\n" % pair for pair in (*self._connection.server_state.default_headers, *headers)]
        if length is not None:
            told.append(b"content-length: %d\r\n" % length)
        elif self._chunked:
            told.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            told.append(b"connection: close\r\n")
        head = b"".join([_FIRST[status], *told, b"\r\n"])
        if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(told) + 4:
            raise ValueError("a header holds a control character")
        self._head = head

    async def write(self, data: bytes, more: bool) -> None:
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected:
            return
        data = self._framed(data) if more else self._framed(data) + (b"0\r\n\r\n" if self._chunked else b"")
        if self._head:
            head, self._head = self._head, b""
            data = head + data
        self._transport.write(data)
        if not more:
            self._end()

    def push(self, data: bytes) -> bool:
        if not self.disconnected:
            self._transport.write(self._framed(data))
        return not self._flow.write_paused

    def _framed(self, data: bytes) -> bytes:
        if self.method == "HEAD":
            return b""
        return b"%x\r\n%s\r\n" % (len(data), data) if self._chunked and data else data

    def _end(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        self._connection.on_response_complete()
