"""Would the stronger tier have said the same?   After a sample of answers it is asked the same request.

How much both answers agree (agreement.py) is kept as the outcome of the answer's record; the answers are not kept.
Callers opt out by `x-route-shadow: off` or `metadata.shadow: "off"`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import SystemRandom
from typing import NamedTuple

from msgspec.structs import replace

from gateway.admission import admit_all
from gateway.agreement import agreement
from gateway.errors import NotFound, Overloaded, Refusal
from gateway.policy import Policy, Shadow
from gateway.pricing import bound, lease, limits_of_all, lines
from gateway.recorded import SHADOW, Outcome
from gateway.records import Records
from gateway.reply import WHOLE, Chunks, Reply
from gateway.routing import lacks
from gateway.splice import lets
from gateway.store import ALL, NANO, SHADOW_ACCOUNT, UNLIMITED, Limits, Money, Store
from gateway.telemetry import Telemetry
from gateway.types import ChatRequest
from gateway.upstream import Upstream
from gateway.wording import Wording, said

MOST = 16  # answers that are copied or compared at once
LONGEST = 256 << 10  # bytes of an answer that is compared
IDLE = 0.5  # above this part of its places in use the tier is not asked
DAY = 86_400.0
draw = SystemRandom().random


class LeftOut(Exception):
    """A drawn answer is not compared: busy | budget | failed | cut | unrecorded."""


class Copy:
    """Copies the first LONGEST bytes that pass through a reply; its reader gets every byte as before."""

    def __init__(self, reply: Reply) -> None:
        self._body, self._usage, self._stream = reply.body, reply.usage, reply.stream
        self._pieces: list[bytes] = []
        self._size = 0
        self.closed = False
        if isinstance(reply.body, bytes):
            self._add(reply.body)
        else:
            reply.body = self._all(reply.chunks)

    def said(self) -> Wording:
        """What the answer said; not `whole` where the copy ends before it. Raises LeftOut after an error."""
        if self._usage.failed:
            raise LeftOut("cut")
        return said(b"".join(self._pieces), self._stream)

    async def close(self) -> None:
        """Closes the reply's pieces, which a reader that never began would leave open. Safe to call twice."""
        self.closed = True
        if not isinstance(self._body, WHOLE):
            await self._body.aclose()

    async def _all(self, pieces: Chunks) -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            self._add(piece)
            yield piece

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= LONGEST:
            self._pieces.append(piece)


class Drawn(NamedTuple):
    """An answer that was drawn to be compared, by these rules."""

    request: ChatRequest
    copy: Copy
    rules: Shadow
    policy: Policy


class Shadows:
    """Compares a sample of answers, each when its caller has all of it, so that no caller waits for that.

    A drawn answer is left out, and counted as such, while MOST others are open, while the other tier is busy, or when
    the money for comparisons is used up.
    """

    def __init__(self, store: Store, upstream: Upstream, records: Records, telemetry: Telemetry) -> None:
        self._store, self._upstream, self._records, self._meters = store, upstream, records, telemetry.meters
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, request: ChatRequest, reply: Reply, policy: Policy) -> None:
        """Have `reply` compared, if it is drawn."""
        rules = policy.record.shadow
        if rules is None or not comparable(request, reply, rules, policy) or draw() >= rules.share:
            return
        if self._open >= MOST:
            self._meters.shadows.add("busy")
            return
        self._open += 1
        reply.shut = partial(self._ended, Drawn(request, Copy(reply), rules, policy), reply.shut)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _ended(self, drawn: Drawn, shut: Callable[[], Awaitable[None]]) -> None:
        """The end of the caller's answer, in place of its reply's `shut`; safe to call twice."""
        first = not drawn.copy.closed
        try:
            try:
                await drawn.copy.close()
            finally:
                await shut()
        finally:
            if first:
                self._tasks.add(task := asyncio.create_task(self._compare(drawn)))
                task.add_done_callback(self._tasks.discard)

    async def _compare(self, drawn: Drawn) -> None:
        try:
            figure = await self._figure(drawn)
            told = Outcome(round(figure, 4), SHADOW)
            await self._records.judge(drawn.request.caller, drawn.request.id, told, drawn.policy)
            self._meters.agreement.add(figure)
            outcome = "compared"
        except LeftOut as left:
            outcome = str(left)
        except NotFound:
            outcome = "unrecorded"
        finally:
            self._open -= 1
        self._meters.shadows.add(outcome)

    async def _figure(self, drawn: Drawn) -> float:
        """How much the two answers agree, 0 to 1. Raises LeftOut."""
        first, request = drawn.copy.said(), drawn.request
        if not first.whole:
            raise LeftOut("cut")
        if not self._records.holds(request.caller, request.id):
            raise LeftOut("unrecorded")
        self._refuse_busy(drawn)
        fresh = {"headers": {}, "started": time.perf_counter(), "bills": [], "costs": [], "trace": None}
        again = replace(request, id=f"{request.id}-shadow", **fresh)
        async with self._paid(again, drawn):
            self._refuse_busy(drawn)  # the store may have taken its time
            found = agreement(first, await self._second(again, drawn))
        if found is None:
            raise LeftOut("cut")
        return found

    def _refuse_busy(self, drawn: Drawn) -> None:
        """Raises LeftOut where the call could take a place that a caller's request needs soon."""
        state = self._upstream.states(drawn.policy)[drawn.rules.tier]
        if state.inflight + 1 > IDLE * state.places:
            raise LeftOut("busy")

    @asynccontextmanager
    async def _paid(self, again: ChatRequest, drawn: Drawn) -> AsyncIterator[None]:
        """Reserves what the call may cost, from the day's money and the budget of all callers; at the block's end what
        it did cost is booked. Raises LeftOut."""
        rules, policy = drawn.rules, drawn.policy
        most, together = bound(again, (rules.tier,), policy), policy.once(limits_of_all)
        a_day = Money(round(rules.max_usd_per_day * NANO), DAY, degrade=False)
        limits = {SHADOW_ACCOUNT: Limits(UNLIMITED, UNLIMITED, lease(policy), money=a_day)}
        limits |= {ALL: together} if together else {}
        try:
            asking = {name: self._store.admit(name, each, None, most) for name, each in limits.items()}
            found = dict(zip(asking, await admit_all(asking, None, self._store), strict=True))
        except Overloaded:
            raise LeftOut("budget") from None
        if not all(one.lease for one in found.values()):
            raise LeftOut("budget")
        try:
            yield
        finally:
            used = lines(again, policy)
            for name, one in found.items():
                self._store.settle(name, one.lease or "", used)
            for line in used:
                self._meters.cost.add(line.tier, "shadow", amount=line.money / NANO)

    async def _second(self, again: ChatRequest, drawn: Drawn) -> Wording:
        """What the other tier says. Raises LeftOut."""
        name, policy = drawn.rules.tier, drawn.policy
        try:
            async with asyncio.timeout(policy.tiers[name].timeouts.total):
                return await read(await self._upstream.attempt(again, name, policy))
        except (Refusal, TimeoutError):
            raise LeftOut("failed") from None


async def read(reply: Reply) -> Wording:
    """What a reply says; it is closed. Raises Refusal, LeftOut."""
    copy = Copy(reply)
    try:
        async for _ in reply.chunks:
            pass
    finally:
        await copy.close()
        await reply.close()
    if reply.failure or reply.status != 200:
        raise LeftOut("failed")
    return copy.said()


def comparable(request: ChatRequest, reply: Reply, rules: Shadow, policy: Policy) -> bool:
    """Whether another tier may be asked what a lower one has answered.

    Not where the caller chose the tier, opts out, or may not reach the other one; nor what no model was asked for this
    time, several answers at once, and other dialects than chat's.
    """
    decision, ranks = reply.decision, list(policy.tiers)
    if decision is None or reply.status != 200 or reply.cache not in ("miss", "bypass") or not lets(request, "shadow"):
        return False
    reach = policy.reach(request.caller.plan, request.caller.own.may)
    below = reply.tier in ranks[: ranks.index(rules.tier)] and rules.tier in reach
    return below and decision.facts.wish is None and lacks(decision.facts, policy.tiers[rules.tier]) is None
