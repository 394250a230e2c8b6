"""How do concurrent tasks share one connection?"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

TIMEOUT = 0.1  # seconds without a reply, connecting and writing included
GRACE = 0.02  # seconds more: a reply may lie unread because this process was busy, not the server
WRITE = 128 * 1024  # bytes after which no further command joins a write, so that it ends within TIMEOUT
FAULTS = (RedisError, OSError)  # TimeoutError is an OSError
Word = bytes | str | float
Waiting = tuple[bytes, asyncio.Future[Any]]


class Line:
    """One connection; commands that arrive while it is busy are written together, and run in the order of `put`.

    A command that was put is sent even if nobody waits for its reply any more. When the connection fails, all
    commands in the line fail with it, `on_fault` hears of it once, and the next command connects afresh.
    """

    def __init__(self, url: str, on_fault: Callable[[Exception], None]) -> None:
        pool: Any = ConnectionPool.from_url(
            url,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            protocol=2,
            driver_info=None,
        )
        self._connection = pool.make_connection()
        self._on_fault = on_fault
        self._waiting: deque[Waiting] = deque()
        self._turn: asyncio.Task[None] | None = None
        self._replies = 0
        self._clock: asyncio.TimerHandle | None = None

    def put(self, *command: Word) -> asyncio.Future[Any]:
        """The reply to come; raises ResponseError for the command's own error, another of FAULTS for the line's."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((hiredis.pack_command(command), reply))  # type: ignore[arg-type]  # its stub takes one element
        if self._turn is None:
            self._turn = asyncio.create_task(self._run())
        return reply

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._exchange(self._batch())
        finally:
            self._turn = None

    def _batch(self) -> list[Waiting]:
        batch, size = [], 0
        while self._waiting and size < WRITE:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0])
        return batch

    async def _exchange(self, batch: list[Waiting]) -> None:
        try:
            async with self._watched():
                await self._connection.connect()
                await self._connection.send_packed_command(b"".join([command for command, _ in batch]))
                for _, reply in batch:
                    await self._read(reply)
        except FAULTS as error:
            self._on_fault(error)
            self._fail([*batch, *self._waiting], error)

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Raises TimeoutError when no reply was read for TIMEOUT and GRACE."""
        try:
            async with asyncio.timeout(None) as limit:
                self._look_after(TIMEOUT, limit)
                yield
        except TimeoutError as error:
            raise TimeoutError(f"no reply for {TIMEOUT} s") from error
        finally:
            if self._clock is not None:
                self._clock.cancel()

    def _look_after(self, seconds: float, limit: asyncio.Timeout) -> None:
        self._clock = asyncio.get_running_loop().call_later(seconds, self._look, self._replies, seconds, limit)

    def _look(self, replies: int, seconds: float, limit: asyncio.Timeout) -> None:
        if self._replies != replies:
            self._look_after(TIMEOUT, limit)
        elif seconds == TIMEOUT:
            self._look_after(GRACE, limit)
        else:
            limit.reschedule(asyncio.get_running_loop().time())

    async def _read(self, reply: asyncio.Future[Any]) -> None:
        try:
            answer = await self._connection.read_response()
        except ResponseError as error:
            if not reply.done():
                reply.set_exception(error)
        else:
            if not reply.done():
                reply.set_result(answer)
        self._replies += 1

    def _fail(self, waiting: Iterable[Waiting], error: Exception) -> None:
        self._waiting.clear()
        for _, reply in waiting:
            if not reply.done():
                reply.set_exception(error)

    async def close(self) -> None:
        """Sends what is still in the line, then closes it."""
        if self._turn is not None:
            await asyncio.wait([self._turn])
        await self._connection.disconnect(nowait=True)
