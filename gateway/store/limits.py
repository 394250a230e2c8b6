"""What may a caller do, and what was decided?   The values that limits are told in."""

from collections.abc import Callable
from typing import Literal

import msgspec

from gateway.store.window import Window

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
    """At most `nano` dollars in a window; `degrade`: on the first tier rather than not at all."""

    nano: int
    window: Window
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


class Limits(msgspec.Struct, frozen=True, cache_hash=True):
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
    """The most that a call may use: tokens, and nano-dollars on `tier`, the dearest one that it may reach.

    `cheap` is what it may cost on `first`, the first tier.
    """

    tier: str = ""
    first: str = ""
    prompt: int = 0
    completion: int = 0
    money: int = 0
    cheap: int = 0


Most = Bound | Callable[[], Bound]  # a function is called only where the bound is needed, as it takes time


def known(most: Most) -> Bound:
    return most() if callable(most) else most


class Line(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A line of the ledger: what calls to `tier` used, and what it cost in nano-dollars. SETTLE is told it as an array.

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


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """The answer to one admission, in the store's own units; the properties turn them into those of callers.

    `limits` are those that were applied: in an outage not the ones asked for. `lease` is what to settle, None for a hit
    and for a refusal. `verdict` is an index of REFUSALS, 0 for none, `cap` one of CAPS: admitted, but for the first
    tier only. `spent`: microseconds until the request limit is idle again; `wait`: until the request may come again,
    where tokens or money refused it. `tokens` and `money` (nano-dollars): used and reserved. `entry`: the cached value;
    where there is none, `lock` is the token that has the lock to make it, this lease's or another's, None: not known.
    """

    limits: Limits
    lease: str | None
    verdict: int
    spent: int
    wait: int = 0
    tokens: int = 0
    money: int = 0
    cap: int = 0
    entry: bytes | None = None
    lock: bytes | None = None

    @property
    def allowed(self) -> bool:
        return self.verdict == 0

    @property
    def refused_by(self) -> RefusedBy | None:
        return REFUSALS[self.verdict]

    @property
    def capped(self) -> CappedBy | None:
        return CAPS[self.cap]

    @property
    def retry_after(self) -> float:
        """Seconds until a refused request may come again."""
        interval = self.limits.interval
        over = self.spent + interval - self.limits.requests_per_minute * interval
        return (0.0, over / 1e6, SLOT_RETRY, self.wait / 1e6, self.wait / 1e6)[self.verdict]

    @property
    def remaining(self) -> int:
        """Requests that may come at once."""
        limit = self.limits.requests_per_minute
        return limit + -self.spent // -(-MINUTE // limit)

    @property
    def tokens_spent(self) -> int:
        """Microseconds until the token limit is idle again, if what is held is used."""
        return -(-self.tokens * MINUTE // (self.limits.tokens_per_minute or UNLIMITED))
