"""How is the start of an answer read before the caller gets it?"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from gateway.reply import Reply


class Opening:
    """Takes over a reply's pieces: those that `more` reads are kept, and the reply's reader gets them first, then the
    rest, each as `clean` returns it. Ends with the reply. `waited` is the seconds that `more` took.
    """

    def __init__(self, reply: Reply, clean: Callable[[bytes], bytes]) -> None:
        self._inner, self._shut, self._clean = reply.chunks, reply.shut, clean
        self._kept: list[bytes] = []
        self._next: asyncio.Task[bytes] | None = None
        self.waited = 0.0
        reply.body, reply.shut = self._out(), self._close

    async def more(self, seconds: float | None) -> bytes | None:
        """Reads and keeps the next piece, and returns it; b"" at the end, None when none came in `seconds`. Raises as
        the reply's pieces do."""
        started = time.perf_counter()
        pulled = self._next = self._next or asyncio.create_task(self._pull())
        try:
            await asyncio.wait([pulled], timeout=seconds)
        finally:
            self.waited += time.perf_counter() - started
        if not pulled.done():
            return None
        self._next = None
        if piece := pulled.result():
            self._kept.append(piece)
        return piece

    async def _pull(self) -> bytes:
        return await anext(self._inner, b"")

    async def _out(self) -> AsyncGenerator[bytes, None]:
        kept, self._kept = self._kept, []
        for piece in kept:
            yield self._clean(piece)
        pulled, self._next = self._next, None
        if pulled and (piece := await pulled):
            yield self._clean(piece)
        async for piece in self._inner:
            yield self._clean(piece)

    async def _close(self) -> None:
        try:
            await _stop(self._next)
            await self._inner.aclose()
        finally:
            await self._shut()


async def _stop(task: asyncio.Task[bytes] | None) -> None:
    """Cancels the task and drops its error, which nobody waits for. Safe to call twice."""
    if task:
        task.cancel()
        await asyncio.wait([task])
        task.cancelled() or task.exception()
