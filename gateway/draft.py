"""Start the likely answer while triage still thinks."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal

from gateway.policy import Policy
from gateway.types import Ask, Bill, ChatRequest, Reply, Route
from gateway.upstream import Attempt, Upstream

Task = asyncio.Task[Attempt]
GoOn = Callable[[Route, Awaitable[Attempt]], Awaitable[Reply]]


class Draft:
    """An answer that was started before the verdict; nothing of it reaches the caller until it is taken.

    `outcome` is known once it was taken or dropped.
    """

    def __init__(self, bill: Bill, task: Task | None, go_on: GoOn) -> None:
        self._bill, self._task, self._go_on = bill, task, go_on
        self.outcome: Literal["none", "kept", "wasted"] = "wasted" if task else "none"

    async def take(self, chosen: Route) -> Reply | None:
        """The reply along `chosen` if it begins with the draft's tier: the draft is that tier's attempt, and failover
        goes on behind it. Else None; the draft is then cancelled at once.
        """
        if not self._task or chosen.tiers[0] != self._bill.tier:
            await self.drop()
            return None
        self._bill.kind = "answer"
        started = time.perf_counter()
        reply = await self._go_on(chosen, self._task)
        self._task = None
        if reply.tier == self._bill.tier:
            self.outcome = "kept"
        # What went by before the verdict was not waited for.
        reply.waited = min(reply.waited, time.perf_counter() - started)
        return reply

    async def drop(self) -> None:
        """Stop the draft's server. Safe to call twice."""
        task, self._task = self._task, None
        if not task:
            return
        if task.cancel():
            await asyncio.wait([task])
        elif not task.cancelled() and not task.exception():
            await task.result().reply.close()


@asynccontextmanager
async def drafting(request: ChatRequest, ask: Ask, policy: Policy, upstream: Upstream) -> AsyncIterator[Draft]:
    """A draft on `ask.draft`, if the rule lets one start. It is dropped at the end of the block unless taken."""
    bill = Bill(ask.draft or "", "draft")
    task = asyncio.create_task(_start(request, ask.draft, policy, upstream, bill)) if ask.draft else None
    draft = Draft(bill, task, partial(_send, request, policy, upstream))
    try:
        yield draft
    finally:
        await draft.drop()


async def _start(request: ChatRequest, tier: str, policy: Policy, upstream: Upstream, bill: Bill) -> Attempt:
    """The question goes first, by one turn of the event loop: the answer then shares the prefill that it waits for
    anyway, where the other way round the verdict would wait for the answer's prefill and then for its own."""
    await asyncio.sleep(0)
    return await upstream.attempt(request, tier, policy, bill)


async def _send(
    request: ChatRequest, policy: Policy, upstream: Upstream, chosen: Route, first: Awaitable[Attempt]
) -> Reply:
    return await upstream.send(request, chosen, policy, first)
