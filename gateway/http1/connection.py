"""How does one exchange go over one connection?   With httptools.

    TransportError          kind says where it broke:
        connect             no connection (refused, unresolved, TLS, or not in time)
        first_byte          no answer in time
        still               likewise, and it was given no more time (`Limits.late`)
        idle                a started answer stood still
        total               the whole exchange took too long
        closed              the server closed or broke the answer

Works on asyncio's own loop and on uvloop.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Literal, cast

import httptools
import msgspec

KEEP_ALIVE = 4.0  # seconds a connection may lie idle: uvicorn, which vLLM runs on, closes after 5
HIGH_WATER = 256 * 1024  # bytes that may wait for a slow reader before we stop reading from the server
LARGE = 64 * 1024  # bytes of a request's body that is not copied once more, to send it with its head
LIMIT_QUIET = 64 * 1024  # bytes (headers, trailers, chunk sizes) that may come without an answer's head or body in them
FRAMING = (b"content-length", b"transfer-encoding")

Kind = Literal["connect", "first_byte", "still", "idle", "total", "closed"]
Sink = Callable[[bytes], bool]  # takes body bytes; False: no more now


class TransportError(Exception):
    """The exchange broke at `kind`. `started`: bytes of the answer had arrived."""

    def __init__(self, kind: Kind, message: str, *, started: bool = False) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.started = started

    def again(self) -> "TransportError":
        """The same, to be raised: an error that is kept would hold the frames that it passed, and they its keeper."""
        return TransportError(self.kind, str(self), started=self.started)


class Limits(msgspec.Struct, frozen=True, gc=False):
    """Seconds. `connect` for the connection, `first_byte` for the head and the first body bytes, `idle` between later
    ones, `total` for everything. When `first_byte` is over `late` is asked, when `idle` is `silent`, told for how long:
    how much more there is, after which it is asked again; 0 for nothing."""

    connect: float
    first_byte: float
    idle: float
    total: float
    late: Callable[[float], float] | None = None
    silent: Callable[[float], float] | None = None


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time, one reader. `keep`: an answer ended well, and another may follow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keep_alive: float = KEEP_ALIVE) -> None:
        self._loop, self._keep_alive = loop, keep_alive
        self._transport: asyncio.Transport  # from the time that the connection is made
        self._timer: asyncio.TimerHandle | None = None
        self._fires = inf  # when the timer does
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._idle = 0.0  # seconds between two pieces for the sink
        self._chunks: list[bytes] = []  # of the body, until the reader takes them
        self._size = 0  # bytes that came since
        self._lost = self._resting = self._paused = False
        self._error: TransportError | None = None
        self._deadline = self._end = 0.0
        self._kind: Kind = "first_byte"
        self._limits: Limits  # of the exchange
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.head = self.keep = False
        self.complete = True  # nothing was asked for yet: what comes is nobody's
        self.on_body = self._chunks.append  # the parser's: no call of ours for each piece
        self._parser = httptools.HttpResponseParser(self)

    @property
    def started(self) -> bool:
        """Bytes of the answer have arrived."""
        return self.head or self._size > 0

    # -- the socket's side -------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(f"the server's answer is not HTTP: {error}")
        if self._sink and self._chunks and self._sink(self.take(self._idle)) and not self.complete:
            return  # there is more to come for the sink
        if self._size > LIMIT_QUIET:
            self._bound()
        self._wake()

    def _bound(self) -> None:
        """Much has come since the reader last took anything."""
        if not self._chunks:
            self._break("the server's headers are too large")
        elif self._size > HIGH_WATER and not self._paused and not self._error:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost, self.keep = True, False
        self._cancel_timer()
        if self.head and not error and not self._error and not self._framed():
            self.complete = True  # no length was given: the end of the connection is the end of the answer
        elif not self.complete:
            self._error = self._error or self._gone()
        self._wake()
        del self._parser  # which holds the connection

    # -- the parser's side -------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        if self.complete:  # nobody asked for this, and a connection that brings it cannot be trusted
            raise ValueError("bytes after the end of the answer")
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head:  # else a trailer
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:  # not 100 Continue, 103 Early Hints: the answer is still to come
            self._size, self.head = 0, True

    def on_message_complete(self) -> None:
        if self.head:
            self.complete = True
            self.keep = self._parser.should_keep_alive()  # never without a length

    def _framed(self) -> bool:
        """Whether the answer says where it ends."""
        return self.status in (204, 304) or any(name in FRAMING for name, _ in self.headers)

    # -- our side ----------------------------------------------------------------------------------------------------
    def send(self, head: bytes, body: bytes, now: float, end: float, limits: Limits) -> None:
        """Send the request's bytes. `now` and the `end` of everything are in the loop's time. Until `head` is set wait
        for `news`; who fails or gives up then closes with `abort`.
        """
        self.head = self.complete = self.keep = self._resting = False
        self._size = 0
        if self._lost:
            self._error = self._gone()
            return
        deadline = now + limits.first_byte
        self._end, self._deadline, self._limits = end, deadline, limits
        self._kind = "first_byte"
        if self._fires > deadline or self._fires > end:
            self._set_timer(min(deadline, end))
        if len(body) > LARGE:
            self._transport.writelines((head, body))  # uvloop copies neither
        else:
            self._transport.write(head + body)

    async def read(self, idle: float) -> bytes:
        """All body bytes that have arrived, at least one; b"" at the end. Raises TransportError after what arrived."""
        while not self._chunks and not self.complete:
            await self.news()
        return self.take(idle)

    async def pour(self, sink: Sink, idle: float) -> None:
        """Give body bytes to `sink` as they arrive, within the same turn of the loop. Returns when `sink` returns
        False, or at the end or break of the answer, which `read` then tells. `sink` must not raise.
        """
        if poured := self.poured(sink, idle):
            try:
                await poured
            finally:
                self._sink = None

    def poured(self, sink: Sink, idle: float) -> "asyncio.Future[None] | None":
        """A future that is done when `pour` would return; None: it would at once."""
        if self._chunks or self.complete or self._error:
            return None
        self._sink, self._idle = sink, idle
        return self.news()

    def take(self, idle: float) -> bytes:
        """All body bytes that have arrived."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks.pop()
        if chunks:
            data = b"".join([*chunks, data])
            chunks.clear()
        self._size = 0
        if not (self.complete or self._error):
            self._kind = "idle"
            self._deadline = deadline = self._loop.time() + idle
            if self._fires > deadline:  # a timer that fires too early is cheaper than one moved with each chunk
                self._set_timer(deadline)
        if self._paused and not self._error:
            self._paused = False
            self._transport.resume_reading()
        return data

    def hurry(self, seconds: float) -> None:
        """What is left of the exchange may take so long at most."""
        end = self._loop.time() + seconds
        if end < self._end:
            self._end = end
            if self._fires > end:
                self._set_timer(end)

    def rest(self) -> bool:
        """Lie idle until the next exchange, or close after `keep_alive` seconds. False where the exchange that ended
        leaves no connection for another one.
        """
        if not self.keep or self._paused or self._transport.get_write_buffer_size():
            return False
        self._resting = True
        self._chunks.clear()
        self._end = self._deadline = end = self._loop.time() + self._keep_alive
        if self._fires > end:
            self._set_timer(end)
        return True

    def abort(self) -> None:
        """Close at once: the server sees the end of the connection and stops its work."""
        self.keep = False
        if not self.complete:
            self._error = self._error or TransportError("closed", "the exchange was given up", started=self.started)
        self._cancel_timer()
        self._transport.abort()

    def news(self) -> "asyncio.Future[None]":
        """A future that is done when something came. A connection has one reader, so an older future is one that was
        given up. Raises TransportError."""
        if self._error:
            raise self._error.again()
        self._waiter = self._loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        waiter, self._waiter, self._sink = self._waiter, None, None
        if waiter and not waiter.done():
            waiter.set_result(None)

    def _gone(self) -> TransportError:
        return TransportError("closed", "the server closed the connection", started=self.started)

    def _break(self, why: str) -> None:
        self._fail(TransportError("closed", why, started=True))

    def _fail(self, error: TransportError) -> None:
        """The exchange ends here. An answer that is complete stands, only its connection does not."""
        if not self.complete:
            self._error = self._error or error
        self.abort()
        self._wake()

    def _expire(self) -> None:
        self._timer, self._fires = None, inf
        now = self._loop.time()
        if self.complete and not self._resting:
            return
        left = self._left(now) if now < self._end else 0.0
        if left > 0:
            self._set_timer(min(now + left, self._end))
        else:
            kind = "total" if now >= self._end else self._kind
            self._fail(TransportError(kind, f"no answer in time ({kind})", started=self.started))

    def _left(self, now: float) -> float:
        """Seconds until the time for the next piece may be over; 0: it is."""
        if now < self._deadline:
            return self._deadline - now
        if self._chunks:
            return inf  # the reader is slow, not the server
        if self._kind == "idle":
            silent = self._limits.silent
            return silent(now - self._deadline) if silent else 0.0
        late = self._limits.late
        more = late(now - self._deadline) if late else 0.0
        self._kind = "still" if late and not more else "first_byte"
        return more

    def _set_timer(self, at: float) -> None:
        self._cancel_timer()
        self._fires = at
        self._timer = self._loop.call_at(at, self._expire)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer, self._fires = None, inf
