"""What has one caller used, and what do its admissions reserve?   For the memory store; scripts.py is the same in
Lua."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.store.contract import KEPT
from gateway.store.limits import MINUTE, Admitted, Bound, Kind, Limits, Line, Most, known
from gateway.store.window import DAY, date_of, end_of, length_of

Sums = tuple[int, int, int, int, int]  # requests, prompt, cached, completion, money
Heading = tuple[int, str, Kind, bool]  # day since 1970, tier, kind, estimated
Reserved = tuple[int, int, int]  # tokens, money, the window in which it counts as above the first tier or -1
Ruling = tuple[int, int, int]  # place in REFUSALS, microseconds to wait, place in CAPS
FITS: Ruling = (0, 0, 0)
NONE: Sums = (0, 0, 0, 0, 0)


@dataclass(slots=True)
class Account:
    """Times are microseconds of the store's clock, money is nano-dollars.

    `counts`: some limit is of tokens, money or the share; else it need not be known how much a lease holds.
    `idle_at` is GCRA's theoretical arrival time. `level` is tokens * MINUTE at time `at`, draining by `rate` each
    microsecond. `spent` belongs to the window of `length` that ends at `till`; `asked` and `above` to window `share`
    of `share_span`. `limits` are those in force, of which a request costs `interval` of `most` microseconds. Lines are
    booked under day `today`, which ends at `midnight`, by the machine's clock: days and seconds since 1970.
    """

    limits: Limits | None = None
    interval: int = 0
    most: int = 0
    idle_at: int = 0
    leases: dict[str, Reserved | Most] = field(default_factory=dict)
    tokens: int = 0
    money: int = 0
    level: int = 0
    at: int = 0
    rate: int = 0
    spent: int = 0
    till: int = 0
    length: int = 0
    counts: bool = False
    asked: int = 0
    above: int = 0
    share: int = 0
    share_span: int = 0
    today: int = 0
    midnight: int = 0
    ledger: dict[Heading, Sums] = field(default_factory=dict)

    def is_idle(self, now: int) -> bool:
        """Whether it may be forgotten. What was used, and so counts against a limit, stands in the ledger."""
        return not (self.leases or self.ledger) and self.idle_at <= now

    def begin(self, limits: Limits, now: int) -> int:
        """Bring the account up to date under `limits`; returns the microseconds until their request limit is idle."""
        if limits is not self.limits:
            self._take_over(limits, now)
        if self.counts:
            self.advance(now)
        queue = self.idle_at - now
        if queue <= 0:
            return 0
        if queue > self.most:
            return self.most
        return queue

    def _take_over(self, limits: Limits, now: int) -> None:
        """Take over changed limits. Where they count for the first time, what leases hold already is counted; what was
        spent in a window that runs counts in one of another length, and goes on counting while no limit is set."""
        self.limits, self.interval = limits, limits.interval
        self.most = limits.requests_per_minute * self.interval
        self.rate = limits.tokens_per_minute or self.rate
        length = length_of(limits.money.window) if limits.money else self.length
        if length != self.length:
            if now >= self.till:
                self.spent = 0
            self.length, self.till = length, end_of(length, now)
        self.share_span = int(limits.share.seconds * 1e6) if limits.share else 0
        self.counts = bool(self.rate or self.length or self.share_span)
        for lease, held in self.leases.items() if self.counts else ():
            if not isinstance(held, tuple):
                self.leases[lease] = self._count(known(held))

    def advance(self, now: int) -> None:
        """Drain the bucket and turn the windows."""
        if self.level and now > self.at:
            drained = (now - self.at) * self.rate
            self.level = self.level - drained if drained < self.level else 0
        self.at = now
        if self.length and now >= self.till:
            self.spent, self.till = 0, end_of(self.length, now)
        if self.share_span and now // self.share_span != self.share:
            self.share, self.asked, self.above = now // self.share_span, 0, 0

    @property
    def used(self) -> int:
        """Tokens used and held, rounded up."""
        return self.tokens - (-self.level // MINUTE) if self.level else self.tokens

    def decide(self, limits: Limits, most: Bound, now: int) -> Ruling:
        """Decide by the limits of tokens, money and share. Changes nothing."""
        rate = limits.tokens_per_minute
        if rate:
            need = most.prompt + most.completion
            over = self.level + (self.tokens + need - rate if need < rate else self.tokens) * MINUTE
            if over > 0:
                return 3, -(-over // rate), 0
        return self._priced(limits, most, now)

    def _priced(self, limits: Limits, most: Bound, now: int) -> Ruling:
        """Money, then the share."""
        money, share = limits.money, limits.share
        if money and self.spent + self.money + most.money > money.nano:
            if not money.degrade or self.spent + self.money + most.cheap > money.nano:
                return 4, self.till - now, 0
            return 0, 0, 1
        if share and most.tier != most.first and self.above + 1 > math.ceil(share.max * (self.asked + 1)):
            return 0, 0, 2
        return FITS

    def hold(self, limits: Limits, most: Bound, cap: int) -> Reserved:
        """Count what a new lease reserves, and return it."""
        window = -1
        if limits.share:
            self.asked += 1
            if not cap and most.tier != most.first:
                self.above += 1
                window = self.share
        return self._count(most, cap, window)

    def _count(self, most: Bound, cap: int = 0, window: int = -1) -> Reserved:
        tokens, money = most.prompt + most.completion, most.cheap if cap else most.money
        self.tokens += tokens
        self.money += money
        return tokens, money, window

    def refused(self, limits: Limits, spent: int, verdict: int, wait: int = 0) -> Admitted:
        return Admitted(limits, None, verdict, spent, wait, self.used, self.spent + self.money)

    def settle(self, lease: str, lines: Sequence[Line], above: bool) -> None:
        held = self.leases.pop(lease, None)
        if held is None:
            return
        if isinstance(held, tuple):
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
        """A new day: drop lines older than KEPT days."""
        self.today = int(time.time()) // DAY
        self.midnight = (self.today + 1) * DAY
        self.ledger = {heading: sums for heading, sums in self.ledger.items() if heading[0] >= self.today - KEPT}

    def book(self, line: Line) -> None:
        heading = (self.today, line.tier, line.kind, line.estimated)
        requests, prompt, cached, completion, money = self.ledger.get(heading, NONE)
        self.ledger[heading] = (
            requests + line.requests,
            prompt + line.prompt,
            cached + line.cached,
            completion + line.completion,
            money + line.money,
        )
        if line.kind == "answer":
            if self.rate:
                self.level += (line.prompt + line.completion) * MINUTE
            if self.length:
                self.spent += line.money

    def lines(self, caller: str) -> list[Line]:
        """The ledger as it stands."""
        if time.time() >= self.midnight:
            self.begin_day()
        return [
            Line(tier, kind, estimated, prompt, cached, completion, money, requests, caller, date_of(day))
            for (day, tier, kind, estimated), (requests, prompt, cached, completion, money) in sorted(
                self.ledger.items()
            )
        ]
