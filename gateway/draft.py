"""Start the likely answer while triage still thinks."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

from gateway.policy import Policy
from gateway.routing import IDLE_SHARE
from gateway.types import Ask, Bill, ChatRequest, Reply, Route
from gateway.upstream import Upstream, Waste

RATE = 100.0  # tokens a second that a server makes for one answer, about: what a dropped draft made, nobody tells

Task = asyncio.Task[Reply]
GoOn = Callable[[Route, Awaitable[Reply]], Awaitable[Reply]]


class Draft:
    """An answer that was started before the verdict; nothing of it reaches the caller until it is taken. Its holder
    drops it in the end.

    `outcome` is known once it was taken or dropped; `wasted`: tokens, about, that it made for nothing; `won`: of its
    seconds to the first byte, those that went by before it was taken: begun then, it had been waited for as long.
    """

    def __init__(self, bill: Bill, task: Task, go_on: GoOn, waste: Waste) -> None:
        self._bill, self._go_on, self._waste = bill, go_on, waste
        self._task: Task | None = task
        self._began: float | None = None
        self.outcome: Literal["kept", "wasted"] = "wasted"
        self.wasted = 0
        self.won = 0.0

    def begins(self, _: Task | None = None) -> None:
        """From here on the server makes tokens."""
        self._began = time.perf_counter()

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
            reply.shut = partial(self._end, reply.shut)
        # What went by before the verdict was not waited for.
        whole, reply.waited = reply.waited, min(reply.waited, time.perf_counter() - started)
        self.won = whole - reply.waited if self.outcome == "kept" else 0.0
        return reply

    async def drop(self) -> None:
        """Stop the draft's server, unless the draft was taken. Safe to call twice."""
        task, self._task = self._task, None
        if not task:
            return
        if self._began is not None:
            self.wasted = round(RATE * (time.perf_counter() - self._began))
            self._waste.add(wasted=self.wasted)
        if task.cancel():
            await asyncio.wait([task])
        elif not task.cancelled() and not task.exception():
            await task.result().close()

    async def _end(self, shut: Callable[[], Awaitable[None]]) -> None:
        """The end of a kept draft's answer; safe to come twice, as closing is."""
        await shut()
        if self._began is not None:
            self._began, usage = None, self._bill.usage
            self._waste.add(kept=usage.completion or usage.events)


def drafting(request: ChatRequest, ask: Ask, policy: Policy, upstream: Upstream) -> Draft | None:
    """A draft on `ask.early` where that may start, else on `ask.draft`, if the rule lets one start and not too much was
    wasted of late."""
    tier = _tier(ask, policy, upstream)
    if not tier:
        return None
    bill = Bill(tier, "draft", stream=bool(request.fields.stream))
    task = asyncio.create_task(_start(request, tier, policy, upstream, bill))
    draft = Draft(bill, task, partial(_send, request, policy, upstream), upstream.waste)
    if request.fields.stream:
        task.add_done_callback(draft.begins)
    else:
        draft.begins()
    return draft


def _tier(ask: Ask, policy: Policy, upstream: Upstream) -> str:
    """The tier that starts, "" for none."""
    most, rules = policy.triage.waste, policy.triage.early
    if not (ask.draft or ask.early or rules):
        return ""
    thrifty = most is None or upstream.waste.within(most.max, most.window)
    wanted = thrifty and ask.early is not None and _has_room(ask.early, 1, policy, upstream)
    if rules and upstream.early.may(rules.max_share, wanted=wanted):
        return ask.early or ""
    idle = policy.triage.speculate != "when_idle" or not ask.draft or _has_room(ask.draft, 2, policy, upstream)
    return ask.draft or "" if thrifty and idle else ""


def _has_room(tier: str, calls: int, policy: Policy, upstream: Upstream) -> bool:
    """For so many calls more, where places are found out: routing went by the most that there may be, here they are
    known."""
    if not policy.tiers[tier].limits.adaptive:
        return True
    state = upstream.states(policy)[tier]
    return state.inflight + calls <= IDLE_SHARE * state.places


async def _start(request: ChatRequest, tier: str, policy: Policy, upstream: Upstream, bill: Bill) -> Reply:
    """The question goes first, by one turn of the event loop: the answer then shares the prefill that it waits for
    anyway, where the other way round the verdict would wait for the answer's prefill and then for its own."""
    await asyncio.sleep(0)
    return await upstream.attempt(request, tier, policy, bill)


async def _send(
    request: ChatRequest, policy: Policy, upstream: Upstream, chosen: Route, first: Awaitable[Reply]
) -> Reply:
    return await upstream.send(request, chosen, policy, first)
