"""One contract, three stores: memory, a real Valkey server on a unix socket, and a real cluster of six."""

import asyncio
import time
from itertools import combinations

import pytest

from gateway.key_records import as_revoked
from gateway.store import OVER, VALUE_LIMIT, Admitted, Kept, KeyRecord, Line, MemoryStore, Store, Taken
from gateway.store.memory import ENTRY
from tests.stores import burst, granted, limits, on, scripts_known

KEY = b"k" * 32


def test_four_hundred_at_once_against_a_limit_of_fifty_admit_exactly_fifty(url: str | None) -> None:
    answers = on(url, lambda store: burst(store, 400, limits(50)))
    assert granted(answers) == 50
    assert {answer.refused_by for answer in answers} == {None, "requests"}


@pytest.mark.parametrize("limit", [1, 2, 7, 121])
def test_from_idle_exactly_the_limit_is_admitted_whatever_it_is(url: str | None, limit: int) -> None:
    assert granted(on(url, lambda store: burst(store, limit + 9, limits(limit)))) == limit


def test_four_hundred_at_once_get_exactly_the_slots_there_are(url: str | None) -> None:
    answers = on(url, lambda store: burst(store, 400, limits(concurrency=16)))
    assert granted(answers) == 16
    assert len({answer.lease for answer in answers if answer.lease}) == 16


def test_at_no_sliding_moment_more_is_admitted_than_declared(url: str | None) -> None:
    async def attack(store: Store) -> list[tuple[float, float]]:
        history, bursts = [], 0
        end = time.monotonic() + 0.3
        while time.monotonic() < end or bursts < 7:  # so many ask for more than there is
            bursts, asked = bursts + 1, time.monotonic()
            answers = await burst(store, 20, limits(120))
            history += [(asked, time.monotonic())] * granted(answers)
        return history

    history = on(url, attack)
    assert len(history) >= 120
    for (first, (asked, _)), (last, (_, answered)) in combinations(enumerate(history), 2):
        assert last - first + 1 <= 120 + (answered - asked) * 120 / 60 + 1e-3


def test_a_refused_request_that_waits_as_told_is_admitted_and_one_that_does_not_is_refused(url: str | None) -> None:
    async def wait(store: Store) -> tuple[bool, bool]:
        what = limits(300)
        refusal = (await burst(store, 310, what))[-1]
        assert 0.0 < refusal.retry_after <= 0.2
        while (early := await store.admit("ann", what, None)).allowed:  # a busy machine may have waited meanwhile
            pass
        await asyncio.sleep(early.retry_after + 0.002)
        return early.allowed, (await store.admit("ann", what, None)).allowed

    assert on(url, wait) == (False, True)


def test_remaining_and_reset_tell_the_truth(url: str | None) -> None:
    async def ask(store: Store) -> tuple[list[Admitted], float]:
        started = time.monotonic()
        return [await store.admit("ann", limits(6), None) for _ in range(8)], time.monotonic() - started

    answers, took = on(url, ask)
    assert [answer.remaining for answer in answers] == [5, 4, 3, 2, 1, 0, 0, 0]
    assert {answer.limits.requests_per_minute for answer in answers} == {6}
    assert answers[0].spent == 10_000_000
    assert answers[-1].spent == pytest.approx(60_000_000, abs=1_000_000 * (took + 0.01))
    assert answers[-1].retry_after == pytest.approx(10.0, abs=took + 0.01)


def test_a_refusal_by_concurrency_consumes_no_request(url: str | None) -> None:
    async def ask(store: Store) -> list[Admitted]:
        first = await store.admit("ann", limits(3, concurrency=1), None)
        full = [await store.admit("ann", limits(3, concurrency=1), None) for _ in range(5)]
        assert first.lease is not None
        await store.settle("ann", first.lease)
        return [*full, await store.admit("ann", limits(3, concurrency=1), None)]

    *full, last = on(url, ask)
    assert {(answer.refused_by, answer.remaining, answer.retry_after) for answer in full} == {("concurrency", 2, 1.0)}
    assert (last.allowed, last.remaining) == (True, 1)


def test_a_hit_counts_as_a_request_and_takes_no_slot(url: str | None) -> None:
    async def hit(store: Store) -> list[Admitted]:
        await store.remember("ann", KEY, b"answer", 10.0)
        what = limits(4, concurrency=1)
        held = await store.admit("ann", what, b"another key")
        return [held] + [await store.admit("ann", what, KEY) for _ in range(4)]

    held, *hits, refusal = on(url, hit)
    assert held.lease is not None
    assert held.entry is None
    assert [(found.entry, found.lease, found.remaining) for found in hits] == [
        (b"answer", None, 2), (b"answer", None, 1), (b"answer", None, 0),
    ]  # fmt: skip
    assert (refusal.refused_by, refusal.entry) == ("requests", None)


def test_a_lower_limit_from_a_swapped_policy_holds_at_once(url: str | None) -> None:
    async def lower(store: Store) -> Admitted:
        await burst(store, 100, limits(100))
        return await store.admit("ann", limits(10), None)

    refusal = on(url, lower)
    assert not refusal.allowed
    assert refusal.retry_after <= 6.0


def test_limits_and_entries_of_callers_are_apart(url: str | None) -> None:
    async def two(store: Store) -> tuple[bool, bytes | None, bytes | None]:
        await store.remember("ann", KEY, b"hers", 10.0)
        await store.admit("ann", limits(1), None)
        other = await store.admit("bob", limits(1), KEY)
        return other.allowed, other.entry, await store.recall("ann", KEY)

    assert on(url, two) == (True, None, b"hers")


def test_entries_end_are_replaced_and_have_a_size_limit(url: str | None) -> None:
    async def keep(store: Store) -> list[int | None]:
        await store.remember("ann", b"short", b"x", 0.05)
        await store.remember("ann", b"replaced", b"x", 10.0)
        await store.remember("ann", b"replaced", b"xx", 10.0)
        await store.remember("ann", b"largest", b"x" * VALUE_LIMIT, 10.0)
        await store.remember("ann", b"too large", b"x" * (VALUE_LIMIT + 1), 10.0)
        await asyncio.sleep(0.06)
        found = [await store.recall("ann", key) for key in (b"short", b"replaced", b"largest", b"too large")]
        return [None if value is None else len(value) for value in found]

    assert on(url, keep) == [None, 2, VALUE_LIMIT, None]


def test_a_cancelled_admission_leaves_no_slot_taken(url: str | None) -> None:
    async def leave(store: Store) -> bool:
        what = limits(concurrency=1)
        await scripts_known(store)
        for turns in range(5):
            asking = asyncio.create_task(store.admit("ann", what, None))
            for _ in range(turns):
                await asyncio.sleep(0)
            left = asking.done()
            asking.cancel()
            await asyncio.wait([asking])
            assert left or asking.cancelled()
            if left:
                await store.settle("ann", asking.result().lease or "")
        return (await store.admit("ann", what, None)).allowed

    assert on(url, leave)


def test_a_cancelled_release_still_gives_the_slot_back(url: str | None) -> None:
    async def leave(store: Store) -> bool:
        what = limits(concurrency=1)
        await scripts_known(store)
        held = await store.admit("ann", what, None)
        giving = asyncio.ensure_future(store.settle("ann", held.lease or ""))
        await asyncio.sleep(0)
        giving.cancel()
        await asyncio.wait([giving])
        return (await store.admit("ann", what, None)).allowed

    assert on(url, leave)


def test_of_many_one_has_the_lock_until_it_frees_it(url: str | None) -> None:
    async def locks(store: Store) -> None:
        held = await asyncio.gather(*(store.take_lock("ann", KEY, b"%d" % n, 10.0) for n in range(20)))
        (first,) = {taken.holder for taken in held}
        assert first is not None
        assert (await store.take_lock("bob", KEY, b"his", 10.0)).holder == b"his"
        assert (await store.take_lock("ann", b"other", b"its", 10.0)).holder == b"its"
        await store.free_lock("ann", KEY, b"a stranger's")
        assert (await store.take_lock("ann", KEY, b"new", 10.0)).holder == first
        await store.free_lock("ann", KEY, first)
        assert (await store.take_lock("ann", KEY, b"new", 10.0)).holder == b"new"
        await store.remember("ann", KEY, b"value", 10.0)
        assert await store.take_lock("ann", KEY, b"late", 10.0) == Taken(None, b"value")

    on(url, locks)


def test_an_admission_that_finds_nothing_remembered_takes_the_lock_to_make_it(url: str | None) -> None:
    async def locks(store: Store) -> None:
        first, second = [await store.admit("ann", limits(), KEY) for _ in range(2)]
        assert first.lease is not None
        assert first.lock == second.lock == first.lease.encode()
        await store.free_lock("ann", KEY, first.lease.encode())
        third = await store.admit("ann", limits(), KEY)
        assert third.lock == (third.lease or "").encode()
        assert (await store.admit("ann", limits(), None)).lock is None
        await store.remember("ann", KEY, b"value", 10.0)
        hit = await store.admit("ann", limits(), KEY)
        assert (hit.entry, hit.lock) == (b"value", None)

    on(url, locks)


@pytest.mark.parametrize(("value", "next_"), [(b"value", b"b"), (bytes(VALUE_LIMIT + 1), b"a")])
@pytest.mark.parametrize("settling", [True, False])
def test_a_value_that_is_remembered_ends_the_lock_and_one_that_is_too_large_does_not(
    url: str | None, value: bytes, next_: bytes, settling: bool
) -> None:
    async def locks(store: Store) -> bytes | None:
        held = await store.admit("ann", limits(), None)
        await store.take_lock("ann", KEY, b"a", 10.0)
        if settling:
            await store.settle("ann", held.lease or "", kept=Kept(KEY, value, 0.05))
        else:
            await store.remember("ann", KEY, value, 0.05)
        await asyncio.sleep(0.06)
        return (await store.take_lock("ann", KEY, b"b", 10.0)).holder

    assert on(url, locks) == next_


def test_what_is_remembered_with_a_settlement_is_there_once_that_is_done_and_the_slot_is_free(url: str | None) -> None:
    async def settle(store: Store) -> None:
        held = await store.admit("ann", limits(concurrency=1), KEY)
        assert await store.recall("ann", KEY) is None  # its lock is no value
        lines = [Line("pro", "answer", False, 8, 0, 20, 300)]
        await store.settle("ann", held.lease or "", lines, kept=Kept(KEY, b"value", 10.0))
        assert await store.recall("ann", KEY) == b"value"
        assert [line.money for line in await store.ledger("ann")] == [300]
        assert (await store.admit("ann", limits(concurrency=1), b"other")).allowed

    on(url, settle)


def test_a_lock_runs_out_unless_it_is_renewed(url: str | None) -> None:
    async def die(store: Store) -> list[bytes | None]:
        seen = [(await store.take_lock("ann", KEY, b"a", 0.05)).holder]
        seen.append((await store.take_lock("ann", KEY, b"a", 60.0)).holder)
        await asyncio.sleep(0.06)  # longer than it had at first
        seen.append((await store.take_lock("ann", KEY, b"b", 60.0)).holder)
        seen.append((await store.take_lock("ann", KEY, b"a", 0.05)).holder)
        await asyncio.sleep(0.06)
        return [*seen, (await store.take_lock("ann", KEY, b"c", 60.0)).holder]

    assert on(url, die) == [b"a", b"a", b"a", b"a", b"c"]


def test_a_lock_that_ends_without_a_value_says_so_for_a_while(url: str | None) -> None:
    async def end(store: Store) -> list[bytes | None]:
        for key, over in ((KEY, 60.0), (b"other", 0.05)):
            await store.take_lock("ann", key, b"a", 10.0)
            await store.free_lock("ann", key, b"a", over=over)
        await asyncio.sleep(0.06)
        return [(await store.take_lock("ann", key, b"b", 10.0)).holder for key in (KEY, b"other")]

    assert on(url, end) == [OVER, b"b"]


def test_purging_forgets_one_callers_values_or_all_and_nothing_else(url: str | None) -> None:
    async def purge(store: Store) -> None:
        record = KeyRecord("a" * 12, "hash", "ann", None, 1.0)
        await store.put_key(record)
        for caller in ("ann", "bob", "b*b"):
            await asyncio.gather(*(store.remember(caller, b"%d" % n, b"x", 10.0) for n in range(700)))
        assert sum([count async for count in store.purge("b*b")]) == 700
        assert [await store.recall(caller, b"1") for caller in ("ann", "bob", "b*b")] == [b"x", b"x", None]
        held = await store.admit("ann", limits(requests=1), None)
        assert sum([count async for count in store.purge()]) == 1400
        assert await store.list_keys() == [record]
        assert held.allowed
        assert not (await store.admit("ann", limits(requests=1), None)).allowed

    on(url, purge)


def test_keys_are_kept_listed_by_age_and_revoked_once(url: str | None) -> None:
    young = KeyRecord("b" * 12, "hash", "bob", None, 2.0)
    old = KeyRecord("a" * 12, "hash", "ann", "gold", 1.0)

    async def keep(store: Store) -> None:
        assert await store.put_key(young)
        assert await store.put_key(old)
        assert await store.list_keys() == [old, young]
        assert await store.key(old.id) == old
        assert await store.key("unknown") is None
        assert await store.change_key("unknown", as_revoked) is None
        first = await store.change_key(old.id, as_revoked)
        assert await store.change_key(old.id, as_revoked) == first == await store.key(old.id)
        assert first
        assert first.revoked
        assert await store.key(young.id) == young

    on(url, keep)


def test_of_twenty_first_keys_at_once_one_is_kept(url: str | None) -> None:
    async def race(store: Store) -> tuple[int, int]:
        records = [KeyRecord(f"{n:012x}", "hash", "ann", None, 1.0) for n in range(20)]
        kept = await asyncio.gather(*(store.put_key(record, only_first=True) for record in records))
        return sum(kept), len(await store.list_keys())

    assert on(url, race) == (1, 1)


def test_what_is_kept_stays_for_all_until_another_takes_its_place(url: str | None) -> None:
    async def main(store: Store) -> list[bytes | None]:
        before = await store.kept("one")
        await store.keep("one", b"first")
        await store.keep("one", b"second")
        await store.keep("other", b"")
        _ = [count async for count in store.purge()]
        return [before, await store.kept("one"), await store.kept("other")]

    assert on(url, main) == [None, b"second", b""]


def test_the_secret_is_random_and_stays(url: str | None) -> None:
    async def ask(store: Store) -> set[bytes]:
        return set(await asyncio.gather(*(store.secret() for _ in range(10))))

    (secret,) = on(url, ask)
    assert len(secret) == 32
    assert len(set(secret)) > 8


def test_a_store_says_what_it_is(url: str | None) -> None:
    async def ask(store: Store) -> tuple[bool, str]:
        return await store.ping(), store.state

    assert on(url, ask) == (True, "memory" if url is None else "ok")


def test_memory_forgets_the_least_recently_used_entries_above_its_bound() -> None:
    async def fill(store: Store) -> list[bool]:
        for n in range(64):
            await store.remember("ann", b"%d" % n, b"x" * (VALUE_LIMIT - ENTRY), 10.0)
        await store.recall("ann", b"0")
        await store.remember("ann", b"one more", b"x" * (VALUE_LIMIT - ENTRY), 10.0)
        return [await store.recall("ann", key) is not None for key in (b"0", b"1", b"2", b"one more")]

    assert on(None, fill) == [True, False, True, True]


def test_memory_counts_an_entry_that_took_the_place_of_another_once() -> None:
    async def fill(store: Store) -> bytes | None:
        await store.remember("ann", b"other", b"there", 10.0)
        for _ in range(65):
            await store.remember("ann", b"again", b"x" * VALUE_LIMIT, 10.0)
        return await store.recall("ann", b"other")

    assert on(None, fill) == b"there"


def test_memory_counts_what_small_entries_take_beside_their_values() -> None:
    async def fill(store: Store) -> list[bool]:
        for n in range(63):
            await store.remember("ann", b"%d" % n, b"x" * VALUE_LIMIT, 10.0)
        for n in range(VALUE_LIMIT // ENTRY):
            await store.remember("ann", b"small %d" % n, b"x", 10.0)
        return [await store.recall("ann", key) is not None for key in (b"0", b"1", b"small 0")]

    assert on(None, fill) == [False, True, True]


def test_memory_forgets_idle_callers_but_neither_what_they_used_nor_who_has_to_wait() -> None:
    async def pass_by() -> int:
        store = MemoryStore()
        spender, waiter = (
            await store.admit("spender", limits(6_000_000), None),
            await store.admit("waiter", limits(1), None),
        )
        await store.settle("spender", spender.lease or "", [Line("pro", "answer", False, 1, 0, 1, 1)])
        await store.settle("waiter", waiter.lease or "")
        for n in range(5000):
            found = await store.admit(f"caller {n}", limits(6_000_000), None)
            await store.settle(f"caller {n}", found.lease or "")
        assert [line.money for line in await store.ledger("spender")] == [1]
        assert not (await store.admit("waiter", limits(1), None)).allowed
        return len(store._accounts)

    assert asyncio.run(pass_by()) < 100
