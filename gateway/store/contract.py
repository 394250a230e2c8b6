"""What do all stores promise?

Limits of a caller:
    requests      GCRA at `requests_per_minute` (N) with a burst of N: in any t seconds at most N + N * t / 60 are
                  admitted, and at most N at once from idle. Time is the store's own clock, in whole microseconds.
    concurrency   a slot is a lease with a deadline: a holder that dies gives its slot back when the deadline passes.
    tokens        a bucket of `tokens_per_minute` that refills evenly. What a call may use at most (its bound) is held
                  from admission to settlement and does not drain meanwhile; settlement puts what was used in its
                  place. A bound above the whole limit is admitted when the bucket is idle.
    money         spent in this window (window.py) plus what is held stays within the budget. When the bound at the
                  dearest tier's price does not fit but the first tier's does, and the budget degrades, the request is
                  admitted `capped` by "budget".
    share         at most max * requests (rounded up) of a window's requests may be answered above the first tier; one
                  that would exceed it is admitted capped by "share". A request counts as above until it is settled.
    order         requests, then the cache, then concurrency, tokens, money, share. A hit counts as a request and takes
                  nothing else; a refusal consumes nothing.

Leases: what an admission holds belongs to its process, which renews the lease until it settles it. A lease that was not
renewed for `Limits.lease` seconds, because its process died, stood still or could not reach the store, ends when the
account is next looked at: what it holds is booked as an estimate, as used and as spent, and its slot returns. Settling
after that changes nothing, nor does settling twice: the estimate, which is never below what was used, stands.

Outage: while the store does not answer, each process decides by itself, by what its limits come to then (outage.py).
What is settled meanwhile is pushed to the store when it answers again; a push whose reply was lost counts once.

Ledger: sums by day, UTC, for KEPT days.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import msgspec

from gateway.errors import UNREADABLE
from gateway.store.limits import Admitted, Bound, Limits, Line, Most

ALL = "@all"  # the account of all callers together, of which only money is limited; no caller has this id
SHADOW_ACCOUNT = "@shadow"  # the account of answers that are made to be compared; nor this one
KEPT = 400  # days that a line of the ledger is kept
VALUE_LIMIT = 1 << 20  # bytes; a bigger value is not remembered
HELD = 1.5  # seconds until a lock that is not renewed ends: its holder may have been killed
NOTHING = Bound()
OVER = b"over"  # in place of a token: the holder made no value, and those who wait should do without

State = Literal["memory", "ok", "down"]


# A lock, which has a time limit, is on making the value of a cache key: of several processes that are asked for one
# answer at once, its holder makes it and the others wait.
class Taken(msgspec.Struct, frozen=True):
    """The result of take_lock. `entry`: the value exists. Else `holder` has the lock: a token, or OVER; None: not
    known."""

    holder: bytes | None
    entry: bytes | None = None


class Lock(msgspec.Struct, frozen=True):
    """The lock for `key` as it stood at admission: `holder` has it (None: not known), `token` is who asked for it."""

    key: bytes
    token: bytes
    holder: bytes | None = None


class Kept(msgspec.Struct, frozen=True):
    """A value to be remembered under `key` for `ttl` seconds."""

    key: bytes
    value: bytes
    ttl: float


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key without its secret. `hash` is the keyed hash in hex; times are Unix seconds.

    `plan` None means the policy's default plan. Limits, `may` (tiers above the first) and `explain` (may ask for the
    whole decision), where given, go before what the plan says; `usd` and `window` (as a policy writes it) are of its
    budget. `old_hash` is that of the secret before, which counts until `old_until`.
    """

    id: str
    hash: str
    name: str
    plan: str | None
    created: float
    revoked: float | None = None
    expires: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd: float | None = None
    window: str | None = None
    may: tuple[str, ...] | None = None
    explain: bool | None = None
    old_hash: str | None = None
    old_until: float | None = None

    @classmethod
    def read(cls, key_id: str, value: bytes) -> "KeyRecord":
        """The record that a server keeps under the id. One that cannot be read lets nobody in, and is still a key:
        it is revoked, and named "unreadable"."""
        try:
            return msgspec.json.decode(value, type=cls)
        except UNREADABLE:
            return cls(key_id, "", "unreadable", None, 0.0, revoked=0.0)


class ServerSetup(NamedTuple):
    """What a server tells of itself. `ahead`: seconds that its clock is before ours. `evicts`: the policy by which it
    drops keys when its memory is full. `saves`: what it holds outlasts its end. `took`: seconds for an answer.
    `refuses`: why it does no work of ours, in its own words; None where it does.
    """

    version: str
    ahead: float
    evicts: str
    saves: bool
    took: float
    refuses: str | None = None


class Store(Protocol):
    """Memory that processes may share. Methods about keys raise Overloaded when the store does not answer."""

    @property
    def state(self) -> State:
        """ "memory": this process only; "ok": shared; "down": shared, but a part of it does not answer."""

    @property
    def processes(self) -> int:
        """How many processes shared the store when it last answered, this one included."""

    async def admit(self, caller: str, limits: Limits, recall: bytes | None, most: Most = NOTHING) -> Admitted:
        """Decide, and look `recall` up in the caller's cache, in one round trip. Where nothing is found, an admitted
        lease takes the lock for it, for HELD seconds, unless another has it (`take_lock`). `most` is what the call may
        use at most; a function must return the same each time.

        While the store does not answer, each limit does as `limits.outage` says. Raises Overloaded where one is denied.
        """

    async def look(self, caller: str, limits: Limits) -> Admitted:
        """How the caller stands with `limits`; takes nothing of them. Raises Overloaded."""

    def settle(
        self, caller: str, lease: str, lines: Sequence[Line] = (), above: bool = False, kept: Kept | None = None
    ) -> Awaitable[None]:
        """End the lease: book `lines` in place of what it reserved; `above`: a tier above the first answered. `kept` is
        remembered in the same step.

        Sent before all later commands of this process, even after an outage; need not be awaited. It is done when an
        await of it returns.
        """

    async def ledger(self, caller: str | None = None) -> list[Line]:
        """The sums that were booked, by caller, day, tier, kind and whether estimated. Raises Overloaded.

        None: those of every caller. ALL has the same sums over all callers, and is returned only when asked for.
        """

    async def recall(self, caller: str, key: bytes) -> bytes | None:
        """A remembered value; None when there is none, when it is too old, and when the store does not answer."""

    def remember(self, caller: str, key: bytes, value: bytes, ttl: float) -> Awaitable[None]:
        """Cache `value`, which begins with no zero byte, for `ttl` seconds; the lock for it ends, whosever it is.
        Nothing is kept above VALUE_LIMIT, or when the store does not answer.

        Sent before all later commands of this process; need not be awaited.
        """

    async def note(self, lines: Sequence[bytes], most: int) -> bool:
        """Add lines to the records' stream, of which about `most` stay, the newest. False while the store is down: none
        was sent. What it goes down over is lost; a store of one process has no stream."""

    def noted(self) -> AsyncIterator[list[bytes]]:
        """The lines of the records' stream, the oldest first, in steps. Raises Overloaded."""

    async def take_lock(self, caller: str, key: bytes, token: bytes, seconds: float) -> Taken:
        """Look `key` up; where there is no value and nobody else has the lock, take it for `seconds` from now, or renew
        it. Does not raise in an outage."""

    def free_lock(self, caller: str, key: bytes, token: bytes, over: float = 0.0) -> Awaitable[None]:
        """End the lock if `token` has it. With `over`, others then find OVER as its holder for so many seconds.

        Sent before all later commands of this process; need not be awaited.
        """

    def purge(self, caller: str | None = None) -> AsyncIterator[int]:
        """Delete cached values, of one caller or all; yields how many in each step. Raises Overloaded."""

    async def key(self, key_id: str) -> KeyRecord | None:
        """The record of an API key, revoked or not. Raises Overloaded."""

    async def put_key(self, record: KeyRecord, only_first: bool = False) -> bool:
        """Keep a key; with `only_first` only if the store has no key at all, decided atomically. True if kept."""

    async def list_keys(self) -> list[KeyRecord]:
        """All keys, the oldest first."""

    async def change_key(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord | None:
        """Keep what `change` makes of the record, and return it; None: there is no such key. Where others change it
        meanwhile `change` is called again, with what they made of it."""

    async def secret(self) -> bytes:
        """32 random bytes, the same for all processes on this store.

        Until a shared store has answered once, a stand-in of this process: ask each time, do not keep it.
        """

    @property
    def known_secret(self) -> bytes | None:
        """The same, where it is known without asking."""

    async def kept(self, name: str) -> bytes | None:
        """What was kept under `name`. Raises Overloaded."""

    async def keep(self, name: str, value: bytes) -> None:
        """Keep `value` for all processes until another one takes its place. Raises Overloaded."""

    async def ping(self) -> bool:
        """Whether the store answers."""

    async def close(self) -> None:
        """Sends what is still to be sent, and closes the connections."""
