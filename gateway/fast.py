"""How is an exchange served without ASGI in between?   All other paths go to the ASGI app.

The rules of the connection, its timers, pipelining, flow control and end are those of `gateway.protocol`; this file
puts its own cycle in the place of uvicorn's for the completion paths. One task serves a connection's exchanges in turn.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.api import Exchange
from gateway.asgi import Front
from gateway.dialects import DIALECTS
from gateway.done import DONE
from gateway.errors import TooLarge
from gateway.head import announced, around_length
from gateway.protocol import HIGH_WATER, Connection
from gateway.wire import STATUS_LINES, header_lines

HOT = {path.encode(): path for path in DIALECTS}
PIECE = 4096  # bytes; to a piece of a body that is smaller the next one is joined, as each takes 40 bytes more


class FastConnection(Connection):
    """Serves the completion paths by itself."""

    __slots__ = ("_before", "_held", "_lost", "_news", "_next", "_task", "_usual", "front", "serving")

    def __init__(self, front: Front, **uvicorn: Any) -> None:
        super().__init__(front.settings, front.doors.telemetry.meters.unread.add, **uvicorn)
        self.front = front
        self.serving: Cycle | None = None
        self._next: Cycle | None = None  # to be served
        self._task: asyncio.Task[None] | None = None
        self._news: asyncio.Future[None] | None = None  # what the task waits for when it has nothing to do
        self._usual: tuple[object, bytes] = (None, b"")
        self._before: tuple[bytes, bytes] | None = None  # the head parsed last, around its length
        self._held, self._lost = b"", False  # a head like that one, until some of its body comes

    def data_received(self, data: bytes) -> None:
        data, self._held = self._held + data, b""
        quiet = not (self._in_head or self._in_body or self._read or self._over or self._refusal)
        if quiet and self._before and (self._repeated(data, self._before) or self._alone(data, self._before)):
            return
        cycle, before, self._before = self.cycle, self._before if self._in_body else None, None
        super().data_received(data)
        begun: object = self.cycle
        if begun is not cycle:  # the parser tells of another head
            before = around_length(data, begun.size) if quiet and type(begun) is Cycle else None
        self._before = before

    def _alone(self, data: bytes, head: tuple[bytes, bytes]) -> bool:
        """Holds back the `head` before with the length of a small body that did not come with it, until that comes."""
        size = announced(data, *head)
        if not 0 < size <= min(HIGH_WATER, self._settings.max_body) or self.expect_100_continue:
            return False
        self._held, self._idle_since = data, 0.0
        self._expect()
        return True

    def _repeated(self, data: bytes, head: tuple[bytes, bytes]) -> bool:
        """Begins the request in `data` without parsing it, if it is a whole one with the `head` before, in two parts
        around the digits of content-length: all but those was parsed and checked then. False: it must be parsed."""
        before, behind = head
        at = data.find(b"\r\n\r\n", len(before)) + 4
        size = len(data) - at
        if not data.startswith(b"%b%d%b" % (before, size, behind)):
            return False
        self._idle_since = 0.0
        if self._receiving:  # the head came before
            self._received()
        self._unanswered += 1
        self.told = {**self.told, "content-length": str(size)}
        self.begin()
        cycle: Any = self.cycle
        cycle.take(data[at:], size)
        cycle.end()
        return True

    def usual(self) -> bytes:
        """The server's default headers as lines, save connection; it makes new ones each second (Date)."""
        headers = self.server_state.default_headers
        if headers is not self._usual[0]:
            self._usual = headers, header_lines([pair for pair in headers if pair[0] != b"connection"])
        return self._usual[1]

    def begin(self) -> None:
        path = HOT.get(self.url) or HOT.get(self.url.partition(b"?")[0])
        if path is None:
            super().begin()
            return
        cycle: Any = Cycle(self, path)
        before, self.cycle = self.cycle, cycle
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is not Cycle:
            super()._start_asgi_task(cycle, app)
            return
        self._next = cycle
        if self._task is None:
            self._task = self.loop.create_task(self._serve())
        self._wake()

    def _wake(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)

    async def _serve(self) -> None:
        """Serves exchanges until the connection is lost; a task for each would cost more than most of the work in it.
        An exchange that ends before its answer is complete ends the connection."""
        task: Any = self._task
        try:
            while self._next or not self._lost:
                self.serving, self._next = self._next, None
                if self.serving is None:
                    self._news = self.loop.create_future()
                    await self._news
                    continue
                self.tasks.add(task)  # what the server waits for, and ends, before it leaves
                await Exchange(self.front.doors, self.front.settings, self.serving, task).run()
                self.tasks.discard(task)
                if not (self.serving.response_complete or self.serving.disconnected):  # a refusal ends the line itself
                    return
        finally:
            self.tasks.discard(task)
            if not self.transport.is_closing():
                self.transport.close()
            self._task = None
            self._let_go()

    def on_body(self, body: bytes) -> None:
        cycle: object = self.cycle
        if type(cycle) is Cycle:
            self._body += (size := len(body))
            cycle.take(body, size)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        cycle: object = self.cycle
        if type(cycle) is Cycle:
            self._in_body, self._read = False, 0
            cycle.end()
        else:
            super().on_message_complete()

    def shutdown(self) -> None:
        if self._held:  # begun, it is answered
            self._before = None
            self.data_received(b"")
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost = True
        for cycle in (self.serving, self._next):  # not the newest when requests are pipelined
            if cycle:
                cycle.lost()
        self._wake()
        self._let_go()

    def _let_go(self) -> None:
        if self._lost and not self._task:  # else cycles and connection hold each other, and over TLS 256 KB
            self.cycle = self.serving = self.pipeline = None  # type: ignore[assignment]


class Cycle:
    """One request and its answer: a Wire to the gateway, and to the connection what uvicorn's own cycle is."""

    __slots__ = (
        "_chunked", "_connection", "_flow", "_head", "_left", "_news", "_old", "_pieces", "_transport", "disconnected",
        "headers", "keep_alive", "method", "more_body", "moved", "path", "response_complete", "response_started",
        "size", "waiting_for_100_continue",
    )  # fmt: skip

    def __init__(self, connection: FastConnection, path: str) -> None:
        parser = connection.parser
        self._connection, self._transport, self._flow = connection, connection.transport, connection.flow
        self.method, self.path, self.headers = parser.get_method().decode(), path, connection.told
        self._old = connection.version == "1.0"
        self._left: Callable[[], None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []  # of the request's body
        self._head, self._chunked, self.moved, self.size = b"", False, 0.0, 0  # the size is that of the pieces
        # What the connection reads and sets, by uvicorn's names.
        self.more_body, self.waiting_for_100_continue = True, connection.expect_100_continue
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive = not self._old and parser.should_keep_alive()

    @property
    def message_event(self) -> "Cycle":
        """uvicorn's event: `set` is called when something came. As an attribute it would be a reference cycle."""
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

    def take(self, body: bytes, size: int) -> None:
        """More of the body, of so many bytes."""
        if self.response_complete:
            return
        if self._pieces and len(self._pieces[-1]) < PIECE:
            body = self._pieces.pop() + body
        self._pieces.append(body)
        self.size += size
        if self.size > HIGH_WATER:
            self._flow.pause_reading()
        if self._news:
            self.set()

    def end(self) -> None:
        """The body is complete."""
        self.more_body = False
        if self._news:
            self.set()

    def ready(self) -> bytes | None:
        return None if self.more_body or self.disconnected else b"".join(self._pieces)

    async def read(self, limit: int) -> bytes | None:
        if self.waiting_for_100_continue and self.more_body and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self.more_body and not self.disconnected and self.size <= limit:
            self._flow.resume_reading()
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        if self.disconnected:
            return None
        if self.size > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
        whole = b"".join(self._pieces)
        self._pieces.clear()  # else the exchange holds its body twice
        return whole

    def watch(self, left: Callable[[], None]) -> None:
        self._left = left
        if self._flow.read_paused:  # by a request that waits behind this one; only who reads sees the end
            self._flow.resume_reading()
        if self.disconnected:
            asyncio.get_running_loop().call_soon(self.set)

    def unwatch(self) -> None:
        self._left = None

    def start(self, status: int, headers: bytes, length: int | None = None) -> None:
        self.response_started = True
        self.keep_alive = self.keep_alive and not self._connection.front.doors.leaving
        self._chunked = length is None and not self._old and self.method != "HEAD"
        usual, last = self._connection.usual(), b""
        if length is not None:
            last = b"content-length: %d\r\n" % length
        elif self._chunked:
            last = b"transfer-encoding: chunked\r\n"
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._head = b"".join((STATUS_LINES[status], usual, headers, last, end))

    def write(self, data: bytes, more: bool) -> Awaitable[None]:
        if self.disconnected:
            return DONE
        if self._flow.write_paused:
            return self._write_drained(data, more)
        if self._chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"" if more else b"0\r\n\r\n")
        elif self.method == "HEAD":
            data = b""
        if self._head:
            data, self._head = self._head + data, b""
        self.moved = self._connection.loop.time()
        self._transport.write(data)
        if not more:
            self.response_complete, self._pieces = True, []  # an idle connection holds no body
            if not (self.keep_alive or self.more_body):
                self._transport.close()
            self._connection.on_response_complete()
        return DONE

    async def _write_drained(self, data: bytes, more: bool) -> None:
        await self._flow.drain()
        await self.write(data, more)

    def push(self, data: bytes) -> bool:
        if not self.disconnected:
            self.moved = self._connection.loop.time()
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return not self._flow.write_paused
