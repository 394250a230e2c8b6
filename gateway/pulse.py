"""How does a caller, and every proxy on the way, see that a silent stream is alive?"""

import asyncio
from collections.abc import Awaitable, Callable

COMMENT = b": keep-alive\n\n"  # readers of server-sent events skip it


class Pulse:
    """Writes a comment whenever a stream stood still for `seconds`; 0: never. Its holder stops it.

    `write` takes whole events, so a comment never comes into one. The holder says after each write of its own that the
    stream moves.
    """

    def __init__(self, seconds: float, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds, self._write = seconds, write
        self._task: asyncio.Task[None] | None = None
        self.last = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._check) if seconds else None

    def beat(self) -> None:
        """The stream moved."""
        self.last = self._loop.time()

    def marking(self, push: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        """`push`, after which the stream has moved."""

        now = self._loop.time

        def pushed(data: bytes) -> bool:
            self.last = now()
            return push(data)

        return pushed

    def _check(self) -> None:
        due = self.last + self._seconds
        if due > self._loop.time():
            self._timer = self._loop.call_at(due, self._check)
        else:
            self._task = self._loop.create_task(self._comment())

    async def _comment(self) -> None:
        await self._write(COMMENT)
        self.last = self._loop.time()
        self._timer = self._loop.call_later(self._seconds, self._check)

    def stop(self) -> None:
        """No comment after this. Safe to call twice."""
        if self._task:
            self._task.cancel()  # it writes nothing more, nor sets the timer: the next that it sees is the cancellation
        if self._timer:
            self._timer.cancel()
