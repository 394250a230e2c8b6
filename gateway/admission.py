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
from gateway.sessions import follow, key_of, recalling
from gateway.standing import OverLimit, budget_lines, gravest, limit_lines, refusal_text, stands
from gateway.store import ALL, Admitted, Kept, Limits, Line, Most, Store, Turn
from gateway.types import Caller, ChatRequest, Session, Standing


class Admission(msgspec.Struct, eq=False):
    """An admitted request. It reserves tokens and money until its last holder is done, or its whole answer is
    remembered; then what was used is booked.

    `entry` is the cached answer; where there is none, `turn` says which process is to make it. `limits`: the header
    lines x-ratelimit-* and x-budget-*. `session` is the key of its conversation in the store. `leases`: its leases by
    account, the caller's and that of all callers. Holders: the request, or the reply that takes its place (`keep`),
    and each block that enters it: one that makes the answer for others, who wait when that caller has left. Not
    `answers`: the verdict is what the caller gets, and pays for.
    """

    request: ChatRequest
    policy: Policy
    terms: Terms
    store: Store
    entry: bytes | None
    turn: Turn | None
    standing: Standing
    limits: bytes
    session: bytes | None
    leases: dict[str, str]
    answers: bool
    holders: int = 1

    def __enter__(self) -> Self:
        self.holders += 1
        return self

    def keep(self, reply: Reply) -> Reply:
        """`reply`, which holds the admission in the request's place, and gets the headers of the caller's limits."""
        reply.closed, reply.limits = self.close, self.limits
        return reply

    def updating_session(self, making: Coroutine[Any, Any, Reply]) -> Coroutine[Any, Any, Reply]:
        """The reply that `making` returns; the session of its conversation is updated."""
        return self._update_session(making, self.session) if self.session else making

    async def _update_session(self, making: Awaitable[Reply], session: bytes) -> Reply:
        return follow(await making, session, self.request, self.policy, self.store)

    def close(self, *_: object) -> None:
        """One holder is done; the last one settles."""
        self.holders -= 1
        if self.holders <= 0:
            self.settle()

    def settle(self, kept: Kept | None = None) -> None:
        """Books what was used, once, and remembers `kept` with it: at the end, or when the whole answer is there."""
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
    """Counts the request, reserves the most that it may use, looks `recall` up in the caller's cache and asks for its
    session: one round trip.

    A hit (`entry` is not None) reserves nothing. A request for a decision alone (not `answers`) reserves its prompt's
    tokens only and is not in the share, which it would dilute; its money is the answer's, so that a budget caps both.
    Raises OverLimit; Overloaded while the store does not answer and a limit may not be exceeded unseen.
    """
    caller = request.caller
    own_terms = terms(caller, policy)
    limits, most = wanted(request, own_terms, policy, answers)
    asking = store.admit(caller.id, limits, recall, most)
    session = key_of(request, policy) if policy.sessions else None
    remembered = recalling(request, session, store) if session else None
    if own_terms.together:
        both = {caller.id: asking, ALL: store.admit(ALL, own_terms.together, None, most)}
        own, all_ = await held(both, recall, store)
    else:
        own, all_ = await asking, None
    told = limit_lines(own)
    if own.verdict:
        raise OverLimit(refusal_text(own, "caller"), own, told)
    standing = stands(own, own_terms.plan.budget, "caller")
    leases = {caller.id: own.lease} if own.lease else {}
    if all_:
        if all_.verdict and own.entry is None:
            raise OverLimit(refusal_text(all_, "all"), all_, told)
        standing = gravest(standing, stands(all_, policy.budget, "all"))
        leases |= {ALL: all_.lease} if all_.lease else {}
    if standing.budget:
        told += budget_lines(standing)
    if remembered and own.entry is None:
        granted = {caller.id: own, ALL: all_} if all_ else {caller.id: own}
        standing = replace(standing, session=await met(remembered, granted, recall, store))
    turn = whose(recall, own) if recall else None
    leases = {} if own.entry else leases
    return Admission(request, policy, own_terms, store, own.entry, turn, standing, told, session, leases, answers)


def wanted(request: ChatRequest, own: Terms, policy: Policy, answers: bool) -> tuple[Limits, Most]:
    """The limits that apply to the request, and the most that it may use, as a function where only the store knows
    whether it is needed."""
    limits = own.limits
    if limits.share and not (answers and request.dialect.work != "count"):
        limits = own.undiluted
    if answers and not own.together:
        return limits, partial(bound, request, own.reach, policy)
    most = bound(request, own.reach, policy)  # two accounts need to know
    return limits, most if answers else replace(most, completion=0)


def whose(key: bytes, own: Admitted) -> Turn:
    """The turn to make the value of `key`, after an admission that found none."""
    if own.turn is None or own.lease is None:
        return Turn(key, secrets.token_bytes(8))  # the store did not say, so the lease is no name for it
    return Turn(key, own.lease.encode(), own.turn)


async def count(caller: Caller, policy: Policy, store: Store) -> None:
    """Counts a request that no model server is asked for. Raises OverLimit, Overloaded as `admit` does."""
    found = await store.admit(caller.id, terms(caller, policy).undiluted, None)
    if found.verdict:
        raise OverLimit(refusal_text(found, "caller"), found, limit_lines(found))
    if found.lease:
        store.settle(caller.id, found.lease)


async def held(asking: dict[str, Coroutine[Any, Any, Admitted]], recall: bytes | None, store: Store) -> list[Admitted]:
    """The answers of several accounts, asked in one write: all admit the request, or none reserves anything. What one
    reserved is given back when another refuses, or has the answer in its cache.
    """
    (first, own), *others = asking.items()
    # What the others ask goes out with what `own` asks.
    tasks = {account: asyncio.create_task(one) for account, one in others}
    found: dict[str, Admitted] = {}
    try:
        found[first] = await own
        for account, task in tasks.items():
            found[account] = await task
    except (Overloaded, asyncio.CancelledError):
        give_back(found, recall, store)
        for account in tasks.keys() - found.keys():
            tasks[account].add_done_callback(partial(unheard, account, store))
            tasks[account].cancel()
        raise
    if not all(one.lease for one in found.values()):
        for settled in give_back(found, recall, store):
            await settled
    return list(found.values())


async def met(
    remembered: Awaitable[Session | None], granted: dict[str, Admitted], recall: bytes | None, store: Store
) -> Session | None:
    """The session of a request that was admitted already: who leaves before it is known gives back what was granted."""
    try:
        return await remembered
    except asyncio.CancelledError:
        give_back(granted, recall, store)
        raise


def give_back(granted: dict[str, Admitted], recall: bytes | None, store: Store) -> list[Awaitable[None]]:
    """Settles admissions that lead to no answer, and ends the turn that came with one: at once, so that nobody can be
    cancelled in the middle of it. What is returned may be awaited."""
    leases = {account: one.lease for account, one in granted.items() if one.lease}
    for account, lease in leases.items():
        if recall and granted[account].turn == lease.encode():
            store.end_turn(account, recall, lease.encode())
    return [store.settle(account, lease) for account, lease in leases.items()]


def unheard(account: str, store: Store, asked: asyncio.Task[Admitted]) -> None:
    """An admission that nobody waits for any more has ended."""
    if not asked.cancelled() and not asked.exception():
        give_back({account: asked.result()}, None, store)
