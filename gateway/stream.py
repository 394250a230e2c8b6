"""What does a model server's answer say, and did it end well?"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import msgspec

from gateway.dialects import Answers, Counted, Seen, Whole
from gateway.errors import UpstreamFailed, UpstreamTimeout
from gateway.http1 import Response, TransportError
from gateway.sse import DONE, Splitter, data_of, event
from gateway.types import Usage

MAX_JSON = 64 * 1024 * 1024  # bytes of one JSON answer, or of one event
TAIL_WAIT = 1.0  # seconds between what we need of a message and its end

_EMPTY = re.compile(rb"\s*(?:null|\[\s*\])\s*")  # no choices
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')
_SEEN, _WHOLE = msgspec.json.Decoder(Seen), msgspec.json.Decoder(Whole)
_COUNTED = msgspec.json.Decoder(Counted)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Events:
    """A stream's events, in batches of whole events, unchanged.

    With `hide_usage` a chunk of chat that carries only usage is left out. A stream that ends without the event that
    `answers` ends with and without an error event of the server raises UpstreamFailed: a cut answer is never passed off
    as a finished one. But `transformers serve` (5.19) sends no `[DONE]`: where the last event told why the answer ended
    and what it used, it is added. An event that the end cuts is left out, so that what follows it is read as what it
    is. `error` is the server's, once it came.
    """

    def __init__(self, response: Response, usage: Usage, answers: Answers, hide_usage: bool) -> None:
        self._response, self._usage = response, usage
        self._hide_usage = hide_usage and answers.usage_on_request
        self._ends, self._marks = answers.ends, answers.marks
        self._splitter = Splitter()
        self._ended = self._finished = False
        self.error: Any = None

    async def batch(self) -> bytes:
        """The next events for the caller, b"" at the end: after the last event, or after an error event of the server
        and the end. Raises UpstreamFailed, UpstreamTimeout.
        """
        while not self._ended:
            try:
                data = await self._response.chunk()
            except TransportError as error:
                data = self._broken(error)
            if batch := data if self._silent(data) else self._batch(data):
                return batch
        if not self._response.complete:
            await to_end(self._response)
        return b""

    async def pour(self, sink: Callable[[bytes], bool]) -> bytes:
        """Give batches to `sink` as they come, until it returns False or the end comes. The batch that brings the end
        is not for `sink`, but returned: what follows it can leave with it. Raises UpstreamFailed.
        """
        broken: list[UpstreamFailed] = []
        last = b""

        def sunk(data: bytes) -> bool:
            nonlocal last
            if self._silent(data):
                return sink(data)
            try:
                last = self._batch(data)
            except UpstreamFailed as error:
                broken.append(error)
                return False
            return not self._ended and (not last or sink(last))

        if not self._ended:
            await self._response.pour(sunk)
        if broken:
            raise broken[0]
        return last if self._ended else b""

    def _broken(self, error: TransportError) -> bytes:
        if self.error is None:
            raise broken(error) from None
        return b""  # the server has said itself what went wrong

    def _batch(self, data: bytes) -> bytes:
        """What of these bytes the caller gets now."""
        events = self._events(data)
        self._usage.events += len(events)
        batch = b"".join([event for event in events if self._passes(event)])
        if len(self._splitter) > MAX_JSON:
            raise UpstreamFailed("The model server sent an event without an end.")
        return batch if data or self._ended else batch + self._unended()

    def _unended(self) -> bytes:
        """What takes the place of a last event that never came. Raises UpstreamFailed."""
        self._ended = True
        if self._finished:
            self._usage.complete = True
            return event(DONE)
        if self.error is None:
            raise UpstreamFailed("The model server ended the stream before the answer was complete.")
        return b""

    def _events(self, data: bytes) -> list[bytes]:
        """What `data` completes; at the end (no data) a `[DONE]` whose blank line the server left out."""
        if data:
            return self._splitter.feed(data)
        rest = self._splitter.rest()
        return [rest + b"\n\n"] if data_of(rest).startswith(DONE) and not self._ends else []

    def _passes(self, event: bytes) -> bool:
        """Whether the caller gets this event; takes note of what it says."""
        if self._ended:
            return False  # nothing belongs to the answer after its last event
        return self._noted(data_of(event)) if self._marked(event) else True

    def _silent(self, data: bytes) -> bool:
        """Whether these bytes are whole events that say nothing which concerns us; they are counted then."""
        whole = self._splitter.plain(data)
        if not whole or self._marked(data):
            return False
        self._usage.events += whole
        return True

    def _marked(self, events: bytes) -> bool:
        """Whether one of them may say something that concerns us."""
        for mark in self._marks:  # noqa: SIM110  # any() costs more than all that it asks
            if events.partition(mark)[1]:  # `in` tries for a number first, which costs more than looking
                return True
        return False

    def _noted(self, data: bytes) -> bool:
        if data.startswith(DONE):
            self._end(not self._ends)
            return True
        try:
            seen = _SEEN.decode(data)
        except _UNREADABLE:
            return True
        fill(self._usage, seen.used())
        self._finished = bool(seen.usage) and not self._ends and _FINISH.search(seen.choices) is not None
        self._end(isinstance(seen.type, str) and seen.type in self._ends)
        if wrong := seen.wrong():
            self.error, self._usage.failed = wrong, True
            return True
        return not (self._hide_usage and seen.usage and _EMPTY.fullmatch(seen.choices))

    def _end(self, now: bool) -> None:
        if now:
            self._ended = self._usage.complete = True


class Relayed(AsyncGenerator[bytes, None]):
    """A stream's batches: the one that is here, then the others; `failed` hears when the server breaks off."""

    def __init__(self, here: bytes, events: Events, failed: Callable[[], None]) -> None:
        self._here, self._events, self._failed = here, events, failed
        self._open = True

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self.asend(None)

    async def asend(self, _: None) -> bytes:
        if batch := self._here:
            self._here = b""
            return batch
        try:
            batch = await self._events.batch() if self._open else b""
        except UpstreamFailed:
            self._failed()
            raise
        if not batch:
            self._open = False
            raise StopAsyncIteration
        return batch

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Give what comes next to `sink` as it comes, until it returns False; the end, and what must wait, comes by
        iteration. Raises UpstreamFailed.
        """
        try:
            self._here = await self._events.pour(sink)
        except UpstreamFailed:
            self._failed()
            raise

    async def athrow(self, kind: Any, *_: Any) -> bytes:
        """Nobody wants more."""
        self._open = False
        raise kind


class Noted:
    """A short answer that is read as it comes; what it says of its usage is noted in passing."""

    __slots__ = ("_response", "_splitter", "_usage", "chunk", "header", "status")

    def __init__(self, response: Response, usage: Usage) -> None:
        self._response, self._usage = response, usage
        self._splitter = Splitter()
        self.status, self.header, self.chunk = response.status, response.header, response.chunk

    @property
    def complete(self) -> bool:
        """As of Response."""
        return self._response.complete

    async def read(self, limit: int) -> bytes:
        data = await self._response.read(limit)
        self._note(data)
        return data

    def heard(self, data: bytes) -> list[bytes]:
        """The data of the events that a chunk completes."""
        cut, found = len(self._splitter), self._splitter.said(data)
        for one in found if cut or data.partition(b'"usage"')[1] else ():
            self._note(one)
        return found

    async def end(self) -> None:
        """Read the rest of an answer that is about to end."""
        await to_end(self._response, self.heard)

    def _note(self, data: bytes) -> None:
        if not data.partition(b'"usage"')[1]:
            return
        try:
            fill(self._usage, _WHOLE.decode(data).usage)
        except _UNREADABLE:
            return
        self._usage.complete = self._usage.said is not None


async def to_end(response: Response, heard: Callable[[bytes], object] = len) -> None:
    """Read the rest of a message that is about to end, so that the connection can be used again; `heard` gets it."""
    try:
        async with asyncio.timeout(TAIL_WAIT):
            while data := await response.chunk():
                heard(data)
    except (TransportError, TimeoutError):
        return


def read_whole(data: bytes, status: int, usage: Usage) -> None:
    """Fills `usage` from a whole JSON answer. Raises UpstreamFailed when it is no JSON object; an error of the server
    (4xx) passes whatever its form.
    """
    try:
        seen = _WHOLE.decode(data)
        fill(usage, seen.usage)
        usage.complete, usage.failed = True, status == 200 and bool(seen.error)
    except _UNREADABLE:
        if status < 400:
            raise UpstreamFailed("The model server's answer is not valid JSON.") from None


def fill(usage: Usage, seen: Any) -> None:
    """Takes over the counts that a server gives, as JSON or decoded; what is no count of tokens is left alone."""
    if not seen:
        return
    try:
        found = _COUNTED.decode(seen) if isinstance(seen, msgspec.Raw) else msgspec.convert(seen, Counted)
    except _UNREADABLE:
        return
    usage.said = seen.copy() if isinstance(seen, msgspec.Raw) else seen  # else it holds on to the whole answer
    prompt, cached, completion = found.counts()
    usage.prompt = usage.prompt if prompt is None else prompt  # a later event need not say what an earlier one has said
    usage.cached = usage.cached if cached is None else cached
    usage.completion = usage.completion if completion is None else completion


def broken(error: TransportError) -> UpstreamFailed:
    """What a caller is told of a broken exchange."""
    if error.kind in ("first_byte", "idle", "total"):
        return UpstreamTimeout(f"The model server did not answer in time ({error.kind}).")
    if error.kind == "connect":
        return UpstreamFailed("The model server cannot be reached.")
    return UpstreamFailed("The model server broke off its answer.")
