"""Which answer is started before the verdict is known, and what becomes of it?   Speculation."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

from gateway.policy import Policy
from gateway.reply import Reply
from gateway.routing import IDLE_SHARE
from gateway.types import Ask, Bill, ChatRequest, Route
from gateway.upstream import Upstream

RATE = 100.0  # tokens a second of one answer, roughly: of JSON that is still being made nothing is known but its time

Task = asyncio.Task[Reply]
GoOn = Callable[[Route, Awaitable[Reply]], Awaitable[Reply]]


class Draft:
    """An answer that was started before the verdict. Nothing of it reaches the caller until it is taken; its holder
    drops it in any case, which does nothing to one that was taken.

    `outcome`, once it was taken or dropped. `wasted`: about how many tokens were generated for nothing. `won`: the part
    of its time to the first byte that had passed when it was taken, in seconds: the caller is spared that.
    """

    def __init__(self, bill: Bill, task: Task, go_on: GoOn, waste: Callable[..., None]) -> None:
        """`waste` is called with its tokens, `kept` or `wasted`."""
        self._bill, self._go_on, self._waste = bill, go_on, waste
        self._task: Task | None = task
        self._told = False
        self.outcome: Literal["kept", "wasted"] = "wasted"
        self.wasted = 0
        self.won = 0.0

    async def take(self, chosen: Route) -> Reply | None:
        """The reply along `chosen` if that begins with the draft's tier: the draft is then that tier's attempt, and
        failover continues from it. Else None, and the draft is cancelled.
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
        # The time before the verdict is counted as waiting for the verdict, not for the draft.
        whole, reply.waited = reply.waited, min(reply.waited, time.perf_counter() - started)
        self.won = whole - reply.waited if self.outcome == "kept" else 0.0
        return reply

    async def drop(self) -> None:
        """Cancels the draft, which stops its server, unless it was taken. Safe to call twice."""
        task, self._task = self._task, None
        if not task:
            return
        try:
            if task.cancel():
                await asyncio.wait([task])
            elif not task.cancelled() and not task.exception():
                await task.result().close()
        finally:
            bill = self._bill
            bill.made = 0 if bill.void or bill.stream else round(RATE * (time.perf_counter() - bill.at))
            self.wasted = bill.usage.tokens or bill.made
            self._waste(wasted=self.wasted)

    async def _end(self, shut: Callable[[], Awaitable[None]]) -> None:
        """Takes the place of `shut` in the reply of a kept draft. Safe to call twice."""
        await shut()
        if not self._told:
            self._told = True
            self._waste(kept=self._bill.usage.tokens)


def drafting(request: ChatRequest, ask: Ask, policy: Policy, upstream: Upstream) -> Draft | None:
    """A draft on the tier `ask.early` if that may start, else on `ask.draft`. None if neither may, or if too many
    tokens of drafts were wasted lately."""
    caller = request.caller.id
    tier = _tier(caller, ask, policy, upstream)
    if not tier:
        return None
    bill = Bill(tier, "draft", stream=bool(request.fields.stream))
    task = asyncio.create_task(_start(request, tier, policy, upstream, bill))
    waste = partial(upstream.waste.add, caller)
    return Draft(bill, task, lambda chosen, first: upstream.send(request, chosen, policy, first), waste)


def _tier(caller: str, ask: Ask, policy: Policy, upstream: Upstream) -> str:
    """The tier that starts, "" for none."""
    most, rules = policy.triage.waste, policy.triage.early
    if not (ask.draft or ask.early or rules):
        return ""
    thrifty = most is None or upstream.waste.within(caller, most.max, most.window)
    wanted = thrifty and ask.early is not None and _has_room(ask.early, 1, policy, upstream)
    if rules and upstream.early.may(rules.max_share, wanted=wanted):
        return ask.early or ""
    idle = policy.triage.speculate != "when_idle" or not ask.draft or _has_room(ask.draft, 2, policy, upstream)
    return ask.draft or "" if thrifty and idle else ""


def _has_room(tier: str, calls: int, policy: Policy, upstream: Upstream) -> bool:
    """Whether the tier has room for that many more calls. Routing has checked this against `max_inflight`; with
    `adaptive` limits fewer may be allowed at this moment, which is known only here."""
    if not policy.tiers[tier].limits.adaptive:
        return True
    state = upstream.states(policy)[tier]
    return state.inflight + calls <= IDLE_SHARE * state.places


async def _start(request: ChatRequest, tier: str, policy: Policy, upstream: Upstream, bill: Bill) -> Reply:
    """Starts one turn of the event loop later, so that the triage question is sent first and the answer shares its
    prefill; the other way round, the verdict would wait for both prefills."""
    await asyncio.sleep(0)
    return await upstream.attempt(request, tier, policy, bill)
