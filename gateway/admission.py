"""May this caller ask now?"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Self

from msgspec.structs import replace

from gateway.errors import Overloaded
from gateway.policy import Policy
from gateway.pricing import bound, limits_of_all, lines, terms
from gateway.sessions import follow, recalling
from gateway.standing import OverLimit, budget_headers, gravest, limit_headers, stands, told
from gateway.store import ALL, Admitted, Store, Turn
from gateway.types import Caller, ChatRequest, Headers, Reply, Standing


@dataclass(slots=True)
class Admission:
    """A request that may go on; when the last of its holders is done, what it used takes the place of what it held.

    `entry` is what the cache held under the key that was looked up; where it held nothing, `turn` says whose turn it is
    to make it. `headers` are the caller's limits (x-ratelimit-*). `leases` name what it holds, by account: the
    caller's, and that of all.
    The block that opened it is one holder; a reply that it keeps, and an answer on its way to several, are others.
    """

    request: ChatRequest
    entry: bytes | None
    turn: Turn | None
    standing: Standing
    headers: Headers
    policy: Policy
    store: Store
    leases: dict[str, str]
    holders: int = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep(self, reply: Reply) -> Reply:
        """The reply holds the admission until it is closed, and tells the caller's limits."""
        reply.headers = reply.headers + self.headers
        self.holders += 1
        return self._held(reply)

    async def through(self, make: Callable[[], Awaitable[Reply]]) -> Reply:
        """`make`'s reply, which holds the admission until it is closed: it may outlive the caller who asked first. Its
        conversation remembers who gave it."""
        self.holders += 1
        try:
            return self._held(follow(await make(), self.request, self.policy, self.store))
        except BaseException:
            self.close()
            raise

    def _held(self, reply: Reply) -> Reply:
        """One of the holders is the reply."""
        inner, leaving = reply.shut, [self.close]

        async def shut() -> None:
            try:
                await inner()
            finally:
                if leaving:
                    leaving.pop()()

        reply.shut = shut
        return reply

    def close(self) -> None:
        """One holder is done; the last one settles."""
        self.holders -= 1
        if self.holders > 0 or not self.leases:
            return
        leases, self.leases = self.leases, {}
        used, caller = lines(self.request, self.policy), self.request.caller
        first = self.policy.reach(caller.plan, caller.own.may)[0]
        above = any(line.kind == "answer" and line.tier != first for line in used)
        for account, lease in leases.items():
            self.store.settle(account, lease, used, above)


async def admit(
    request: ChatRequest, recall: bytes | None, policy: Policy, store: Store, *, answers: bool = True
) -> Admission:
    """Counts the request, holds what it may use at most, looks `recall` up in the caller's cache and asks for its
    session: one round trip.

    A hit (`entry` is not None) holds nothing. A request for a decision alone (not `answers`) holds no tokens and does
    not count in the share, which it could dilute; its money is held, so that budgets cap it as they would the answer.
    Raises OverLimit, Overloaded while the store does not answer and a limit is not kept without it.
    """
    caller = request.caller
    plan, limits = terms(caller, policy)
    limits_together = policy.once(limits_of_all)
    most = bound(request, policy.reach(caller.plan, caller.own.may), policy)
    if not answers:
        limits, most = replace(limits, share=None), replace(most, prompt=0, completion=0)
    asking, remembered = store.admit(caller.id, limits, recall, most), recalling(request, policy, store)
    if limits_together:
        own, all_ = await held({caller.id: asking, ALL: store.admit(ALL, limits_together, None, most)}, store)
    else:
        own, all_ = await asking, None
    headers, standing = limit_headers(own), stands(own, plan.budget, "caller")
    if own.refused_by:
        raise OverLimit(told(own, "caller"), own, headers)
    leases = {caller.id: own.lease} if own.lease else {}
    if all_:
        if all_.refused_by and own.entry is None:
            leave_turn(recall, own, caller, store)
            raise OverLimit(told(all_, "all"), all_, headers)
        standing = gravest(standing, stands(all_, policy.budget, "all"))
        leases |= {ALL: all_.lease} if all_.lease else {}
    headers += budget_headers(standing)
    if remembered and own.entry is None:
        standing = replace(standing, session=await remembered)
    turn = whose(recall, own) if recall else None
    return Admission(request, own.entry, turn, standing, headers, policy, store, {} if own.entry else leases)


def whose(key: bytes, own: Admitted) -> Turn:
    """Whose turn it is to make what is not remembered under `key`."""
    if own.turn is None or own.lease is None:
        return Turn(key, secrets.token_bytes(8))  # the store did not say, so the lease is no name for it
    return Turn(key, own.lease.encode(), own.turn)


def leave_turn(key: bytes | None, own: Admitted, caller: Caller, store: Store) -> None:
    """Ends what turn an admission took that leads to no answer."""
    if key and own.lease:
        store.end_turn(caller.id, key, own.lease.encode())


async def count(caller: Caller, policy: Policy, store: Store) -> None:
    """Counts a request that no model server is asked for. Raises OverLimit, Overloaded as `admit` does."""
    limits = replace(terms(caller, policy)[1], share=None)
    found = await store.admit(caller.id, limits, None)
    if found.refused_by:
        raise OverLimit(told(found, "caller"), found, limit_headers(found))
    if found.lease:
        store.settle(caller.id, found.lease)


async def held(asking: dict[str, Coroutine[Any, Any, Admitted]], store: Store) -> list[Admitted]:
    """The answers of these accounts, asked in one turn of the loop.

    Each holds something, or none does: what one holds is given back when another refuses, or has the answer already.
    """
    tasks = {account: asyncio.create_task(one) for account, one in asking.items()}
    try:
        await asyncio.wait(tasks.values())
        found = [task.result() for task in tasks.values()]
    except (Overloaded, asyncio.CancelledError):
        await give_back(tasks, store)
        raise
    if not all(one.lease for one in found):
        await give_back(tasks, store)
    return found


async def give_back(tasks: dict[str, asyncio.Task[Admitted]], store: Store) -> None:
    """Ends what still asks, and settles what was granted."""
    for task in tasks.values():
        task.cancel()
    await asyncio.wait(tasks.values())
    granted = {name: task.result() for name, task in tasks.items() if not task.cancelled() and not task.exception()}
    settling = [store.settle(name, found.lease) for name, found in granted.items() if found.lease]
    for settled in settling:
        await settled
