"""May this caller ask now?"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from gateway.errors import RateLimited
from gateway.policy import Plan, Policy
from gateway.pricing import claim, lines, terms
from gateway.store import NANO, Admitted, Limits, Store
from gateway.types import ChatRequest, Headers, Reply, Standing

CODES = {"concurrency": "concurrency_limit_exceeded", "money": "insufficient_quota"}


class OverLimit(RateLimited):
    """A limit of the caller (`limit`) is used up; its headers tell the limits, too. More money comes with no retry."""

    def __init__(self, message: str, found: Admitted, limits: Limits) -> None:
        self.limit = found.refused_by or "requests"
        super().__init__(message, code=CODES.get(self.limit), retry_after=found.retry_after)
        self._limits = limit_headers(found, limits)
        if self.limit == "money":
            self.type, self.should_retry = "insufficient_quota", False

    def headers(self) -> Headers:
        return [*super().headers(), *self._limits]


@dataclass(slots=True)
class Admission:
    """A request that may go on; when the last of its holders is done, what it used takes the place of what it held.

    `entry` is what the cache held under the key that was looked up. `headers` are the caller's limits (x-ratelimit-*).
    The block that opened it is one holder; a reply that it keeps, and an answer on its way to several, are others.
    """

    request: ChatRequest
    entry: bytes | None
    standing: Standing
    headers: Headers
    policy: Policy
    store: Store
    lease: str | None
    holders: int = 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def keep(self, reply: Reply) -> Reply:
        """The reply holds the admission until it is closed, and tells the caller's limits."""
        reply.headers = [*reply.headers, *self.headers]
        return self._held(reply)

    async def through(self, make: Callable[[], Awaitable[Reply]]) -> Reply:
        """`make`'s reply, which holds the admission until it is closed: it may outlive the caller who asked first."""
        self.holders += 1
        try:
            return self._held(await make())
        finally:
            await self.close()

    def _held(self, reply: Reply) -> Reply:
        inner, leaving = reply.shut, [self.close]
        self.holders += 1

        async def shut() -> None:
            try:
                await inner()
            finally:
                if leaving:
                    await leaving.pop()()

        reply.shut = shut
        return reply

    async def close(self) -> None:
        """One holder is done. Safe in a task that is being cancelled: the last one settles in any case."""
        self.holders -= 1
        if self.holders > 0 or self.lease is None:
            return
        lease, self.lease = self.lease, None
        used, first = lines(self.request, self.policy), next(iter(self.policy.tiers))
        above = any(line.kind == "answer" and line.tier != first for line in used)
        await self.store.settle(self.request.caller.id, lease, used, above)


async def admit(request: ChatRequest, recall: bytes | None, policy: Policy, store: Store) -> Admission:
    """Counts the request, holds what it may use at most, looks `recall` up in the caller's cache: one round trip.

    A hit (`entry` is not None) holds nothing. Raises OverLimit.
    """
    caller = request.caller
    plan, limits = terms(caller, policy)
    claimed = claim(request, policy.reach(caller.plan, caller.own.may), policy)
    found = await store.admit(caller.id, limits, recall, claimed)
    if found.refused_by:
        raise OverLimit(told(found, limits), found, limits)
    standing = stands(found, plan)
    headers = limit_headers(found, limits) + budget_headers(standing)
    return Admission(request, found.entry, standing, headers, policy, store, found.lease)


def told(found: Admitted, limits: Limits) -> str:
    """What a refused caller is told."""
    if found.refused_by == "tokens":
        return f"Rate limit reached for tokens per minute: limit {limits.tokens_per_minute}."
    if found.refused_by == "concurrency":
        return f"Too many requests at the same time: limit {limits.concurrency}."
    if found.refused_by == "money":
        return "The budget of this API key does not cover what this request may cost; max_tokens bounds that."
    return f"Rate limit reached for requests per minute: limit {found.limit}."


def stands(found: Admitted, plan: Plan) -> Standing:
    budget = plan.budget
    if not budget:
        return Standing(capped=found.capped)
    used = min(1.0, found.money / (budget.usd * NANO))
    warned = "warn" if budget.warn is not None and used >= budget.warn else None
    return Standing(used, "flash_only" if found.capped == "budget" else warned, found.capped)


def budget_headers(standing: Standing) -> Headers:
    """x-budget tells what follows from the budget (warn, flash_only) once something does, and x-budget-used why."""
    if not standing.budget:
        return []
    return [(b"x-budget", standing.budget.encode()), (b"x-budget-used", b"%.3f" % standing.budget_used)]


def limit_headers(found: Admitted, limits: Limits) -> Headers:
    """x-ratelimit-{limit,remaining,reset}-requests, and -tokens where they are limited; reset is an OpenAI duration
    until the whole limit is free, if what is held is used."""
    headers = [
        (b"x-ratelimit-limit-requests", b"%d" % found.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % found.remaining),
        (b"x-ratelimit-reset-requests", duration(found.reset).encode()),
    ]
    most = limits.tokens_per_minute
    if most is None:
        return headers
    return [
        *headers,
        (b"x-ratelimit-limit-tokens", b"%d" % most),
        (b"x-ratelimit-remaining-tokens", b"%d" % max(0, most - found.tokens.used)),
        (b"x-ratelimit-reset-tokens", duration(found.tokens.reset).encode()),
    ]


def duration(seconds: float) -> str:
    """As OpenAI writes it, rounded up to a millisecond: "12ms", "1.5s", "6m0s", "1h0m0s"."""
    milliseconds = max(0, -int(-seconds * 1000 // 1))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    shown = f"{rest / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown
