"""The door to the model servers: who is asked, how long do we wait, and who is next when a tier fails?"""

import asyncio
import itertools
import os
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NamedTuple

from gateway import __version__
from gateway.balance import affinity, pick
from gateway.errors import Overloaded, Refusal, UpstreamFailed, UpstreamTimeout
from gateway.http1 import Client, Limits, Origin, Response, TransportError
from gateway.policy import Policy, Tier
from gateway.splice import CHAT, changes
from gateway.stream import Events, Noted, broken, json_answer, to_end
from gateway.types import Bill, ChatRequest, Headers, Reply, Route, Usage

RETRY_AFTER = 1.0  # seconds, when a full server does not say
LONGEST_RETRY_AFTER = 3600.0  # seconds; more is not believed
PASSED = frozenset({b"content-type", b"retry-after", b"retry-after-ms", b"x-should-retry"})


class Failed(Exception):
    """A tier failed in the way `kind`, a member of `failover.on`. `void`: before it began to work."""

    def __init__(self, kind: str, refusal: Refusal, void: bool = True) -> None:
        super().__init__(refusal.message)
        self.kind, self.refusal, self.void = kind, refusal, void


class Attempt(NamedTuple):
    """What came of asking one tier. `failure`, a member of `failover.on`, says that another tier may be tried; the
    reply is then what the caller hears if none is, and it holds nothing open."""

    reply: Reply
    failure: str | None


class Call(NamedTuple):
    """What is asked of one tier's servers."""

    tier: str
    path: str
    id: str
    body: bytes
    stream: bool
    bill: Bill


class Exchange:
    """An open call; its holder closes it."""

    def __init__(self, tier: str, response: Response, ended: Callable[[], None]) -> None:
        self.tier, self.response = tier, response
        self._ended: Callable[[], None] | None = ended

    async def close(self) -> None:
        """Stop the server if it still answers. Safe to call twice."""
        ended, self._ended = self._ended, None
        if ended:
            ended()
            self.response.close()


class Upstream:
    """Model servers by tier. Counts what is in flight, for the rules and for balancing.

    `able`: by tier, the strategies of triage that its servers were found to serve.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.able: dict[str, tuple[str, ...]] = {}
        self._tiers: dict[str, int] = defaultdict(int)
        self._replicas: dict[str, int] = defaultdict(int)
        self._endings: set[asyncio.Task[None]] = set()
        self._turns: dict[str, int] = defaultdict(int)  # answers begun, by tier
        self._names = map(partial("{}-{:x}".format, secrets.token_hex(4)), itertools.count())

    def load(self) -> Mapping[str, int]:
        """Requests in flight by tier, as of this moment."""
        return dict(self._tiers)

    async def send(
        self, request: ChatRequest, route: Route, policy: Policy, first: Awaitable[Attempt] | None = None
    ) -> Reply:
        """The answer of the first tier of the route that gives one; its first bytes have arrived.

        A server's 4xx is an answer, save a 429 while tiers are left. `first` is the first tier's attempt where that is
        under way already. When every tier failed, the reply breaks with the last one's refusal.
        """
        reply, waited = Reply.refused(UpstreamFailed("The route names no tier.")), 0.0
        for name in route.tiers:
            reply, failure = await (first or self.attempt(request, name, policy))
            waited, first = waited + reply.waited, None
            if failure not in policy.failover.on:
                break
        reply.waited = waited
        return reply

    async def attempt(self, request: ChatRequest, name: str, policy: Policy, bill: Bill | None = None) -> Attempt:
        """What one tier makes of the request; its first bytes have arrived, or it failed before them.

        What it used is put on `bill`, among the request's bills.
        """
        tier = policy.tiers[name]
        if self._full(name, tier):
            return Attempt(Reply.refused(_full(name)), "overloaded")
        body = request.body.edit(changes(request, tier, policy.callers.plans[request.caller.plan]))
        bill = bill or Bill(name, "answer")
        bill.stream = bool(request.fields.stream)
        call = Call(name, request.path, request.id, body, bill.stream, bill)
        self._turns[name] += 1
        request.bills.append(bill)
        started = time.perf_counter()
        try:
            reply = await self._answer(request, call, policy)
            failure, bill.void = "overloaded" if _busy(reply) else None, reply.status != 200
        except Failed as failed:
            reply, failure = Reply.refused(failed.refusal), failed.kind
            bill.void, bill.lost = failed.void, True
        reply.waited = time.perf_counter() - started
        if failure:
            await reply.shut()
        return Attempt(reply, failure)

    @asynccontextmanager
    async def asking(self, request: ChatRequest, path: str, body: bytes, policy: Policy) -> AsyncIterator[Noted]:
        """The answer to a short question of ours about `request`, from the replica that would answer it.

        Who has read enough leaves the block: the rest is read and dropped, so that the connection can be used again.
        Raises Overloaded when the tier is full, TransportError of kind "total" when `triage.timeout` runs out.
        """
        name, seconds = policy.triage.tier, policy.triage.timeout
        tier = policy.tiers[name]
        if self._full(name, tier):
            raise _full(name)
        call = Call(name, path, request.id + "-triage", body, path == CHAT, Bill(name, "triage"))
        request.bills.append(call.bill)
        limits = Limits(min(tier.timeouts.connect, seconds), seconds, seconds, seconds)
        exchange = await self._open(request, call, policy, limits)
        response = Noted(exchange.response, call.bill.usage)
        try:
            yield response
        except BaseException:
            await exchange.close()
            raise
        ending = asyncio.create_task(_let_end(exchange, response))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _answer(self, request: ChatRequest, call: Call, policy: Policy) -> Reply:
        """Raises Failed before the first byte of an answer."""
        try:
            exchange = await self._open(request, call, policy, _limits(policy.tiers[call.tier], call.stream))
        except TransportError as error:
            refusal = broken(error)
            raise (Failed("connect", refusal) if error.kind == "connect" else _failed(refusal)) from None
        try:
            return await _reply(request, exchange, call.bill.usage)
        except BaseException:
            await exchange.close()
            raise

    async def _open(self, request: ChatRequest, call: Call, policy: Policy, limits: Limits) -> Exchange:
        """Counted as in flight until it is closed. Raises TransportError."""
        tier = policy.tiers[call.tier]
        key = self._turns[call.tier] if tier.balance == "round_robin" else affinity(request.fields.opening())
        url = pick(tier.replicas, tier.balance, self._replicas, key)
        origin = Origin.parse(url)
        # Callers choose their ids, and two of one id would meet in the server's engine: each exchange has its own.
        head = _head(origin, tier, call, f"{call.id}-{next(self._names)}")
        self._count(call.tier, url, 1)
        try:
            response = await self._client.request(origin, head, call.body, limits)
        except BaseException:
            self._count(call.tier, url, -1)
            raise
        return Exchange(call.tier, response, partial(self._count, call.tier, url, -1))

    def _count(self, tier: str, url: str, change: int) -> None:
        self._tiers[tier] += change
        self._replicas[url] += change

    def _full(self, name: str, tier: Tier) -> bool:
        return self._tiers[name] >= tier.limits.max_inflight


def _full(name: str) -> Overloaded:
    return Overloaded(f"Tier '{name}' is full.", retry_after=RETRY_AFTER)


def _busy(reply: Reply) -> bool:
    """A 429 that leaves it to us whether to try elsewhere."""
    return reply.status == 429 and (b"x-should-retry", b"false") not in reply.headers


def _limits(tier: Tier, stream: bool) -> Limits:
    times = tier.timeouts
    if stream:
        return Limits(times.connect, times.first_byte, times.idle, times.total)
    return Limits(times.connect, times.total, times.total, times.total)


def _head(origin: Origin, tier: Tier, call: Call, name: str) -> bytes:
    """Request line and headers. Nothing of the caller's headers goes upstream but a request id in our form."""
    key = os.environ.get(tier.api_key_env, "") if tier.api_key_env else ""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = [
        f"POST {origin.prefix}{call.path} HTTP/1.1",
        f"host: {host}:{origin.port}",
        f"user-agent: tiergate/{__version__}",
        "content-type: application/json",
        f"accept: {'text/event-stream' if call.stream else 'application/json'}",
        f"x-request-id: {name}",
        f"content-length: {len(call.body)}",
    ]
    if key:
        lines.append(f"authorization: Bearer {key.strip()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _reply(request: ChatRequest, exchange: Exchange, usage: Usage) -> Reply:
    """The server's answer as ours. Raises Failed before the first byte of it."""
    response = exchange.response
    if response.status >= 500:
        raise _refused(response)
    if 200 < response.status < 400 or response.header(b"content-encoding") not in (b"", b"identity"):
        raise Failed("5xx", UpstreamFailed("The model server's answer is in a form that was not asked for."))
    headers: Headers = [(name, value) for name, value in response.headers if name in PASSED]
    if upstream_id := response.header(b"x-request-id"):
        headers.append((b"x-upstream-request-id", upstream_id))
    if response.status == 200 and response.header(b"content-type").startswith(b"text/event-stream"):
        return await _stream(request, exchange, headers, usage)
    try:
        data = await json_answer(response, usage)
    except UpstreamFailed as error:
        raise _failed(error) from None
    return Reply(response.status, headers, _one(data), False, exchange.tier, exchange.close, usage)


async def _stream(request: ChatRequest, exchange: Exchange, headers: Headers, usage: Usage) -> Reply:
    """Waits for the first events: a stream that breaks before them can still fail over."""
    asked = (request.fields.stream_options or {}).get("include_usage") is True
    events = Events(exchange.response, usage, hide_usage=not asked)
    first = b""
    try:
        while not first and events.error is None:
            first = await events.batch()
    except UpstreamFailed as error:
        raise _failed(error) from None
    if events.error is not None:
        raise Failed("5xx", UpstreamFailed("The model server failed before it answered."), void=False)
    return Reply(200, headers, _all(first, events, usage), True, exchange.tier, exchange.close, usage)


def _failed(error: UpstreamFailed) -> Failed:
    return Failed("first_byte" if isinstance(error, UpstreamTimeout) else "5xx", error, void=False)


def _refused(response: Response) -> Failed:
    """A server's 5xx. Its text stays here: it may name hosts, paths or other callers' data."""
    if response.status != 503:
        return Failed("5xx", UpstreamFailed(f"The model server failed (status {response.status})."))
    after = response.header(b"retry-after")
    seconds = min(float(after), LONGEST_RETRY_AFTER) if after.isdigit() else RETRY_AFTER
    return Failed("overloaded", Overloaded("The model server is overloaded.", retry_after=seconds))


async def _let_end(exchange: Exchange, response: Noted) -> None:
    try:
        await to_end(response)
    finally:
        await exchange.close()


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


async def _all(first: bytes, events: Events, usage: Usage) -> AsyncGenerator[bytes, None]:
    yield first
    async with aclosing(events.rest()) as rest:
        async for batch in rest:
            yield batch
    usage.failed = events.error is not None
