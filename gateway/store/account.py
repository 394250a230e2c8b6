"""What has one caller used, and what do its admissions hold?   What scripts.py does in Lua."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from gateway.store.contract import KEPT
from gateway.store.limits import MINUTE, Bound, Decided, Kind, Limits, Line

DAY = 86_400_000_000  # microseconds
Sums = list[int]  # requests, prompt, cached, completion, money
Heading = tuple[str, str, Kind, bool]  # day, tier, kind, estimated


class Held(msgspec.Struct, frozen=True):
    """What an admission holds; `share` is the window in which it counts as above the first tier."""

    bound: Bound
    tier: str
    money: int
    share: int | None


@dataclass(slots=True)
class Account:
    """Times are microseconds of the store's clock, money is nano-dollars.

    `idle_at` is GCRA's theoretical arrival time. `level` is tokens * MINUTE at time `at`, draining by `rate` each
    microsecond. `spent` belongs to window number `window` of `span`; `asked` and `above` to window `share`.
    """

    idle_at: int = 0
    leases: dict[str, Held] = field(default_factory=dict)
    tokens: int = 0
    money: int = 0
    level: int = 0
    at: int = 0
    rate: int = 0
    spent: int = 0
    window: int = 0
    span: int = 0
    asked: int = 0
    above: int = 0
    share: int = 0
    day: int = 0
    ledger: dict[Heading, Sums] = field(default_factory=dict)

    def is_idle(self, now: int) -> bool:
        """Whether it may be forgotten."""
        return not (self.leases or self.ledger or self.level or self.spent or self.asked) and self.idle_at <= now

    def advance(self, now: int) -> None:
        """Drain the bucket, turn the window, and drop what the ledger need not keep."""
        self.level = max(0, self.level - max(0, now - self.at) * self.rate) if self.rate else 0
        self.at = now
        if not self.span or now // self.span != self.window:
            self.spent, self.window = 0, now // self.span if self.span else 0
        if now // DAY != self.day:
            self.day = now // DAY
            oldest = _date(self.day - KEPT)
            self.ledger = {heading: sums for heading, sums in self.ledger.items() if heading[0] >= oldest}

    @property
    def used(self) -> int:
        """Tokens used and held, rounded up."""
        return -(-self.level // MINUTE) + self.tokens

    def decide(self, limits: Limits, bound: Bound, now: int, spent: int) -> Decided:
        """What holds beyond the request limit, of which `spent` is taken: concurrency, tokens, money, share. Changes
        nothing."""
        used = self.level + self.tokens * MINUTE
        if len(self.leases) >= limits.concurrency:
            return Decided(2, spent, 0, self.used, self.spent + self.money)
        rate = limits.tokens_per_minute or 0
        need = min(bound.tokens, rate) * MINUTE
        if rate and used + need > rate * MINUTE:
            wait = -(-(used + need - rate * MINUTE) // rate)
            return Decided(3, spent, wait, self.used, self.spent + self.money)
        return self._priced(limits, bound, now, Decided(0, spent, 0, self.used, self.spent + self.money))

    def _priced(self, limits: Limits, bound: Bound, now: int, found: Decided) -> Decided:
        """Money, then the share: `found` with a cap, or a refusal."""
        money, capped = limits.money, 0
        if money and found.money + bound.money > money.nano:
            capped = 1
            if not money.degrade or found.money + bound.cheap > money.nano:
                return Decided(4, found.spent, self.span - now % self.span, found.tokens, found.money)
        if limits.share and not capped and bound.tier != bound.first:
            room = math.ceil(limits.share.max * (self.asked + 1))
            capped = 0 if self.above + 1 <= room else 2
        return Decided(0, found.spent, 0, found.tokens, found.money, capped)

    def queue(self, limits: Limits, now: int) -> int:
        """Microseconds until the request limit is idle."""
        return min(max(self.idle_at - now, 0), limits.requests_per_minute * limits.interval)

    def turn(self, limits: Limits, now: int) -> None:
        """Take the windows and the rate over from the limits in force."""
        self.rate, self.span = limits.tokens_per_minute or 0, int(limits.money.seconds * 1e6) if limits.money else 0
        if limits.share and now // int(limits.share.seconds * 1e6) != self.share:
            self.share, self.asked, self.above = now // int(limits.share.seconds * 1e6), 0, 0

    def hold(self, lease: str, bound: Bound, limits: Limits, capped: int) -> None:
        above = limits.share is not None and not capped and bound.tier != bound.first
        tier, money = (bound.first, bound.cheap) if capped else (bound.tier, bound.money)
        self.leases[lease] = Held(bound, tier, money, self.share if above else None)
        self.tokens += bound.tokens
        self.money += money
        if limits.share:
            self.asked += 1
            self.above += above

    def settle(self, lease: str, lines: Sequence[Line], above: bool) -> None:
        held = self.leases.pop(lease, None)
        if held is None:
            return
        self.tokens -= held.bound.tokens
        self.money -= held.money
        if held.share == self.share and not above:
            self.above -= 1
        for line in lines:
            self.book(line)

    def book(self, line: Line) -> None:
        today = _date(int(time.time()) // 86_400)
        sums = self.ledger.setdefault((today, line.tier, line.kind, line.estimated), [0] * 5)
        for at, count in enumerate((line.requests, line.prompt, line.cached, line.completion, line.money)):
            sums[at] += count
        if line.kind == "answer":
            self.level += (line.prompt + line.completion) * MINUTE if self.rate else 0
            self.spent += line.money if self.span else 0

    def lines(self, caller: str) -> list[Line]:
        """The ledger as it stands."""
        return [
            Line(tier, kind, estimated, prompt, cached, completion, money, requests, caller, day)
            for (day, tier, kind, estimated), (requests, prompt, cached, completion, money) in sorted(
                self.ledger.items()
            )
        ]


@lru_cache(maxsize=4)  # the C library looks for a time zone's file each time
def _date(day: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(day * 86_400))
