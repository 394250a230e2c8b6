"""Budgets by the calendar: by a clock that is set, in the memory's account and in the server's own scripts."""

import calendar
import time
from collections.abc import Iterator
from typing import Protocol

import pytest
from msgspec import structs
from valkey import Valkey

from gateway.store import Bound, Limits, Line, Money, Window
from gateway.store.account import Account
from gateway.store.scripts import ADMIT, SETTLE, Script
from gateway.store.window import MONTH, SET_TILL, end_of, length_of
from gateway.store.words import key_names, settled, wanted

SECOND = 1_000_000  # microseconds
COSTLY = Bound("pro", "flash", prompt=10, completion=90, money=1000, cheap=1000)
ENDS: list[tuple[Window, str]] = [
    ("month", "2026-02-01"),
    ("month", "2026-03-01"),
    ("month", "2027-01-01"),
    ("month", "2028-03-01"),  # after a 29th
    ("month", "2100-03-01"),  # after none
    (7 * 86_400.0, "2026-11-30"),  # a Monday
    (86_400.0, "2026-11-24"),
    (3600.0, "2026-11-24"),
]


def moment(day: str) -> int:
    return calendar.timegm(time.strptime(day, "%Y-%m-%d")) * SECOND


class Clocked(Protocol):
    """An account of a store at a time of one's choice. `ask`: verdict, microseconds to wait, and what is spent or
    held."""

    def ask(self, limits: Limits, now: int, lease: str) -> tuple[int, int, int]: ...
    def settle(self, now: int, lease: str, money: int) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.account = Account()

    def ask(self, limits: Limits, now: int, lease: str) -> tuple[int, int, int]:
        self.account.begin(limits, now)
        verdict, wait, cap = self.account.decide(limits, COSTLY, now)
        if not verdict:
            self.account.leases[lease] = self.account.hold(limits, COSTLY, cap)
        return verdict, wait, self.account.spent + self.account.money

    def settle(self, now: int, lease: str, money: int) -> None:
        self.account.advance(now)
        self.account.settle(lease, [Line("pro", "answer", False, 1, 0, 1, money)], False)


class OnServer:
    def __init__(self, client: Valkey) -> None:
        self.client = client

    def run(self, script: Script, now: int, word: bytes) -> list[int]:
        clock = b"{'%d', '%d'}" % divmod(now, SECOND)
        text, names = script.text.replace(b"redis.call('TIME')", clock), key_names("ann").names.all
        found: list[int] = self.client.execute_command("EVAL", text, 3, *names, word)  # type: ignore[no-untyped-call]
        return found

    def ask(self, limits: Limits, now: int, lease: str) -> tuple[int, int, int]:
        verdict, _, wait, _, money, *_ = self.run(ADMIT, now, wanted(limits, COSTLY, lease))
        return verdict, wait, money

    def settle(self, now: int, lease: str, money: int) -> None:
        self.run(SETTLE, now, settled(lease, [Line("pro", "answer", False, 1, 0, 1, money)]))


@pytest.fixture(params=["memory", "valkey"])
def clocked(request: pytest.FixtureRequest) -> Iterator[Clocked]:
    if request.param == "memory":
        yield InMemory()
        return
    with Valkey.from_url(request.getfixturevalue("valkey")) as client:
        yield OnServer(client)


@pytest.mark.parametrize(("window", "day"), ENDS)
def test_a_budget_holds_to_its_windows_last_microsecond_and_begins_anew_with_the_next(
    clocked: Clocked, window: Window, day: str
) -> None:
    end, limits = moment(day), Limits(1000, 1000, 600.0, money=Money(2500, window, degrade=False))
    assert clocked.ask(limits, end - 60 * SECOND, "one") == (0, 0, 1000)
    clocked.settle(end - 59 * SECOND, "one", 1400)
    assert clocked.ask(limits, end - 10 * SECOND, "two") == (0, 0, 2400)
    assert clocked.ask(limits, end - 10 * SECOND, "over") == (4, 10 * SECOND, 2400)
    assert clocked.ask(limits, end - 1, "over") == (4, 1, 2400)
    clocked.settle(end, "two", 300)
    assert clocked.ask(limits, end, "three") == (0, 0, 1300), "what is settled in the next window counts there"
    assert clocked.ask(limits, end + 1, "four") == (0, 0, 2300)
    verdict, wait, _ = clocked.ask(limits, end + 1, "over")
    assert (verdict, end + 1 + wait) == (4, end_of(length_of(window), end + 1))


def test_a_month_holds_from_its_first_day_to_its_last(clocked: Clocked) -> None:
    limits = Limits(1000, 1000, 600.0, money=Money(2600, "month", degrade=False))
    for at, day in enumerate(("2028-02-01", "2028-02-15", "2028-02-29")):
        clocked.ask(limits, moment(day), f"{at}")
        clocked.settle(moment(day), f"{at}", 800)
    assert clocked.ask(limits, moment("2028-02-29"), "over") == (4, 86_400 * SECOND, 2400)
    assert clocked.ask(limits, moment("2028-07-04"), "another") == (0, 0, 1000)


def test_a_limit_that_one_of_two_gateways_does_not_have_counts_on_for_the_other(clocked: Clocked) -> None:
    now, without = moment("2026-11-25"), Limits(1000, 1000, 600.0)
    budget = structs.replace(without, money=Money(3500, "month", degrade=False))
    tokens = structs.replace(without, tokens_per_minute=250)
    clocked.ask(budget, now, "one")
    clocked.settle(now, "one", 1400)
    assert clocked.ask(without, now, "two") == (0, 0, 2400)
    clocked.settle(now, "two", 1700)
    assert clocked.ask(budget, now, "over") == (4, 6 * 86_400 * SECOND, 3100)
    assert [clocked.ask(limits, now, f"{at}")[0] for at, limits in enumerate((tokens, without, tokens))] == [0, 0, 3]
    assert clocked.ask(budget, moment("2026-12-01"), "next") == (0, 0, 3000), "held by two, and its own"


def test_a_server_whose_clock_went_back_ends_a_window_that_would_last_too_long(valkey: str) -> None:
    with Valkey.from_url(valkey) as client:
        server, windows = OnServer(client), list[Window](["month", 86_400.0])
        for window in windows:
            limits = Limits(1000, 1000, 600.0, money=Money(2500, window, degrade=False))
            server.ask(limits, moment("2036-01-31"), "ahead")
            server.settle(moment("2036-01-31"), "ahead", 2500)
            assert server.ask(limits, moment("2036-01-31"), "over") == (4, 86_400 * SECOND, 2500)
            assert server.ask(limits, moment("2026-02-28"), "back")[2] == 0
            assert server.ask(limits, moment("2026-03-01") - SECOND, "next") == (0, 0, 1000)
            server.settle(moment("2026-03-01") - SECOND, "next", 2500)
            assert server.ask(limits, moment("2026-03-01") - 1, "over") == (4, 1, 2500)


def test_a_server_knows_all_months_of_a_century_and_more(valkey: str) -> None:
    days = [moment(f"{year}-{month:02}-01") for year in range(1971, 2135) for month in range(1, 13)]
    asked = [now for end in days for now in (end - 1, end)]
    text = b"local length, found = -1, {}\nfor _, now in ipairs(ARGV) do\nlocal till\nnow = tonumber(now)\n"
    text += SET_TILL + b"\nfound[#found + 1] = string.format('%.0f', till)\nend\nreturn found"
    with Valkey.from_url(valkey) as client:
        told = [int(end) for end in client.execute_command("EVAL", text, 0, *asked)]
    assert told == [end_of(MONTH, now) for now in asked]
    assert [end for end, now in zip(told, asked, strict=True) if end == now + 1] == days


def test_windows_of_a_length_begin_with_the_day_and_the_week() -> None:
    now = moment("2026-11-25") + 12345  # a Wednesday
    ends = [end_of(length_of(days * 86_400.0), now) for days in (1 / 24, 1, 7)]
    assert ends == [moment("2026-11-25") + 3600 * SECOND, moment("2026-11-26"), moment("2026-11-30")]
