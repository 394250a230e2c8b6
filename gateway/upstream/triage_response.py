"""How is the answer to a question of our own read?   Triage asks, and the probe."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from gateway.http1 import Response
from gateway.sse import Splitter
from gateway.stream import TAIL_WAIT, note
from gateway.types import Usage
from gateway.upstream.open_call import OpenCall

Endings = dict[OpenCall, asyncio.Future[None]]  # of answers whose rest is under way


class TriageResponse:
    """A model server's answer to a question of our own; its usage is noted as it passes. A context manager: where the
    block ends before the answer does, the rest is read in the background, so that the connection can be used again.
    Until that has ended, the call is in `endings`."""

    __slots__ = ("_endings", "_opened", "_response", "_splitter", "_usage", "header", "status")

    def __init__(self, opened: OpenCall, response: Response, usage: Usage, endings: Endings) -> None:
        self._opened, self._response, self._usage, self._endings = opened, response, usage, endings
        self._splitter = Splitter()
        self.status, self.header = response.status, response.header

    async def read(self, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes. Raises TransportError, also when it is longer."""
        data = await self._response.read(limit)
        note(data, self._usage)
        return data

    async def events(self, take: Callable[[bytes], bool]) -> None:
        """Gives `take` the data of each event as it comes, until it returns False or the answer ends. Raises
        TransportError."""
        more = True

        def taken(chunk: bytes) -> bool:
            nonlocal more
            for data in self._heard(chunk):
                more = take(data)
            return more

        while more and (chunk := await self._response.chunk()):
            if taken(chunk):
                await self._response.pour(taken)

    def _heard(self, chunk: bytes) -> list[bytes]:
        """The data of the events that a chunk completes."""
        cut, found = len(self._splitter), self._splitter.said(chunk)
        for one in found if cut or chunk.partition(b'"usage"')[1] else ():
            note(one, self._usage)
        return found

    def _rest(self, chunk: bytes) -> bool:
        self._heard(chunk)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        response = self._response
        ended = None if kind or response.complete else response.ended(self._rest, TAIL_WAIT)
        if ended:
            self._endings[self._opened] = ended
            ended.add_done_callback(self._close)
        else:
            self._close()

    def _close(self, _: object = None) -> None:
        self._endings.pop(self._opened, None)
        self._opened.close()
