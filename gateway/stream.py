"""What does a model server's answer say, and did it end well?"""

import contextlib
import re
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from gateway.body import real
from gateway.dialects import Answers, Counted, Seen, Whole
from gateway.done import nothing
from gateway.errors import UNREADABLE, UpstreamFailed, UpstreamTimeout
from gateway.http1 import Response, TransportError
from gateway.sse import DONE, Splitter, alike, data_of, event, none_like, split
from gateway.types import Usage

Heard = Callable[[UpstreamFailed], None]
MAX_JSON = 64 * 1024 * 1024  # bytes of one JSON answer, or of one event
TAIL_WAIT = 1.0  # seconds between what we need of a message and its end
QUEUED = 10.0  # seconds of comments alone, after which they pass: a caller's line stays open only while something comes
SPOKEN = 1 << 16  # bytes of comments, likewise
LARGE = 4096  # bytes of what an event adds to an answer; of sixteen tokens these are some hundred

_EMPTY = re.compile(rb"\s*(?:null|\[\s*\])\s*")  # no choices
_comments = re.compile(rb"(?:(?::[^\r\n]*+)?(?>\r\n|\n|\r))++").fullmatch
_adds = re.compile(rb'"choices"|delta"').search
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')
_SEEN = msgspec.json.Decoder(Seen, float_hook=real)  # an event may repeat what the caller sent
_WHOLE = msgspec.json.Decoder(Whole, float_hook=real)
_COUNTED = msgspec.json.Decoder(Counted)


class Pieces(AsyncIterator[bytes]):
    """An answer on its way: an iterator of its pieces that can also pour them."""

    __slots__ = ()

    @abstractmethod
    async def pour(self, sink: Callable[[bytes], bool]) -> bytes | None:
        """Give pieces to `sink` as they come, until it returns False or the answer ends. Returns the last piece, which
        the sink did not get, when the answer has ended, so that it can be sent together with what follows; None when
        the iterator has more. Raises Refusal.
        """

    def aclose(self) -> Awaitable[None]:
        """Nobody wants more."""
        return nothing()


class Events(Pieces):
    """A stream's events, in batches of whole events, unchanged.

    With `hide_usage` a chunk of chat that carries only usage is left out. A stream that ends with neither the last
    event of its dialect nor an error event of the server raises UpstreamFailed: a cut answer is never passed off as a
    finished one. `transformers serve` (5.19) sends no `[DONE]`: it is added where the last event has finish_reason and
    usage. An incomplete event at the end is left out, so that an error event can follow it. `error`: the server's error
    event, once it came, or "abort" where it gave the answer up. `failed` is called with the error when the server
    breaks off after the first batch.
    """

    def __init__(self, response: Response, usage: Usage, answers: Answers, hide_usage: bool, failed: Heard) -> None:
        self._response, self._usage, self._failed = response, usage, failed
        self._hide_usage = hide_usage and answers.usage_on_request
        self._ends, self._marks, self._text = answers.ends, answers.marks, answers.text
        self._splitter = Splitter()
        self._here = b""  # the next batch, once it came
        self._open = True
        self._ended = self._finished = self._silent = False
        self.error: Any = None

    async def more(self) -> None:
        """Wait until the next batch is there, or the stream has ended. Raises UpstreamFailed, UpstreamTimeout."""
        while not self._ended and not self._here:
            try:
                data = self._response.here() or await self._response.chunk()
            except TransportError as error:
                data = self._broken(error)
            self._here = self._batch(data)
        if not self._here and not self._response.complete:
            await to_end(self._response)

    def quiet(self) -> bool:
        """Whether the next batch is comments alone: servers whose queue is long send them before they begin."""
        return self._here[:1] == b":" and _comments(self._here) is not None

    async def said(self, patience: float = QUEUED) -> None:
        """After `more`: wait until there is more than comments, for so many seconds, or SPOKEN bytes of them; they stay
        the beginning of the next batch. Raises as that does."""
        end, comments = time.monotonic() + patience, b""
        while self.quiet() and len(comments) < SPOKEN and time.monotonic() < end:
            comments, self._here = comments + self._here, b""
            await self.more()
        self._here = comments + self._here

    async def __anext__(self) -> bytes:
        """The batch that `more` waits for. Raises as that does."""
        if self._open and not self._here:
            try:
                await self.more()
            except UpstreamFailed as error:
                self._failed(error)
                raise
        batch, self._here = self._here, b""
        if not batch:
            self._open = False
            raise StopAsyncIteration
        return batch

    def aclose(self) -> Awaitable[None]:
        """Nobody wants more; what came and was not read counts in `usage` all the same."""
        if not self._ended:
            self._count()
        self._open, self._here = False, b""
        return nothing()

    def _count(self) -> None:
        with contextlib.suppress(TransportError, UpstreamFailed):
            if data := self._response.here():
                self._batch(data)

    async def pour(self, sink: Callable[[bytes], bool]) -> bytes | None:
        broken: list[UpstreamFailed] = []
        usage, batch = self._usage, b""
        like: Callable[[bytes], bool] = none_like

        def sunk(data: bytes) -> bool:
            nonlocal batch, like
            if like(data):
                usage.events += 1
                return sink(data)
            try:
                batch = self._batch(data)
            except UpstreamFailed as error:
                broken.append(error)
                return False
            like = alike(data, self._text) if self._silent else none_like
            return not self._ended and (not batch or sink(batch))

        if not self._ended:
            await self._response.pour(sunk)
        if broken:
            self._failed(broken[0])
            raise broken[0]
        if self._ended and self._response.complete:
            return batch
        self._here = batch if self._ended else b""
        return None

    def _broken(self, error: TransportError) -> bytes:
        if self.error is None:
            raise broken(error) from None
        return b""  # the server has said itself what went wrong

    def _batch(self, data: bytes) -> bytes:
        """The part of these bytes that the caller gets now. Sets `_silent`: they are whole events without a mark, and
        pass as they are."""
        whole = self._splitter.plain(data)
        self._silent = whole > 0 and not self._marked(data)
        if self._silent:
            self._usage.events += whole
            if len(data) > LARGE:
                self._usage.bulk += in_bulk(split(data, whole))
            return data
        events = split(data, whole) if whole else self._events(data)
        self._usage.events += len(events)
        self._usage.bulk += in_bulk(events)
        batch = b"".join([event for event in events if self._passes(event)])
        if len(self._splitter) > MAX_JSON:
            raise UpstreamFailed("The model server sent an event without an end.")
        return batch if data or self._ended else self._unended()

    def _unended(self) -> bytes:
        """The stream ended without its last event: what the caller gets in its place. Raises UpstreamFailed."""
        self._ended = True
        if self._finished:
            self._usage.complete = True
            return event(DONE)
        if self.error is None:
            raise UpstreamFailed("The model server ended the stream before the answer was complete.")
        return b""

    def _events(self, data: bytes) -> list[bytes]:
        """The events that `data` completes; at the end (b"") a last `[DONE]` without its blank line."""
        if data:
            return self._splitter.feed(data)
        rest = self._splitter.rest()
        return [rest + b"\n\n"] if data_of(rest).startswith(DONE) and not self._ends else []

    def _passes(self, event: bytes) -> bool:
        """Whether the caller gets this event; notes its usage, error and end."""
        if self._ended:
            return False  # nothing belongs to the answer after its last event
        return self._noted(data_of(event)) if self._marked(event) else True

    def _marked(self, events: bytes) -> bool:
        """Whether one of the dialect's marks is in them: else none has usage, an error or the end."""
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
        except UNREADABLE:
            return True
        fill(self._usage, seen.used())
        if seen.type == "message_start":
            self._usage.completion = None  # it counts what there is at the start
        self._finished = bool(seen.usage) and not self._ends and _FINISH.search(seen.choices) is not None
        self._end(isinstance(seen.type, str) and seen.type in self._ends)
        if wrong := seen.wrong() or (seen.given_up() and "abort"):
            self.error, self._usage.failed = wrong, True
            return True
        return not (self._hide_usage and seen.usage and _EMPTY.fullmatch(seen.choices))

    def _end(self, now: bool) -> None:
        if now:
            self._ended = self._usage.complete = True


def in_bulk(events: list[bytes]) -> int:
    """The bytes that the large ones add to the answer, in choices or a delta: others repeat the request, its tools too,
    or what was said. Of a tool that V4 calls vLLM sends each whole argument as one (issue 52846); likelihoods, which
    stand behind what is said, take 3 KB of a token."""
    added = [event.partition(b'"logprobs"')[0] for event in events if len(event) > LARGE and _adds(event)]
    return sum([len(said) for said in added if len(said) > LARGE])


async def to_end(response: Response) -> None:
    """Read the rest of a message that is about to end, so that the connection can be used again."""
    with contextlib.suppress(TransportError):
        if ended := response.ended(bool, TAIL_WAIT):
            await ended


def note(data: bytes, usage: Usage) -> None:
    """Fills `usage` from a JSON answer or the data of a stream's event, if that has one."""
    if not data.partition(b'"usage"')[1]:
        return
    try:
        fill(usage, _WHOLE.decode(data).usage)
    except UNREADABLE:
        return
    usage.complete = usage.said is not None


def read_whole(data: bytes, status: int, usage: Usage) -> None:
    """Fills `usage` from a whole JSON answer. Raises UpstreamFailed when it is no JSON object, or was given up; an
    error of the server (4xx) passes whatever its form."""
    try:
        seen = _WHOLE.decode(data)
        fill(usage, seen.usage)
        usage.complete, usage.failed = True, status == 200 and bool(seen.error)
        if status == 200 and seen.given_up(data):
            raise UpstreamFailed("The model server gave up its answer.")
    except UNREADABLE:
        if status < 400:
            raise UpstreamFailed("The model server's answer is not valid JSON.") from None


def fill(usage: Usage, seen: Any) -> None:
    """Copies a server's usage object, as JSON or decoded, into `usage`. One that is not of that form is ignored."""
    if not seen:
        return
    try:
        found = _COUNTED.decode(seen) if isinstance(seen, msgspec.Raw) else msgspec.convert(seen, Counted)
    except UNREADABLE:
        return
    usage.said = seen.copy() if isinstance(seen, msgspec.Raw) else seen  # else it holds on to the whole answer
    prompt, cached, completion = found.counts()
    usage.prompt = usage.prompt if prompt is None else prompt  # a later event need not say what an earlier one has said
    usage.cached = usage.cached if cached is None else cached
    usage.completion = usage.completion if completion is None else completion


def broken(error: TransportError) -> UpstreamFailed:
    """What a caller is told of a broken exchange."""
    if error.kind in ("first_byte", "still", "idle", "total"):
        return UpstreamTimeout(f"The model server did not answer in time ({error.kind}).")
    if error.kind == "connect":
        return UpstreamFailed("The model server cannot be reached.")
    return UpstreamFailed("The model server broke off its answer.")
