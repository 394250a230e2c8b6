"""How do concurrent tasks share one connection to a server?   By pipelining."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import hiredis

from gateway.store.opening import Way, Word, written
from gateway.store.refusals import ResponseError, refusal

GRACE = 0.02  # seconds more after a timeout: the reply may be there, unread because this process was busy
WRITE = 128 * 1024  # bytes after which a write gets no further command, so that backpressure can stop the next one
PIECE = 512  # bytes that count as a sign of life where no reply ends with them: fewer could be sent for ever
FAULTS = (ResponseError, hiredis.HiredisError, OSError)  # TimeoutError is an OSError
NOT_YET: Final = object()  # the next reply is not complete


class Hearer(Protocol):
    """What gets a command's reply: a future, or an object with the same methods that acts at once."""

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


Waiting = tuple[bytes, Hearer, int]  # a packed command, who hears of it, how often it was sent on


async def ask_once(way: Way, *command: Word) -> Any:
    """The reply to one command on a connection of its own; None when there is none in time."""
    pipeline = Pipeline(way, lambda _: None, lambda *_: False)
    try:
        return await pipeline.put(*command)
    except FAULTS:
        return None
    finally:
        pipeline.drop()


class Pipeline(asyncio.Protocol):
    """One connection, opened when needed. Commands put in one turn of the event loop are written together, and run in
    the order of `put`.

    A command is sent even if nobody waits for its reply any more. When the connection fails or its server becomes a
    replica, all commands on it fail, `on_fault` is called once, and the next command opens a new connection.
    `on_refusal` is called with each command's own error; if it returns True, it has taken over to answer the command.
    """

    def __init__(
        self,
        way: Way,
        on_fault: Callable[[Exception], None],
        on_refusal: Callable[[ResponseError, Waiting], bool],
    ) -> None:
        self._way = way
        self._timeout = way.timeout
        self._on_fault = on_fault
        self._on_refusal = on_refusal
        self._unsent: deque[Waiting] = deque()
        self._sent: deque[Waiting] = deque()
        self._opening: asyncio.Task[None] | None = None
        self._transport: Any = None
        self._reader: Any = None
        self._paused = False
        self._heard = 0.0  # when the last reply or piece of one came, or the pipeline set to work after a rest
        self._clock: asyncio.TimerHandle | None = None

    def put(self, *command: Word) -> asyncio.Future[Any]:
        """A future for the reply. It raises ResponseError for the command's own error, another of FAULTS for one of the
        connection."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.push((written(command), reply, 0))
        return reply

    def push(self, waiting: Waiting) -> None:
        """As `put`, for a packed command whose Hearer exists already."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(waiting)

    def _flush(self) -> None:
        if not self._unsent or self._opening is not None:
            return
        if not self._sent:
            self._watch()
        if self._transport is None:
            self._opening = asyncio.create_task(self._open())
        else:
            self._write()

    def _write(self) -> None:
        while self._unsent and not self._paused:
            self._transport.write(b"".join(self._batch()))

    def _batch(self) -> list[bytes]:
        unsent, sent, commands, size = self._unsent, self._sent, [], 0
        while unsent and size < WRITE:
            waiting = unsent.popleft()
            sent.append(waiting)
            commands.append(waiting[0])
            size += len(waiting[0])
        return commands

    async def _open(self) -> None:
        try:
            await self._greet(await self._way.open())
        except FAULTS as error:
            self._opening = None
            self._fail(error)
        else:
            self._opening = None
            self._write()

    async def _greet(self, transport: asyncio.Transport) -> None:
        """Sends AUTH and SELECT and waits for their replies: only then commands go out, as the right user and into the
        right database."""
        self._paused = False
        self._reader = hiredis.Reader(replyError=refusal, notEnoughData=NOT_YET)
        self._transport = transport
        transport.set_protocol(self)
        for command in self._way.greeting:
            reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._sent.append((command, reply, 0))
            transport.write(command)
            await reply

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._write()

    def data_received(self, data: bytes) -> None:
        before = len(self._sent)
        self._reader.feed(data)
        try:
            self._read()
        except FAULTS as error:
            self._fail(error)
        except (IndexError, ValueError) as error:  # a reply to no command, an error that does not say what it must
            self._fail(ConnectionError(f"the server does not keep to its protocol: {error}"))
        if len(self._sent) < before or len(data) >= PIECE:
            self._heard = time.monotonic()

    def _read(self) -> None:
        replies, sent = self._reader.gets, self._sent
        while (answer := replies()) is not NOT_YET:
            if isinstance(answer, Exception):
                self._refuse(answer)
                continue
            reply = sent.popleft()[1]
            if not reply.done():
                reply.set_result(answer)

    def _refuse(self, error: Exception) -> None:
        """Handles a command's own error. Raises one that is the connection's."""
        if not isinstance(error, ResponseError):
            raise error
        waiting = self._sent.popleft()
        if not self._on_refusal(error, waiting) and not waiting[1].done():
            waiting[1].set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server closed the connection"))

    def _watch(self) -> None:
        self._heard = time.monotonic()
        if self._clock is None:
            self._clock = asyncio.get_running_loop().call_later(self._timeout, self._look)

    def _look(self, heard: float | None = None) -> None:
        """Fails the connection when no reply came in time, nor within GRACE. `heard`: the time of the last reply before
        GRACE began."""
        self._clock = None
        if not self._sent and not self._unsent:
            return
        left = self._heard + self._timeout - time.monotonic()
        if left > 0:
            self._clock = asyncio.get_running_loop().call_later(left, self._look)
        elif self._heard != heard:
            self._clock = asyncio.get_running_loop().call_later(GRACE, self._look, self._heard)
        else:
            self._fail(TimeoutError(f"no reply for {self._timeout} s"))

    def _fail(self, error: Exception) -> None:
        failed = [*self._sent, *self._unsent]
        self.drop()
        self._on_fault(error)
        for _, reply, _ in failed:
            if not reply.done():
                _tell(reply, error)

    def drop(self) -> None:
        """Drops the connection and all commands on it."""
        self._sent.clear()
        self._unsent.clear()
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._transport is not None:
            self._transport.set_protocol(asyncio.Protocol())  # so that its end is not heard
            self._transport.abort()
            self._transport = None

    async def close(self) -> None:
        """Sends what is still in the pipeline, then closes it."""
        if self._unsent or self._sent:
            await asyncio.wait([self.put(b"PING")])  # answered last
        self.drop()


def _tell(reply: Hearer, error: Exception) -> None:
    """Fails a reply. asyncio must not complain where nobody waits for it: `on_fault` has told of the error."""
    reply.set_exception(error)
    if isinstance(reply, asyncio.Future):
        reply.exception()
