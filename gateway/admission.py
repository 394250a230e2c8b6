"""May this caller ask now?   Limits, budget and cache in one round trip to the store."""

import asyncio
import secrets
from collections.abc import Awaitable, Coroutine
from functools import partial
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from gateway.errors import Overloaded
from gateway.policy import Policy
from gateway.pricing import Terms, bound, lines, terms
from gateway.reply import Reply
from gateway.sessions import follow, recalling
from gateway.standing import OverLimit, budget_lines, gravest, limit_lines, refusal_text, standing_of
from gateway.store import ALL, Admitted, Kept, Limits, Line, Lock, Most, Store
from gateway.turns import SessionKeys, session_keys
from gateway.types import Caller, ChatRequest, Session, Standing


class Admission(msgspec.Struct, eq=False):
    """An admitted request. It reserves tokens and money until its last holder is done, or until its complete answer is
    cached; then what was really used is booked.

    Holders are the request, then the reply that takes its place (`keep`), and each block that enters the admission as a
    context: the one that makes the answer, which other callers may still wait for when this caller has left.

    `entry` is the cached answer; where there is none, `lock` says which process is to make it. `limits`: the header
    lines x-ratelimit-* and x-budget-*. `session`: the keys of its conversation in the store. `leases`: its
    reservations by account, the caller's and that of all callers. `answers` is False where the caller asked for the
    decision alone: the triage call is then what it pays for.
    """

    request: ChatRequest
    policy: Policy
    terms: Terms
    store: Store
    entry: bytes | None
    lock: Lock | None
    standing: Standing
    limits: bytes
    session: SessionKeys | None
    leases: dict[str, str]
    answers: bool
    holders: int = 1

    def __enter__(self) -> Self:
        self.holders += 1
        return self

    def keep(self, reply: Reply) -> Reply:
        """`reply`, which from here on holds the admission in place of the request and carries its limit headers."""
        reply.closed, reply.limits = self.close, self.limits
        return reply

    def updating_session(self, making: Coroutine[Any, Any, Reply]) -> Coroutine[Any, Any, Reply]:
        """The reply that `making` returns; the session of its conversation is updated."""
        return self._update_session(making, self.session) if self.session else making

    async def _update_session(self, making: Awaitable[Reply], session: SessionKeys) -> Reply:
        return follow(await making, session, self.request, self.policy, self.store)

    def close(self, *_: object) -> None:
        """One holder is done. The last one settles."""
        self.holders -= 1
        if self.holders <= 0:
            self.settle()

    def settle(self, kept: Kept | None = None) -> None:
        """Books what was used, and caches the answer `kept` in the same step. Only the first call counts."""
        leases, self.leases = self.leases, {}
        if not leases:
            return
        used = lines(self.request, self.policy)
        above = self.terms.limits.share is not None and answered_above(self.terms.reach[0], used)
        if not self.answers:
            used = [replace(line, kind="answer") for line in used]
        self.request.costs.extend(used)
        for account, lease in leases.items():
            self.store.settle(account, lease, used, above, None if account == ALL else kept)

    __exit__ = close


def answered_above(first: str, used: list[Line]) -> bool:
    """Whether a tier above the first one answered."""
    return any(line.kind == "answer" and line.tier != first for line in used)


async def admit(
    request: ChatRequest, recall: bytes | None, policy: Policy, store: Store, *, answers: bool = True
) -> Admission:
    """Counts the request, reserves the most that it may use, looks up the key `recall` in the caller's cache and reads
    the session of its conversation, all in one round trip to the store.

    A hit (`entry` is not None) reserves nothing. A request for a decision alone (not `answers`) reserves the tokens of
    its prompt only, but the money of an answer, so that a budget caps its route as it would the answer's; it does not
    count in `pro_share`, which it would dilute. Raises OverLimit; and Overloaded where the store does not answer and
    the policy denies requests whose limits cannot be checked.
    """
    caller = request.caller
    own_terms = terms(caller, policy)
    limits, most = requirements(request, own_terms, policy, answers)
    asking = store.admit(caller.id, limits, recall, most)
    session = session_keys(request, policy) if policy.sessions else None
    remembered = recalling(request, session, store) if session else None
    if own_terms.together:
        both = {caller.id: asking, ALL: store.admit(ALL, own_terms.together, None, most)}
        own, all_ = await admit_all(both, recall, store)
    else:
        own, all_ = await asking, None
    told = limit_lines(own)
    if own.verdict:
        raise OverLimit(refusal_text(own, "caller"), own, told)
    standing = standing_of(own, own_terms.plan.budget, "caller")
    leases = {caller.id: own.lease} if own.lease else {}
    if all_:
        if all_.verdict and own.entry is None:
            raise OverLimit(refusal_text(all_, "all"), all_, told)
        standing = gravest(standing, standing_of(all_, policy.budget, "all"))
        leases |= {ALL: all_.lease} if all_.lease else {}
    if standing.budget:
        told += budget_lines(standing)
    if remembered and own.entry is None:
        granted = {caller.id: own, ALL: all_} if all_ else {caller.id: own}
        standing = replace(standing, session=await session_of(remembered, granted, recall, store))
    lock = lock_of(recall, own) if recall else None
    leases = {} if own.entry else leases
    return Admission(request, policy, own_terms, store, own.entry, lock, standing, told, session, leases, answers)


def requirements(request: ChatRequest, own: Terms, policy: Policy, answers: bool) -> tuple[Limits, Most]:
    """The limits that apply to the request, and the most that it may use: as a function where the store may not need
    it, as on a hit."""
    limits = own.limits
    if limits.share and not (answers and request.dialect.work != "count"):
        limits = own.undiluted
    if answers and not own.together:
        return limits, partial(bound, request, own.reach, policy)
    most = bound(request, own.reach, policy)  # two accounts need to know
    return limits, most if answers else replace(most, completion=0)


def lock_of(key: bytes, own: Admitted) -> Lock:
    """Who is to make the value of `key`, after an admission that did not find it."""
    if own.lock is None or own.lease is None:
        return Lock(key, secrets.token_bytes(8))  # the store did not say, so there is no lease to name it by
    return Lock(key, own.lease.encode(), own.lock)


async def count(caller: Caller, policy: Policy, store: Store) -> None:
    """Counts a request that needs no model server. Raises OverLimit, Overloaded as `admit` does."""
    found = await store.admit(caller.id, terms(caller, policy).undiluted, None)
    if found.verdict:
        raise OverLimit(refusal_text(found, "caller"), found, limit_lines(found))
    if found.lease:
        store.settle(caller.id, found.lease)


async def admit_all(
    asking: dict[str, Coroutine[Any, Any, Admitted]], recall: bytes | None, store: Store
) -> list[Admitted]:
    """Asks several accounts in one write to the store. Either all admit the request or none keeps a reservation: what
    one reserved is given back when another refuses, or when the answer is cached.
    """
    (first, own), *others = asking.items()
    # A task starts when `own` is awaited, so their commands leave in the same write.
    tasks = {account: asyncio.create_task(one) for account, one in others}
    found: dict[str, Admitted] = {}
    try:
        found[first] = await own
        for account, task in tasks.items():
            found[account] = await task
    except (Overloaded, asyncio.CancelledError):
        give_back(found, recall, store)
        for account in tasks.keys() - found.keys():
            tasks[account].add_done_callback(partial(give_back_result, account, store))
            tasks[account].cancel()
        raise
    if not all(one.lease for one in found.values()):
        for settled in give_back(found, recall, store):
            await settled
    return list(found.values())


async def session_of(
    remembered: Awaitable[Session | None], granted: dict[str, Admitted], recall: bytes | None, store: Store
) -> Session | None:
    """The session of an admitted request; if the caller leaves before it is known, what was granted is given back."""
    try:
        return await remembered
    except asyncio.CancelledError:
        give_back(granted, recall, store)
        raise


def give_back(granted: dict[str, Admitted], recall: bytes | None, store: Store) -> list[Awaitable[None]]:
    """Releases admissions that lead to no answer, and the lock that came with one. The commands are sent before this
    returns, so that a cancellation cannot interrupt it; the results may be awaited."""
    leases = {account: one.lease for account, one in granted.items() if one.lease}
    for account, lease in leases.items():
        if recall and granted[account].lock == lease.encode():
            store.free_lock(account, recall, lease.encode())
    return [store.settle(account, lease) for account, lease in leases.items()]


def give_back_result(account: str, store: Store, asked: asyncio.Task[Admitted]) -> None:
    """Gives back what an admission reserved that nobody waits for any more."""
    if not asked.cancelled() and not asked.exception():
        give_back({account: asked.result()}, None, store)
