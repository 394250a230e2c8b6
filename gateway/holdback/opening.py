"""How is the start of an answer read before the caller gets it, without log-probabilities that it did not ask for?"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable

import msgspec

from gateway.errors import UNREADABLE
from gateway.reply import Reply
from gateway.sse import data_of, events_of


class _Probed(msgspec.Struct):
    logprobs: msgspec.Raw = msgspec.Raw(b"null")


class _Told(msgspec.Struct):
    choices: list[_Probed] = []


_KEY = re.compile(rb'"logprobs"\s*:\s*')
_TOLD = msgspec.json.Decoder(_Told)


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


def unprobed(piece: bytes, stream: bool) -> bytes:
    """The piece with null in place of log-probabilities, as a server writes it that was not asked for them. All other
    bytes stay as they are."""
    if b'"logprobs"' not in piece:
        return piece
    return b"".join(map(_without, events_of(piece))) if stream else _without(piece)


def _without(event: bytes) -> bytes:
    try:
        told = _TOLD.decode(data_of(event) or event)
    except UNREADABLE:
        return event
    parts, done, keys = [], 0, _KEY.finditer(event)
    for value in [bytes(choice.logprobs) for choice in told.choices]:
        # Inside of a string its quotes would be escaped: the value stands nowhere else behind this key.
        ends = (key.end() for key in keys if event.startswith(value, key.end()))
        if value != b"null" and (at := next(ends, 0)):
            parts += [event[done:at], b"null"]
            done = at + len(value)
    return b"".join([*parts, event[done:]])
