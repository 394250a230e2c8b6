"""May this caller ask now?"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from gateway.policy import Policy
from gateway.pricing import bound, limits_of, lines, plan_of
from gateway.standing import OverLimit, budget_headers, limit_headers, stands, told
from gateway.store import Store
from gateway.types import ChatRequest, Headers, Reply, Standing


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
    plan = plan_of(caller, policy)
    limits = limits_of(plan, policy)
    most = bound(request, policy.reach(caller.plan, caller.own.may), policy)
    found = await store.admit(caller.id, limits, recall, most)
    if found.refused_by:
        raise OverLimit(told(found), found)
    standing = stands(found, plan)
    headers = limit_headers(found) + budget_headers(standing)
    return Admission(request, found.entry, standing, headers, policy, store, found.lease)
