"""What do all stores promise?

Limits of a caller:
    requests      GCRA at `requests_per_minute` (N) with a burst of N: in any t seconds at most N + N * t / 60 are
                  admitted, and at most N at once from idle. Time is the store's own clock, in whole microseconds.
    concurrency   a slot is a lease with a deadline: a holder that dies gives its slot back when the deadline passes.
    order         requests, then the cache, then concurrency. A hit counts as a request and takes no slot; a refusal
                  consumes nothing.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

VALUE_LIMIT = 1 << 20  # bytes; a bigger value is not remembered
SLOT_RETRY = 1.0  # seconds; nobody knows when a slot is given back, so a refused caller is asked to try again soon
MINUTE = 60_000_000  # microseconds

OVER = b"over"  # stands in place of a claim's token when its holder made no value

State = Literal["memory", "ok", "down"]
RefusedBy = Literal["requests", "concurrency"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may do. `lease` is the seconds after which an unreleased slot returns."""

    requests_per_minute: int
    concurrency: int
    lease: float

    @property
    def interval(self) -> int:
        """Microseconds that one request costs; rounded up, so that the rate is never above the declared one."""
        return -(-MINUTE // self.requests_per_minute)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The answer to one admission. `retry_after` and `reset` (until the whole limit is free again) are in seconds.

    `lease` names the slot to release; it is None for a hit and for a refusal. `entry` is what the cache held.
    """

    allowed: bool
    refused_by: RefusedBy | None
    retry_after: float
    limit: int
    remaining: int
    reset: float
    entry: bytes | None = None
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """Whose turn it is to make a value: `holder`'s, a token or OVER; None when nobody can tell. `entry`: it is made."""

    holder: bytes | None
    entry: bytes | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key without its secret. `hash` is the keyed hash in hex; times are Unix seconds.

    `plan` None means the policy's default plan.
    """

    id: str
    hash: str
    name: str
    plan: str | None
    created: float
    revoked: float | None = None


def allowed(limits: Limits, spent: int, entry: bytes | None, lease: str | None) -> Admitted:
    """`spent`: microseconds until the caller is idle again, this request included."""
    remaining = limits.requests_per_minute - -(-spent // limits.interval)
    return Admitted(True, None, 0.0, limits.requests_per_minute, remaining, spent / 1e6, entry, lease)


def refused(limits: Limits, spent: int, by: RefusedBy) -> Admitted:
    """`spent`: microseconds until the caller is idle again; this request consumed nothing."""
    limit, interval = limits.requests_per_minute, limits.interval
    wait = SLOT_RETRY if by == "concurrency" else (spent + interval - limit * interval) / 1e6
    return Admitted(False, by, wait, limit, limit - -(-spent // interval), spent / 1e6)


class Store(Protocol):
    """Memory that processes may share. Methods about keys raise Overloaded when the store does not answer."""

    @property
    def state(self) -> State:
        """ "memory": this process only; "ok": shared; "down": shared, but a part of it does not answer."""
        ...

    async def admit(self, caller: str, limits: Limits, recall: bytes | None) -> Admitted:
        """Decide and look `recall` up in the caller's cache, in one round trip. Never raises for an outage."""
        ...

    async def release(self, caller: str, lease: str) -> None:
        """Give a slot back; it comes back even if the awaiting task is cancelled or the store is down for a while."""
        ...

    async def recall(self, caller: str, key: bytes) -> bytes | None:
        """A remembered value; None when there is none, when it is too old, and when the store does not answer."""
        ...

    async def remember(self, caller: str, key: bytes, value: bytes, ttl: float) -> None:
        """Keep `value` for `ttl` seconds; nothing is kept above VALUE_LIMIT or when the store does not answer."""
        ...

    async def claim(self, caller: str, key: bytes, token: bytes, seconds: float) -> Claimed:
        """Look `key` up and, where nothing is remembered and nobody else's claim stands, claim for `seconds` from now
        to be the one who makes it; who claims again goes on. Never raises for an outage."""
        ...

    async def unclaim(self, caller: str, key: bytes, token: bytes, over: float = 0.0) -> None:
        """End the claim if it is this token's; for `over` seconds others see OVER: nobody makes the value for them."""
        ...

    def purge(self, caller: str | None = None) -> AsyncIterator[int]:
        """Forget what is remembered, for one caller or all: how many values in each step. Raises Overloaded."""
        ...

    async def key(self, key_id: str) -> KeyRecord | None: ...

    async def put_key(self, record: KeyRecord, only_first: bool = False) -> bool:
        """Keep a key; with `only_first` only if the store has no key at all, decided atomically. True if kept."""
        ...

    async def list_keys(self) -> list[KeyRecord]:
        """All keys, the oldest first."""
        ...

    async def revoke_key(self, key_id: str) -> bool:
        """False when no such key exists. Revoking twice keeps the first time."""
        ...

    async def secret(self) -> bytes:
        """32 random bytes, the same for all processes on this store.

        While a shared store has never answered, a stand-in of this process; ask each time, do not keep it.
        """
        ...

    async def ping(self) -> bool: ...

    async def close(self) -> None: ...
