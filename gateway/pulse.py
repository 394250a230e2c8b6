"""When does a silent stream get a keep-alive comment, and when has it lasted too long?"""

import asyncio
from collections.abc import Callable
from math import inf

from gateway.wire import Wire

COMMENT = b": keep-alive\n\n"  # readers of server-sent events skip it


class Pulse:
    """Writes a comment whenever nothing was sent for `seconds` (0: never), and calls `late` when the stream has lasted
    for `total` seconds. Its holder stops it.

    The wire gets whole events only, so a comment never splits one.
    """

    __slots__ = ("_end", "_late", "_loop", "_seconds", "_task", "_timer", "_wire")

    def __init__(self, wire: Wire, seconds: float, total: float, late: Callable[[], None]) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._wire, self._seconds, self._late = wire, seconds or inf, late
        self._task: asyncio.Task[None] | None = None
        self._end = loop.time() + total
        self._timer = loop.call_later(seconds if 0.0 < seconds < total else total, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        if now >= self._end:
            self._late()
            return
        due = self._wire.moved + self._seconds
        if due <= now:
            due = now + self._seconds
            if self._task is None or self._task.done():
                self._task = self._loop.create_task(self._comment())
        self._timer = self._loop.call_at(min(due, self._end), self._check)

    async def _comment(self) -> None:
        await self._wire.write(COMMENT, more=True)

    def rest(self) -> None:
        """No comment after this."""
        self._seconds = inf
        if self._task:
            self._task.cancel()

    def stop(self) -> None:
        """Nothing after this. Safe to call twice."""
        self.rest()
        self._timer.cancel()
