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
Waiting = tuple[bytes, asyncio.Future[Any], int]  # a packed command, its reply to come, how often it was sent on


def connection(url: str, **more: Any) -> Any:
    """redis-py's connection to `url`, not yet open; it neither retries nor watches a clock."""
    pool: Any = ConnectionPool.from_url(
        url,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
        protocol=2,
        driver_info=None,
        **more,
    )
    return pool.make_connection()


async def ask_once(url: str, *command: Word) -> Any:
    """The reply to one command on a connection of its own; None when there is none within TIMEOUT."""
    asked = connection(url)
    try:
        async with asyncio.timeout(TIMEOUT):
            await asked.connect()
            await asked.send_command(*command)
            return await asked.read_response()
    except FAULTS:
        return None
    finally:
        await asked.disconnect(nowait=True)


class Line:
    """One connection; commands that arrive while it is busy are written together, and run in the order of `put`.

    A command that was put is sent even if nobody waits for its reply any more. When the connection fails, all
    commands in the line fail with it, `on_fault` hears of it once, and the next command connects afresh.
    `on_refusal` hears of each command's own error; with True it takes over to answer the command.
    """

    def __init__(
        self,
        connection: Any,
        on_fault: Callable[[Exception], None],
        on_refusal: Callable[[ResponseError, Waiting], bool],
    ) -> None:
        self._connection = connection
        self._on_fault = on_fault
        self._on_refusal = on_refusal
        self._waiting: deque[Waiting] = deque()
        self._turn: asyncio.Task[None] | None = None
        self._replies = 0
        self._clock: asyncio.TimerHandle | None = None

    def put(self, *command: Word) -> asyncio.Future[Any]:
        """The reply to come; raises ResponseError for the command's own error, another of FAULTS for the line's."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.push((hiredis.pack_command(command), reply, 0))  # type: ignore[arg-type]  # its stub takes one element
        return reply

    def push(self, waiting: Waiting) -> None:
        """As `put`, for a command that waits already."""
        self._waiting.append(waiting)
        if self._turn is None:
            self._turn = asyncio.create_task(self._run())

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
                await self._connection.send_packed_command(b"".join([command for command, _, _ in batch]))
                for waiting in batch:
                    await self._read(waiting)
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

    async def _read(self, waiting: Waiting) -> None:
        reply = waiting[1]
        try:
            answer = await self._connection.read_response()
        except ResponseError as error:
            if not self._on_refusal(error, waiting) and not reply.done():
                reply.set_exception(error)
        else:
            if not reply.done():
                reply.set_result(answer)
        self._replies += 1

    def _fail(self, waiting: Iterable[Waiting], error: Exception) -> None:
        self._waiting.clear()
        for _, reply, _ in waiting:
            if not reply.done():
                reply.set_exception(error)

    async def close(self) -> None:
        """Sends what is still in the line, then closes it."""
        if self._turn is not None:
            await asyncio.wait([self._turn])
        await self._connection.disconnect(nowait=True)
