"""Have we answered this before, or are we answering it right now?"""

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Literal

import msgspec

from gateway.errors import UpstreamFailed
from gateway.policy import Policy
from gateway.store import VALUE_LIMIT, Store
from gateway.types import ChatRequest, Reply, Route

# Members that change nothing in the answer.
IGNORED = frozenset({"user", "safety_identifier", "prompt_cache_key", "request_id", "priority"})
AHEAD = 256 * 1024  # bytes that a long answer may run ahead of its slowest reader

Make = Callable[[], Awaitable[Reply]]
Keep = Callable[[Reply, bytes], Awaitable[None]]


class Entry(msgspec.Struct, array_like=True):
    """An answer as it is remembered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    stream: bool
    tier: str
    rule: str
    data: bytes


_ENTRY = msgspec.msgpack.Decoder(Entry)


def lookup(request: ChatRequest, policy: Policy) -> bytes | None:
    """The key under which this request's answer is remembered; None for one that may not be.

    The key covers the caller and its plan, the policy, the models, the path, the headers that can change the route, and
    every member of the body save IGNORED, byte by byte; null counts as absent.
    """
    rules, fields, body = policy.caching, request.fields, request.body
    if not rules or fields.temperature is None or (fields.tools and not rules.when.tools):
        return None
    low, high = rules.when.temperature.min, rules.when.temperature.max
    if (low is not None and fields.temperature < low) or (high is not None and fields.temperature > high):
        return None
    members = [(name, value) for name in sorted(body.spans) if name not in IGNORED and (value := body.raw(name))]
    headers = [(name, request.headers.get(name)) for name in ("x-route-tier", *policy.watched_headers)]
    models = [(name, tier.model) for name, tier in policy.tiers.items()]
    whole = (policy.digest, models, request.caller.plan, request.caller.own.may, request.path, headers, members)
    return hmac.digest(request.caller.salt.encode(), msgspec.msgpack.encode(whole), "sha256")


def replay(data: bytes | None) -> Reply | None:
    """A remembered answer; None for a miss and for an entry that cannot be read."""
    if not data:
        return None
    try:
        entry = _ENTRY.decode(data)
    except msgspec.DecodeError:
        return None
    route = Route((entry.tier,), entry.rule, "cache")
    chunks = _one(entry.data)
    return Reply(entry.status, entry.headers, chunks, entry.stream, entry.tier, _nothing, route=route, cache="hit")


def worth_keeping(reply: Reply, data: bytes) -> bool:
    """Whether a complete answer may be given again: no error, and not what failover or a missing verdict led to."""
    decision = reply.decision
    if not decision or reply.status != 200 or reply.usage.failed or b'"choices"' not in data:
        return False
    if decision.verdict and not decision.verdict.label:
        return False
    return reply.tier == decision.route.tiers[0] and len(data) <= VALUE_LIMIT


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


async def _nothing() -> None:
    pass


class Flights:
    """Answers on their way, by cache key. Identical requests meanwhile share one of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flights: dict[bytes, Flight] = {}

    async def share(self, key: bytes | None, request: ChatRequest, policy: Policy, make: Make) -> Reply:
        """`make`'s reply, or a running one with the same key. Without a key nothing is shared or remembered."""
        if key is None or not policy.caching:
            return await make()
        flight = self._flights.get(key)
        if flight:
            return await flight.board("coalesced")
        keep = partial(self._keep, request.caller.id, key, policy.caching.ttl)
        flight = self._flights[key] = Flight(make, keep, partial(self._leave, key))
        return await flight.board("miss")

    async def _keep(self, caller: str, key: bytes, ttl: float, reply: Reply, data: bytes) -> None:
        if worth_keeping(reply, data):
            headers = [(name, value) for name, value in reply.headers if name == b"content-type"]
            rule = reply.route.rule if reply.route else ""
            entry = Entry(reply.status, headers, reply.stream, reply.tier, rule, data)
            await self._store.remember(caller, key, msgspec.msgpack.encode(entry), ttl)

    def _leave(self, key: bytes, ended: "Flight") -> None:
        if self._flights.get(key) is ended:
            del self._flights[key]


class Flight:
    """One answer for several callers: it runs until it is complete or nobody waits for it any more."""

    def __init__(self, make: Make, keep: Keep, leave: Callable[["Flight"], None]) -> None:
        self._make, self._keep, self._leave = make, keep, leave
        self._reply: Reply | None = None
        self._error: BaseException | None = None
        self._complete = False
        self._chunks: list[bytes] = []
        self._size = 0
        self._read: dict[object, int] = {}  # reader -> chunks taken
        self._freed = self._freed_bytes = 0
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._landed)

    async def board(self, cache: Literal["miss", "coalesced"]) -> Reply:
        """A reply that reads this flight from its start. Raises what ended the flight before it had a reply."""
        reader, started = object(), time.perf_counter()
        self._read[reader] = 0
        try:
            while not self._reply and not self._error:
                await asyncio.shield(self._news)
        except BaseException:
            await self._step_off(reader)
            raise
        first = self._reply
        if not first:
            raise self._error or UpstreamFailed("The answer was interrupted.")
        shut = partial(self._step_off, reader)
        chunks = self._chunks_for(reader)
        reply = Reply(first.status, first.headers, chunks, first.stream, first.tier, shut, first.usage)
        reply.waited = first.waited if cache == "miss" else time.perf_counter() - started
        reply.route, reply.decision, reply.cache = first.route, first.decision, cache
        return reply

    async def _chunks_for(self, reader: object) -> AsyncGenerator[bytes, None]:
        while True:
            while (at := self._read[reader]) < len(self._chunks):
                self._read[reader] = at + 1
                self._tell()
                yield self._chunks[at]
            if self._complete:
                return
            if self._error:
                raise self._error
            await asyncio.shield(self._news)

    async def _step_off(self, reader: object) -> None:
        """Safe to call twice. The last one to leave stops the flight, but not what it still has to remember."""
        self._read.pop(reader, None)
        self._tell()
        if self._read or self._complete or self._task.done():
            return
        self._leave(self)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        reply = self._reply = await self._make()
        self._tell()
        try:
            async for chunk in reply.chunks:
                await self._add(chunk)
        finally:
            await reply.close()
        self._complete = True
        self._tell()
        if self._size <= VALUE_LIMIT:
            await self._keep(reply, b"".join(self._chunks))

    def _landed(self, task: "asyncio.Task[None]") -> None:
        self._error = UpstreamFailed("The answer was interrupted.") if task.cancelled() else task.exception()
        self._leave(self)
        self._tell()

    async def _add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        self._tell()
        if self._size <= VALUE_LIMIT:
            return
        self._leave(self)  # too long to be remembered: nobody boards any more, and what all have read is dropped
        while self._read and self._behind() > AHEAD:
            await asyncio.shield(self._news)

    def _behind(self) -> int:
        """The bytes that the slowest reader has yet to take; what all have taken is dropped."""
        for at in range(self._freed, min(self._read.values())):
            self._freed_bytes += len(self._chunks[at])
            self._chunks[at] = b""
            self._freed = at + 1
        return self._size - self._freed_bytes

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        if not news.done():
            news.set_result(None)
