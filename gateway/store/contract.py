"""What do all stores promise?

Limits of a caller:
    requests      GCRA at `requests_per_minute` (N) with a burst of N: in any t seconds at most N + N * t / 60 are
                  admitted, and at most N at once from idle. Time is the store's own clock, in whole microseconds.
    concurrency   a slot is a lease with a deadline: a holder that dies gives its slot back when the deadline passes.
    tokens        a bucket of `tokens_per_minute` that refills evenly. What a call may use at most (its claim) is held
                  from admission to settlement and does not drain meanwhile; settlement puts what was used in its
                  place. A claim above the whole limit is admitted when the bucket is idle.
    money         spent in this window plus what is held stays within the budget. Windows begin at multiples of their
                  length since 1970, UTC. When the claim at the dearest tier's price does not fit but the first tier's
                  does, and the budget degrades, the request is admitted `capped` by "budget".
    share         at most max * requests (rounded up) of a window's requests may be answered above the first tier; one
                  that would exceed it is admitted capped by "share". A request counts as above until it is settled.
    order         requests, then the cache, then concurrency, tokens, money, share. A hit counts as a request and takes
                  nothing else; a refusal consumes nothing.

Leases: what an admission holds has a deadline. Settling twice or late changes nothing; what a lease still holds when
its deadline passes is booked as an estimate, as used and as spent, and its slot returns.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

VALUE_LIMIT = 1 << 20  # bytes; a bigger value is not remembered
SLOT_RETRY = 1.0  # seconds; nobody knows when a slot is given back, so a refused caller is asked to try again soon
MINUTE = 60_000_000  # microseconds

OVER = b"over"  # stands in place of a claim's token when its holder made no value
NANO = 1_000_000_000  # money is counted in whole nano-dollars

State = Literal["memory", "ok", "down"]
RefusedBy = Literal["requests", "concurrency", "tokens", "money"]
CappedBy = Literal["budget", "share"]
Kind = Literal["answer", "triage", "draft"]
REFUSALS: tuple[RefusedBy | None, ...] = (None, "requests", "concurrency", "tokens", "money")  # as scripts number them
CAPS: tuple[CappedBy | None, ...] = (None, "budget", "share")


@dataclass(frozen=True, slots=True)
class Money:
    """At most `nano` dollars in a window of `seconds`; `degrade`: on the first tier rather than not at all."""

    nano: int
    seconds: float
    degrade: bool


@dataclass(frozen=True, slots=True)
class Portion:
    """At most the share `max` of the requests in a window of `seconds`."""

    max: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may do; None is no limit. `lease` is the seconds after which an unsettled admission returns."""

    requests_per_minute: int
    concurrency: int
    lease: float
    tokens_per_minute: int | None = None
    money: Money | None = None
    share: Portion | None = None

    @property
    def interval(self) -> int:
        """Microseconds that one request costs; rounded up, so that the rate is never above the declared one."""
        return -(-MINUTE // self.requests_per_minute)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a call may use at most: tokens, and nano-dollars on `tier`, the dearest one that it may reach.

    `cheap` is what it may cost on `first`, the first tier.
    """

    tier: str = ""
    first: str = ""
    prompt: int = 0
    completion: int = 0
    money: int = 0
    cheap: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the ledger: what calls to `tier` used, and what it cost in nano-dollars.

    `estimated`: no server said so. Only lines of kind "answer" count against limits; triage and draft (answers that
    were begun and thrown away) are the operator's overhead. `day`, UTC, is given by the store.
    """

    tier: str
    kind: Kind
    estimated: bool
    prompt: int
    cached: int
    completion: int
    money: int
    requests: int = 1
    caller: str = ""
    day: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """How full a limit is, this request included; `reset` (until it is empty) in seconds."""

    used: int
    reset: float


@dataclass(frozen=True, slots=True)
class Admitted:
    """The answer to one admission. `retry_after` and `reset` (until the whole limit is free again) are in seconds.

    `lease` names what to settle; it is None for a hit and for a refusal. `entry` is what the cache held. `capped`: the
    first tier only. `money` is spent and held in nano-dollars.
    """

    allowed: bool
    refused_by: RefusedBy | None
    retry_after: float
    limit: int
    remaining: int
    reset: float
    entry: bytes | None = None
    lease: str | None = None
    tokens: Level = Level(0, 0.0)
    money: int = 0
    capped: CappedBy | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """Whose turn it is to make a value: `holder`'s, a token or OVER; None when nobody can tell. `entry`: it is made."""

    holder: bytes | None
    entry: bytes | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key without its secret. `hash` is the keyed hash in hex; times are Unix seconds.

    `plan` None means the policy's default plan. Limits, `may` (tiers above the first) and `explain` (may ask for the
    whole decision), where given, go before what the plan says.
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
    may: tuple[str, ...] | None = None
    explain: bool | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """What a store decided, in its own units: microseconds until the request limit is idle again (`spent`), until the
    refused request may come again (`wait`), and tokens and money used and held.
    """

    verdict: int
    spent: int
    wait: int = 0
    tokens: int = 0
    money: int = 0
    capped: int = 0


def told(limits: Limits, found: Decided, entry: bytes | None = None, lease: str | None = None) -> Admitted:
    """A decision in a caller's terms."""
    limit, interval = limits.requests_per_minute, limits.interval
    waits = (0.0, (found.spent + interval - limit * interval) / 1e6, SLOT_RETRY, found.wait / 1e6, found.wait / 1e6)
    rate = limits.tokens_per_minute
    return Admitted(
        allowed=found.verdict == 0,
        refused_by=REFUSALS[found.verdict],
        retry_after=waits[found.verdict],
        limit=limit,
        remaining=limit - -(-found.spent // interval),
        reset=found.spent / 1e6,
        entry=entry,
        lease=lease,
        tokens=Level(found.tokens, found.tokens * 60 / rate if rate else 0.0),
        money=found.money,
        capped=CAPS[found.capped],
    )


NOTHING = Claim()


class Store(Protocol):
    """Memory that processes may share. Methods about keys raise Overloaded when the store does not answer."""

    @property
    def state(self) -> State:
        """ "memory": this process only; "ok": shared; "down": shared, but a part of it does not answer."""
        ...

    async def admit(self, caller: str, limits: Limits, recall: bytes | None, claim: Claim = NOTHING) -> Admitted:
        """Decide and look `recall` up in the caller's cache, in one round trip. Never raises for an outage."""
        ...

    async def settle(self, caller: str, lease: str, lines: Sequence[Line] = (), above: bool = False) -> None:
        """Give back what the lease holds and book `lines` in its place; `above`: answered above the first tier.

        It is done even if the awaiting task is cancelled or the store is down for a while.
        """
        ...

    async def ledger(self, caller: str | None = None) -> list[Line]:
        """What was booked, by caller, day, tier, kind and whether estimated. Raises Overloaded."""
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
