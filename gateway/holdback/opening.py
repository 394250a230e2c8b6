"""Which pieces of an answer are here, and not yet with the caller?"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from gateway.types import Reply


class Opening:
    """Takes over a reply's pieces: each is kept back until the reply's holder reads it, as `clean` leaves it.

    Ends with the reply. `waited` is the seconds that `more` took.
    """

    def __init__(self, reply: Reply, clean: Callable[[bytes], bytes]) -> None:
        self._inner, self._shut, self._clean = reply.chunks, reply.shut, clean
        self._kept: list[bytes] = []
        self._next: asyncio.Task[bytes] | None = None
        self.waited = 0.0
        reply.body, reply.shut = self._out(), self._close

    async def more(self, seconds: float | None) -> bytes | None:
        """The next piece, which is kept; b"" at the end; None when it does not come in `seconds`. Raises as the reply's
        pieces do."""
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
    """Safe to call twice; an end that nobody waited for is nobody's trouble."""
    if task:
        task.cancel()
        await asyncio.wait([task])
        task.cancelled() or task.exception()
