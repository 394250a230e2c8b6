"""Is the same request being answered right now?   Identical requests then share one answer (coalescing)."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Literal, Self

import msgspec

from gateway.cache.entry import LONGEST, Entry, packed
from gateway.cache.form import form_of
from gateway.cache.lock import Claim, Hold, Locks
from gateway.cache.lookup import cached_reply
from gateway.cache.verdicts import Verdicts
from gateway.dialects import DIALECTS, Answers
from gateway.done import nothing
from gateway.errors import UpstreamFailed
from gateway.policy import Policy
from gateway.reply import WHOLE, Reply
from gateway.store import Lock, Store
from gateway.stream import Pieces
from gateway.types import ChatRequest

LONG = 128 * 1024  # bytes that take over a millisecond to compress: the loop does not wait for them
AHEAD = 256 * 1024  # bytes that a long answer may run ahead of its slowest reader

Make = Callable[[], Coroutine[Any, Any, Reply]]
Form = tuple[bytes, bytes]  # an answer's key, and its form


def worth_keeping(reply: Reply, data: bytes, answers: Answers) -> bool:
    """Whether an answer may be given again: it came to its end without an error, and neither failover nor a failed
    verdict led to it."""
    decision = reply.decision
    if not decision or reply.status != 200 or reply.usage.failed or not answers.ended(data):
        return False
    if decision.verdict and not decision.verdict.label:
        return False
    if decision.held and decision.held.reason == "unanswered":
        return False
    route = reply.route or decision.route  # an escalation changes where the reply comes from, not what was decided
    return reply.tier == route.tiers[0] and len(data) <= LONGEST


def remembered(request: ChatRequest, reply: Reply, data: bytes) -> Entry | None:
    """The reply, whose whole answer is `data`, as it is to be remembered."""
    if not worth_keeping(reply, data, DIALECTS[request.path].answers):
        return None
    usage = msgspec.json.encode(reply.usage.said)
    rule = reply.route.rule if reply.route else ""
    kind = dict(reply.headers).get(b"content-type", b"")
    return Entry(form_of(request.fields), kind, usage, reply.tier, rule, data)


class Flights:
    """The answers that are being made, by cache key and form. Identical requests share one of them.

    `verdicts`: the same for the classifier's verdicts.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._locks = store, Locks(store)
        self.verdicts = Verdicts(store)
        self._flights: dict[Form, Flight] = {}

    def share(
        self, lock: Lock | None, request: ChatRequest, policy: Policy, make: Make, hold: Hold
    ) -> Coroutine[Any, Any, Reply]:
        """A reply that reads the flight with this key and form, or a new one, which `make` fills. Without a lock the
        answer is neither shared nor cached. A new flight holds `hold` until it ends: its caller may leave while others
        wait for the answer, which is then still made on the account of this request."""
        if lock is None or not policy.caching:
            return make()
        form = (lock.key, form_of(request.fields))
        flight = self._flights.get(form)
        if flight:
            if lock.holder == lock.token:  # a flight for which the store did not answer is on its way already
                self._store.free_lock(request.caller.id, lock.key, lock.token)
            return flight.board("coalesced")
        flight = self._flights[form] = Flight(self._flights, form)
        claim = Claim(self._locks, request.caller.id, lock, policy.caching)
        flight.begin(_fly(flight, claim, request, make, hold))
        return flight.board("miss")


async def _fly(flight: "Flight", claim: Claim, request: ChatRequest, make: Make, hold: Hold) -> None:
    """Fills the flight with the answer that another process is making, if that comes in time; else with that of `make`,
    which is cached once it is complete."""
    with hold, flight, claim:
        reply, waited = None, 0.0
        if not claim.ours:
            started = time.perf_counter()
            entry = await claim.wait()
            waited = time.perf_counter() - started
            reply = cached_reply(entry, claim.key, request)
        reply = reply or await make()
        reply.waited += waited
        data = await flight.carry(reply)
        if worth := remembered(request, reply, data):
            pack = partial(packed, worth, claim.key, request.caller)
            value = await asyncio.to_thread(pack) if len(data) > LONG else pack()
            claim.keep(value, hold if data is reply.body else None)  # a slow reader of a stream keeps its slot


class Flight:
    """One answer that several callers read, until it is complete or the last of them has left. Until then it is listed
    in `flights`, for others to join. As a context manager it ends with the block that fills it."""

    __slots__ = (
        "_flights", "_form", "_freed", "_freed_bytes", "_moved", "_reply", "_seats", "_size", "_task", "chunks",
        "complete", "error",
    )  # fmt: skip

    def __init__(self, flights: "dict[Form, Flight]", form: Form) -> None:
        self._flights, self._form = flights, form
        self._task: asyncio.Task[None] | None = None
        self._reply: Reply | None = None
        self._seats: set[Seat] = set()
        self._size = self._freed = self._freed_bytes = 0
        self.chunks: list[bytes] = []
        self.complete = False
        self.error: BaseException | None = None
        self._moved: asyncio.Future[None] | None = None  # what a long answer waits for

    def begin(self, flying: Coroutine[Any, Any, None]) -> None:
        """Starts the task that fills it: a separate one, as the first caller may leave while others wait."""
        self._task = asyncio.get_running_loop().create_task(flying)

    async def board(self, cache: Literal["miss", "coalesced"]) -> Reply:
        """A reply that reads this flight from its beginning. Raises the error of a flight that failed before that."""
        seat, started = Seat(self), time.perf_counter()
        self._seats.add(seat)
        try:
            while not self._reply and not self.error:
                await seat.news()
        except BaseException:
            await self._step_off(seat)
            raise
        first = self._reply
        if not first:
            raise self.error or UpstreamFailed("The answer was interrupted.")
        whole = first.body if isinstance(first.body, WHOLE) else None
        if whole is not None:  # nothing more will come: the seat is empty again
            self._seats.discard(seat)
        waited = first.waited if cache == "miss" else time.perf_counter() - started
        return Reply(  # by position: names take twice as long
            first.status, first.headers, seat if whole is None else whole, first.stream, first.tier,
            partial(self._step_off, seat) if whole is None else nothing, first.usage, waited, first.route,
            first.decision, "coalesced" if first.cache == "hit" else cache,
        )  # fmt: skip

    async def carry(self, reply: Reply) -> bytes:
        """Passes the reply on to all readers, and closes it. Returns the whole answer; b"" for a refusal, and for one
        that is too long to be cached."""
        self._reply, self.complete = reply, isinstance(reply.body, WHOLE)
        self._tell()
        try:
            if self.complete:
                return reply.body if isinstance(reply.body, bytes) else b""
            await self._gather(reply)
        finally:
            await reply.close()
        return b"".join(self.chunks) if self._size <= LONGEST else b""

    async def _gather(self, reply: Reply) -> None:
        body, last = reply.chunks, None
        pour = body.pour if isinstance(body, Pieces) else None
        async for chunk in body:
            if not self._add(chunk):
                await self._caught_up()
            last = await pour(self._add) if pour else None
            if last is not None:
                break
        self._tell()  # from here on no reader is poured for: the last chunk goes out together with the end
        if last:
            self._add(last)
        self.complete = True

    def _add(self, chunk: bytes) -> bool:
        """Adds a chunk; returns whether more may be added at once. An answer that is too long to be cached waits for
        its slowest reader, and drops what all have read."""
        self.chunks.append(chunk)
        self._size += len(chunk)
        for seat in self._seats:
            seat.heard(chunk)
        if self._size <= LONGEST:
            return True
        self._leave()
        return False

    async def _caught_up(self) -> None:
        """Waits until no reader is more than AHEAD behind."""
        while self._seats and self._behind() > AHEAD:
            self._moved = asyncio.get_running_loop().create_future()
            await self._moved

    def _behind(self) -> int:
        """The bytes that the slowest reader has not taken yet; drops what all have taken."""
        for at in range(self._freed, min([seat.taken for seat in self._seats])):
            self._freed_bytes += len(self.chunks[at])
            self.chunks[at] = b""
            self._freed = at + 1
        return self._size - self._freed_bytes

    def moved(self) -> None:
        """A reader took a chunk, or left."""
        if self._moved and not self._moved.done():
            self._moved.set_result(None)

    async def _step_off(self, seat: "Seat") -> None:
        """A reader leaves; the last one cancels the flight, unless the answer is complete. Safe to call twice."""
        self._seats.discard(seat)
        self.moved()
        if self.complete or self._seats or not self._task or self._task.done():
            return
        self._leave()
        self._task.cancel()
        await asyncio.wait([self._task])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        """The answer is complete, or ended with `error`, which its readers then raise."""
        interrupted = kind is asyncio.CancelledError
        self.error = UpstreamFailed("The answer was interrupted.") if interrupted else error
        self._leave()
        self._tell()
        return isinstance(error, Exception)

    def _leave(self) -> None:
        """No one can join from here on."""
        if self._flights.get(self._form) is self:
            del self._flights[self._form]

    def _tell(self) -> None:
        for seat in self._seats:
            seat.wake()


class Seat(Pieces):
    """A reader's place in a flight: yields its chunks from the first one on. `taken`: how many the reader has."""

    __slots__ = ("_flight", "_news", "_sink", "taken")

    def __init__(self, flight: Flight) -> None:
        self._flight, self.taken = flight, 0
        self._sink: Callable[[bytes], bool] | None = None
        self._news: asyncio.Future[None] | None = None

    async def __anext__(self) -> bytes:
        """The next chunk. Raises the flight's error."""
        flight = self._flight
        while self.taken == len(flight.chunks):
            if flight.complete:
                raise StopAsyncIteration
            if flight.error:
                raise flight.error
            await self.news()
        self.taken += 1
        flight.moved()
        return flight.chunks[self.taken - 1]

    async def pour(self, sink: Callable[[bytes], bool]) -> bytes | None:
        flight = self._flight
        if self.taken == len(flight.chunks) and not (flight.complete or flight.error):
            self._sink = sink
            try:
                await self.news()
            finally:
                self._sink = None
        if flight.complete and self.taken >= len(flight.chunks) - 1:
            return b"".join(flight.chunks[self.taken :])
        return None

    def heard(self, chunk: bytes) -> None:
        """The flight has a new chunk: it goes straight to a reader that pours, or wakes one that waits."""
        if self._sink:
            self.taken += 1
            if self._sink(chunk):
                return
        self.wake()

    def news(self) -> "asyncio.Future[None]":
        """A future that is done when the flight changes. A seat has one reader, so one future is enough."""
        self._news = asyncio.get_running_loop().create_future()
        return self._news

    def wake(self) -> None:
        news, self._news, self._sink = self._news, None, None
        if news and not news.done():
            news.set_result(None)
