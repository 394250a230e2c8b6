"""What may a caller do, and what was decided?   The values that limits are told in."""

from typing import Literal, NamedTuple

import msgspec

SLOT_RETRY = 1.0  # seconds; nobody knows when a slot is given back, so a refused caller is asked to try again soon
MINUTE = 60_000_000  # microseconds
NANO = 1_000_000_000  # money is counted in whole nano-dollars
UNLIMITED = MINUTE  # requests a minute: one each microsecond

RefusedBy = Literal["requests", "concurrency", "tokens", "money"]
CappedBy = Literal["budget", "share"]
Kind = Literal["answer", "triage", "draft"]
Mode = Literal["deny", "local", "allow"]
REFUSALS: tuple[RefusedBy | None, ...] = (None, "requests", "concurrency", "tokens", "money")  # as scripts number them
CAPS: tuple[CappedBy | None, ...] = (None, "budget", "share")


class Money(msgspec.Struct, frozen=True):
    """At most `nano` dollars in a window of `seconds`; `degrade`: on the first tier rather than not at all."""

    nano: int
    seconds: float
    degrade: bool


class Portion(msgspec.Struct, frozen=True):
    """At most the share `max` of the requests in a window of `seconds`."""

    max: float
    seconds: float


class Outage(msgspec.Struct, frozen=True):
    """What becomes of each limit while the store does not answer (gateway/store/outage.py)."""

    requests: Mode = "local"
    concurrency: Mode = "local"
    tokens: Mode = "local"
    money: Mode = "deny"
    share: Mode = "local"


class Limits(msgspec.Struct, frozen=True):
    """What one caller may do; None is no limit. `lease` is the seconds for which what is held outlives its process."""

    requests_per_minute: int
    concurrency: int
    lease: float
    tokens_per_minute: int | None = None
    money: Money | None = None
    share: Portion | None = None
    outage: Outage = Outage()

    @property
    def interval(self) -> int:
        """Microseconds that one request costs; rounded up, so that the rate is never above the declared one."""
        return -(-MINUTE // self.requests_per_minute)


class Bound(msgspec.Struct, frozen=True):
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


class Line(msgspec.Struct, frozen=True):
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


class Level(NamedTuple):
    """How full a limit is, this request included; `reset` (until it is empty) in seconds."""

    used: int
    reset: float


class Admitted(NamedTuple):
    """The answer to one admission. `retry_after` and `reset` (until the whole limit is free again) are in seconds.

    `lease` names what to settle; it is None for a hit and for a refusal. `entry` is what the cache held; where it held
    nothing, `turn` says whose turn it is to make it, this lease's or another's; None when nobody can tell. `capped`:
    the first tier only. `money` is spent and held in nano-dollars. `limits` are those that were kept: in an outage
    others than were asked for.
    """

    allowed: bool
    refused_by: RefusedBy | None
    retry_after: float
    limits: Limits
    remaining: int
    reset: float
    entry: bytes | None = None
    lease: str | None = None
    tokens: Level = Level(0, 0.0)
    money: int = 0
    capped: CappedBy | None = None
    turn: bytes | None = None


class Decided(NamedTuple):
    """What a store decided, in its own units: microseconds until the request limit is idle again (`spent`), until the
    refused request may come again (`wait`), and tokens and money used and held.
    """

    verdict: int
    spent: int
    wait: int = 0
    tokens: int = 0
    money: int = 0
    capped: int = 0


def told(
    limits: Limits, found: Decided, entry: bytes | None = None, lease: str | None = None, turn: bytes | None = None
) -> Admitted:
    """A decision in a caller's terms."""
    limit, interval, rate = limits.requests_per_minute, limits.interval, limits.tokens_per_minute
    wait = 0.0
    if found.verdict:
        over = found.spent + interval - limit * interval
        wait = (over / 1e6, SLOT_RETRY, found.wait / 1e6, found.wait / 1e6)[found.verdict - 1]
    return Admitted(
        found.verdict == 0,
        REFUSALS[found.verdict],
        wait,
        limits,
        limit - -(-found.spent // interval),
        found.spent / 1e6,
        entry,
        lease,
        Level(found.tokens, found.tokens * 60 / rate if rate else 0.0),
        found.money,
        CAPS[found.capped],
        turn,
    )


NOTHING = Bound()
