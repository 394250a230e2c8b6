"""What has one caller used, and what do its admissions hold?   What scripts.py does in Lua."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.store.contract import KEPT
from gateway.store.limits import MINUTE, Admitted, Bound, Kind, Limits, Line

DAY = 86_400  # seconds
Sums = list[int]  # requests, prompt, cached, completion, money
Heading = tuple[int, str, Kind, bool]  # day since 1970, tier, kind, estimated
Held = tuple[int, int, int]  # tokens, money, the window in which it counts as above the first tier or -1
FITS = (0, 0, 0)


@dataclass(slots=True)
class Account:
    """Times are microseconds of the store's clock, money is nano-dollars.

    `idle_at` is GCRA's theoretical arrival time. `level` is tokens * MINUTE at time `at`, draining by `rate` each
    microsecond. `spent` belongs to window number `window` of `span`; `asked` and `above` to window `share`. `limits`
    are those in force, of which a request costs `interval` of `most` microseconds. Lines are booked under day `today`,
    which ends at `midnight`, both by the machine's clock and in its units: days and seconds since 1970.
    """

    limits: Limits | None = None
    interval: int = 0
    most: int = 0
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
    today: int = 0
    midnight: int = 0
    ledger: dict[Heading, Sums] = field(default_factory=dict)

    def is_idle(self, now: int) -> bool:
        """Whether it may be forgotten."""
        return not (self.leases or self.ledger or self.level or self.spent or self.asked) and self.idle_at <= now

    def begin(self, limits: Limits, now: int) -> int:
        """The account as it stands under `limits`; microseconds until their request limit is idle."""
        if limits is not self.limits:
            self._turn(limits)
        self.advance(now)
        if limits.share and now // int(limits.share.seconds * 1e6) != self.share:
            self.share, self.asked, self.above = now // int(limits.share.seconds * 1e6), 0, 0
        queue = self.idle_at - now
        if queue <= 0:
            return 0
        if queue > self.most:
            return self.most
        return queue

    def _turn(self, limits: Limits) -> None:
        """Take the rate and the window over."""
        self.limits, self.interval = limits, limits.interval
        self.most = limits.requests_per_minute * self.interval
        self.rate = limits.tokens_per_minute or 0
        self.span = int(limits.money.seconds * 1e6) if limits.money else 0
        if not self.rate:
            self.level = 0
        if not self.span:
            self.spent = self.window = 0

    def advance(self, now: int) -> None:
        """Drain the bucket and turn the window."""
        if self.rate:
            self.level = max(0, self.level - max(0, now - self.at) * self.rate)
            self.at = now
        if self.span and now // self.span != self.window:
            self.spent, self.window = 0, now // self.span

    @property
    def used(self) -> int:
        """Tokens used and held, rounded up."""
        return self.tokens - (-self.level // MINUTE) if self.level else self.tokens

    def decide(self, limits: Limits, bound: Bound, now: int) -> tuple[int, int, int]:
        """What holds beyond the request limit, in this order: concurrency, tokens, money, share. Changes nothing.

        -> places in REFUSALS, microseconds to wait, place in CAPS
        """
        if len(self.leases) >= limits.concurrency:
            return 2, 0, 0
        rate, money, share = self.rate, limits.money, limits.share
        if rate:
            over = self.level + (self.tokens + min(bound.prompt + bound.completion, rate) - rate) * MINUTE
            if over > 0:
                return 3, -(-over // rate), 0
        if money and self.spent + self.money + bound.money > money.nano:
            if not money.degrade or self.spent + self.money + bound.cheap > money.nano:
                return 4, self.span - now % self.span, 0
            return 0, 0, 1
        if share and bound.tier != bound.first and self.above + 1 > math.ceil(share.max * (self.asked + 1)):
            return 0, 0, 2
        return FITS

    def hold(self, lease: str, limits: Limits, bound: Bound, cap: int) -> None:
        tokens, money, window = bound.prompt + bound.completion, bound.cheap if cap else bound.money, -1
        if limits.share:
            self.asked += 1
            if not cap and bound.tier != bound.first:
                self.above += 1
                window = self.share
        self.leases[lease] = tokens, money, window
        self.tokens += tokens
        self.money += money

    def refused(self, limits: Limits, spent: int, verdict: int, wait: int = 0) -> Admitted:
        return Admitted(limits, None, verdict, spent, wait, self.used, self.spent + self.money)

    def settle(self, lease: str, lines: Sequence[Line], above: bool, now: int) -> None:
        self.advance(now)
        held = self.leases.pop(lease, None)
        if held is None:
            return
        tokens, money, window = held
        self.tokens -= tokens
        self.money -= money
        if window == self.share and not above:
            self.above -= 1
        if lines and time.time() >= self.midnight:
            self.begin_day()
        for line in lines:
            self.book(line)

    def begin_day(self) -> None:
        """Drop what the ledger need not keep."""
        self.today = int(time.time()) // DAY
        self.midnight = (self.today + 1) * DAY
        self.ledger = {heading: sums for heading, sums in self.ledger.items() if heading[0] >= self.today - KEPT}

    def book(self, line: Line) -> None:
        heading = (self.today, line.tier, line.kind, line.estimated)
        sums = self.ledger.get(heading)
        if sums is None:
            sums = self.ledger[heading] = [0] * 5
        sums[0] += line.requests
        sums[1] += line.prompt
        sums[2] += line.cached
        sums[3] += line.completion
        sums[4] += line.money
        if line.kind == "answer":
            if self.rate:
                self.level += (line.prompt + line.completion) * MINUTE
            if self.span:
                self.spent += line.money

    def lines(self, caller: str) -> list[Line]:
        """The ledger as it stands."""
        if time.time() >= self.midnight:
            self.begin_day()
        return [
            Line(tier, kind, estimated, prompt, cached, completion, money, requests, caller, _date(day))
            for (day, tier, kind, estimated), (requests, prompt, cached, completion, money) in sorted(
                self.ledger.items()
            )
        ]


def _date(day: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(day * DAY))
