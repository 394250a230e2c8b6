"""Tokens, money and shares: held before a call, settled after it. One contract, two stores."""

import asyncio
import math
import random
import struct
import time

import pytest
from msgspec.structs import replace
from valkey import Valkey

from gateway.store import Admitted, Bound, Kept, Kind, Limits, Line, MemoryStore, Money, Portion, Store, Window
from gateway.store.scripts import NAMES
from tests.stores import granted, on

WIDE = Limits(1_000_000, 1_000_000, 60.0)
TOKENS = replace(WIDE, tokens_per_minute=6000)
DAY = 86_400.0
COSTLY = Bound("pro", "flash", prompt=10, completion=90, money=1000, cheap=100)
USED = Line("pro", "answer", False, 8, 4, 20, 300)


@pytest.fixture(params=["memory", "valkey"])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("valkey")


def budget(nano: int, degrade: bool = False, window: Window = DAY) -> Limits:
    return replace(WIDE, money=Money(nano, window, degrade))


async def ask(store: Store, limits: Limits, bound: Bound = COSTLY) -> Admitted:
    return await store.admit("ann", limits, None, bound)


async def burst(store: Store, limits: Limits, count: int = 400, bound: Bound = COSTLY) -> list[Admitted]:
    return list(await asyncio.gather(*(ask(store, limits, bound) for _ in range(count))))


def test_of_four_hundred_at_once_exactly_those_that_fit_are_admitted(url: str | None) -> None:
    answers = on(url, lambda store: burst(store, TOKENS))
    assert granted(answers) == 60
    assert {answer.refused_by for answer in answers} == {None, "tokens"}
    assert [answer.tokens for answer in answers if answer.allowed] == list(range(100, 6001, 100))


def test_of_four_hundred_at_once_exactly_those_within_the_budget_are_admitted(url: str | None) -> None:
    answers = on(url, lambda store: burst(store, budget(12_999)))
    assert granted(answers) == 12
    assert max(answer.money for answer in answers) == 12_000
    assert {answer.refused_by for answer in answers} == {None, "money"}


def test_what_does_not_fit_is_admitted_on_the_first_tier_while_that_fits(url: str | None) -> None:
    answers = on(url, lambda store: burst(store, budget(3250, degrade=True)))
    assert [answer.capped for answer in answers if answer.allowed] == [None] * 3 + ["budget"] * 2
    assert answers[-1].refused_by == "money"


def test_never_more_than_the_share_may_go_up_and_what_stayed_below_makes_room(url: str | None) -> None:
    async def main(store: Store) -> tuple[list[str | None], int]:
        limits = replace(WIDE, share=Portion(0.25, DAY))
        first = await burst(store, limits, 40)
        up = [answer for answer in first if not answer.capped]
        for answer in first:
            await store.settle("ann", answer.lease or "", above=answer in up[4:])
        return [answer.capped for answer in first], sum(not x.capped for x in await burst(store, limits, 40))

    capped, more = on(url, main)
    assert (capped.count(None), set(capped)) == (10, {None, "share"})
    assert more == 20 - 6


def test_what_goes_to_the_first_tier_takes_nothing_of_the_share(url: str | None) -> None:
    async def main(store: Store) -> list[str | None]:
        limits = replace(WIDE, share=Portion(0.1, DAY))
        low = replace(COSTLY, tier="flash")
        seen: list[str | None] = [(await ask(store, limits, bound)).capped for bound in (low, low, COSTLY, COSTLY)]
        none = replace(WIDE, share=Portion(0.0, DAY))
        return seen + [(await store.admit("bob", none, None, bound)).capped for bound in (low, COSTLY)]

    assert on(url, main) == [None, None, None, "share", None, "share"]


def test_a_share_begins_anew_with_its_window_and_what_an_earlier_one_held_makes_no_room(url: str | None) -> None:
    async def main(store: Store) -> tuple[str | None, str | None]:
        seconds = 0.4
        limits = replace(WIDE, share=Portion(0.1, seconds))
        while True:
            old = await ask(store, limits)
            await asyncio.sleep(seconds)
            began = time.time() // seconds
            first = await ask(store, limits)
            await store.settle("ann", old.lease or "", above=False)
            second = await ask(store, limits)
            if time.time() // seconds == began:
                return first.capped, second.capped

    assert on(url, main) == (None, "share")


def test_a_settled_call_leaves_what_was_used(url: str | None) -> None:
    async def main(store: Store) -> None:
        both, started = replace(TOKENS, money=Money(10_000, DAY, degrade=False)), time.monotonic()
        for _ in range(20):
            held = await ask(store, both)
            assert held.lease
            await store.settle("ann", held.lease, [USED], above=True)
        last = await ask(store, both)
        drained = math.ceil((time.monotonic() - started) * 6000 / 60)
        assert 20 * 28 + 100 - drained <= last.tokens <= 20 * 28 + 100
        assert last.money == 20 * 300 + 1000
        assert not (await burst(store, both, 4))[-1].allowed

    on(url, main)


def test_held_tokens_do_not_drain_and_settled_ones_do(url: str | None) -> None:
    async def main(store: Store) -> None:
        fast = replace(WIDE, tokens_per_minute=60_000)
        held, _ = [await ask(store, fast, replace(COSTLY, prompt=0, completion=most)) for most in (30_000, 20_000)]
        await asyncio.sleep(0.05)
        assert (await ask(store, fast, Bound())).tokens == 50_000
        started = time.monotonic()
        await store.settle("ann", held.lease or "", [replace(USED, prompt=0, completion=1000)])
        await asyncio.sleep(0.05)
        left = (await ask(store, fast, Bound())).tokens - 20_000  # which the other one holds
        most = 1000 * (time.monotonic() - started)  # what drained of the settled one
        assert max(0, 1000 - most - 1) <= left <= 950

    on(url, main)


def test_a_call_above_the_whole_limit_waits_for_an_idle_bucket(url: str | None) -> None:
    async def main(store: Store) -> list[bool]:
        large = replace(COSTLY, completion=9000)
        first = await ask(store, TOKENS, large)
        second = await ask(store, TOKENS, replace(COSTLY, prompt=1, completion=0))
        await store.settle("ann", first.lease or "")
        return [first.allowed, second.allowed, (await ask(store, TOKENS, large)).allowed]

    assert on(url, main) == [True, False, True]


def test_a_refused_call_that_waits_as_told_is_admitted(url: str | None) -> None:
    async def main(store: Store) -> tuple[bool, bool]:
        fast = replace(WIDE, tokens_per_minute=60_000)
        held = await ask(store, fast, replace(COSTLY, prompt=0, completion=60_000))
        await store.settle("ann", held.lease or "", [replace(USED, prompt=0, completion=60_000)])
        while (early := await ask(store, fast)).allowed:  # a busy machine may have waited meanwhile
            pass
        await asyncio.sleep(early.retry_after + 0.005)
        return early.allowed, (await ask(store, fast)).allowed

    assert on(url, main) == (False, True)


def test_a_budget_returns_with_the_next_window_less_what_is_still_held(url: str | None) -> None:
    async def main(store: Store) -> tuple[bool, int]:
        seconds = 0.5
        limits = budget(2500, window=seconds)
        await asyncio.sleep(seconds - time.time() % seconds)  # all of a window is left
        one, two = await burst(store, limits, 2)
        await store.settle("ann", one.lease or "", [replace(USED, money=1400)])
        refusal = await ask(store, limits)
        assert 0.0 < refusal.retry_after <= seconds
        await asyncio.sleep(refusal.retry_after + 0.01)
        after = await ask(store, limits)
        assert two.lease
        return after.allowed, after.money

    assert on(url, main) == (True, 2000)


def test_who_looks_is_told_what_is_left_also_where_no_slot_is_and_takes_nothing(url: str | None) -> None:
    async def main(store: Store) -> None:
        limits = Limits(5, 1, 60.0, 6000, Money(10_000, "month", degrade=False), Portion(0.5, DAY))
        seen = [await store.look("ann", limits) for _ in range(20)]
        held = await ask(store, limits)
        assert held.lease
        seen += [await store.look("ann", limits) for _ in range(20)]
        began = time.monotonic()
        await store.settle("ann", held.lease, [USED])
        last = await store.look("ann", limits)
        drained = (time.monotonic() - began) * 6000 / 60 + 1
        assert (last.remaining, last.money) == (4, 300)
        assert max(0, 28 - drained) <= last.tokens <= 28
        left = {(found.remaining, round(found.tokens, -1), found.money) for found in seen}
        assert left == {(5, 0, 0), (4, 100, 1000)}
        assert (await ask(store, limits)).allowed
        assert {found.lease for found in seen} == {None}

    on(url, main)


def test_settling_twice_counts_once(url: str | None) -> None:
    async def main(store: Store) -> None:
        held = await ask(store, WIDE)
        for _ in range(3):
            await store.settle("ann", held.lease or "", [USED], above=True)
        (line,) = await store.ledger("ann")
        assert (line.requests, line.prompt, line.cached, line.completion, line.money) == (1, 8, 4, 20, 300)
        assert (line.caller, line.tier, line.kind, line.estimated) == ("ann", "pro", "answer", False)

    on(url, main)


def test_sums_that_are_too_great_to_be_kept_are_no_outage(valkey: str) -> None:
    async def main(store: Store) -> None:
        for _ in range(3):
            held = await ask(store, WIDE)
            await store.settle("ann", held.lease or "", [replace(USED, money=3 << 61)])
        assert store.state == "ok"
        (line,) = await store.ledger("ann")
        assert (line.requests, line.prompt, line.money) == (3, 24, 3 << 61)

    on(valkey, main)


def test_overhead_is_booked_and_counts_against_no_limit(url: str | None) -> None:
    async def main(store: Store) -> None:
        limits = replace(TOKENS, money=Money(10_000, DAY, degrade=False))
        held = await ask(store, limits)
        overhead = [replace(USED, tier="flash", kind="triage"), replace(USED, tier="flash", kind="draft")]
        await store.settle("ann", held.lease or "", overhead)
        after = await ask(store, limits, Bound())
        assert (after.tokens, after.money) == (0, 0)
        assert {line.kind for line in await store.ledger("ann")} == {"triage", "draft"}

    on(url, main)


@pytest.mark.parametrize("used", [[USED], []])
def test_the_ledger_forgets_a_day_after_four_hundred(url: str | None, used: list[Line]) -> None:
    async def main(store: Store) -> list[int]:
        held = await ask(store, WIDE)
        today = int(time.time() // DAY)
        for age in (400, 401):
            if isinstance(store, MemoryStore):
                store._accounts["ann"].ledger[today - age, "pro", "answer", False] = (1, 0, 0, 0, age)
                store._accounts["ann"].midnight = 0
        if url is not None:
            with Valkey.from_url(url) as client:
                for age in (400, 401):
                    client.hset("tg3:{ann}:ledger", f"{today - age}/answer/0/pro/money", age)
                state = bytearray(client.hget("tg5:{ann}:account", "state") or b"")
                struct.pack_into("<d", state, 8 * NAMES.index(b"day"), today - 1)
                client.hset("tg5:{ann}:account", "state", bytes(state))
        await store.settle("ann", held.lease or "", used)
        return [line.money for line in await store.ledger("ann")]

    assert on(url, main) == [400, *(line.money for line in used)]


def test_the_ledgers_of_callers_are_apart_and_all_are_found(url: str | None) -> None:
    async def main(store: Store) -> list[tuple[str, int]]:
        for name, money in (("ann", 1), ("bob", 2)):
            held = await store.admit(name, WIDE, None, COSTLY)
            await store.settle(name, held.lease or "", [replace(USED, money=money)])
        assert [line.money for line in await store.ledger("bob")] == [2]
        return [(line.caller, line.money) for line in await store.ledger()]

    assert on(url, main) == [("ann", 1), ("bob", 2)]


def test_a_limit_that_changes_keeps_what_was_used_also_where_it_is_lifted_and_set_again(
    url: str | None,
) -> None:
    async def main(store: Store) -> list[tuple[int, int]]:
        first = replace(TOKENS, money=Money(10_000, DAY, degrade=False))
        larger = replace(WIDE, tokens_per_minute=6001, money=Money(20_000, DAY, degrade=True))
        seen = []
        for limits in (first, larger, WIDE, first):
            found = await ask(store, limits, Bound())
            seen.append((round(found.tokens, -3), found.money))
            await store.settle("ann", found.lease or "", [replace(USED, completion=3000)])
        return seen

    assert on(url, main) == [(0, 0), (3000, 300), (6000, 600), (9000, 900)]


def test_what_was_spent_in_a_window_that_runs_counts_in_one_of_another_length_too(url: str | None) -> None:
    async def main(store: Store) -> list[int]:
        seen = []
        windows: list[Window] = [DAY, "month", DAY / 2, DAY, 0.05, DAY]
        for window in windows:  # as two policies have it that are in force on one store
            found = await ask(store, budget(10_000, window=window), Bound())
            seen.append(found.money)
            await store.settle("ann", found.lease or "", [USED])
            await asyncio.sleep(0.06 if window == 0.05 else 0.0)
        return seen

    assert on(url, main) == [0, 300, 600, 900, 1200, 0], "one that has ended counts in none"


def test_what_was_admitted_without_limits_counts_from_the_first_one_on(url: str | None) -> None:
    async def main(store: Store) -> list[str | None]:
        held = [await store.admit("ann", WIDE, None, lambda: COSTLY) for _ in range(3)]
        both = replace(budget(3999), tokens_per_minute=6000)
        answers = [await ask(store, both)]
        for one in held:
            await store.settle("ann", one.lease or "", [replace(USED, money=100)])
        answers += [await ask(store, both) for _ in range(4)]
        assert answers[-1].money == 300 + 3 * 1000
        return [answer.refused_by for answer in answers]

    assert on(url, main) == ["money", None, None, None, "money"]


def test_a_hit_holds_nothing(url: str | None) -> None:
    async def main(store: Store) -> Admitted:
        await store.remember("ann", b"key", b"answer", 10.0)
        await burst(store, replace(TOKENS, money=Money(6000, DAY, degrade=False)), 60)
        return await store.admit("ann", replace(TOKENS, money=Money(6000, DAY, degrade=False)), b"key", COSTLY)

    hit = on(url, main)
    assert (hit.allowed, hit.entry, hit.lease, hit.money) == (True, b"answer", None, 6000)


def test_two_processes_on_one_server_share_a_budget(valkey: str) -> None:
    async def main(one: Store) -> int:
        async def other() -> int:
            return await asyncio.to_thread(on, valkey, counted)

        async def counted(store: Store) -> int:
            return granted(await burst(store, budget(300_000), 250))

        return sum(await asyncio.gather(counted(one), other()))

    assert on(valkey, main) == 300


def any_limits(chance: random.Random) -> Limits:
    degrade = chance.random() < 0.5
    money = Money(5000, "month" if degrade else DAY, degrade)
    share = Portion(chance.choice([0.3, 0.5]), DAY)
    tokens = chance.choice([None, 10**7])
    requests, slots = chance.choice([7, 1_000_000]), chance.choice([3, 1_000_000])
    return Limits(requests, slots, 60.0, tokens, chance.choice([None, money]), chance.choice([None, share]))


def any_line(chance: random.Random) -> Line:
    prompt, cached, completion, money = (chance.randrange(most) for most in (500, 3, 500, 700))
    kind: Kind = chance.choice(["answer", "answer", "triage"])
    tier = chance.choice(["flash", "pro"])
    return Line(tier, kind, chance.random() < 0.3, prompt, cached, completion, money)


def seen(found: Admitted) -> tuple[object, ...]:
    """What does not depend on the moment, nor on the names of leases."""
    lock = found.lock and ("its own" if found.lock == (found.lease or "").encode() else "another's")
    money = found.limits.money and found.money
    return found.refused_by, found.capped, found.entry, lock, bool(found.lease), money


@pytest.mark.parametrize("seed", [10, 25, 27])
def test_a_server_decides_books_and_remembers_as_memory_does_whatever_comes(valkey: str, seed: int) -> None:
    async def main(store: Store) -> None:
        chance, memory, held = random.Random(seed), MemoryStore(), list[tuple[str, str]]()
        limits = any_limits(chance)
        for step in range(60):
            key = chance.choice([None, b"one", b"two", b"three"])
            if held and chance.random() < 0.45:
                leases, above = held.pop(chance.randrange(len(held))), chance.random() < 0.5
                lines = [any_line(chance) for _ in range(chance.randrange(3))]
                kept = Kept(key, b"%d" % step, 60.0) if key else None
                for each, lease in zip((memory, store), leases, strict=True):
                    await each.settle("ann", lease, lines, above, kept)
                continue
            if chance.random() < 0.1:
                limits = any_limits(chance)
            prompt, completion, money = (chance.randrange(most) for most in (300, 300, 900))
            tier, cheap = chance.choice(["flash", "pro"]), chance.randrange(money + 1)
            bound = Bound(tier, "flash", prompt, completion, money, cheap)
            one, other = [await which.admit("ann", limits, key, bound) for which in (memory, store)]
            assert seen(one) == seen(other)
            if one.lease and other.lease:
                held.append((one.lease, other.lease))
        assert await memory.ledger("ann") == await store.ledger("ann")

    on(valkey, main)
