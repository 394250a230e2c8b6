"""Leases last while their process lives, and end with it. Real processes on a real Valkey."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from valkey import Valkey

from gateway.store import Bound, Limits, Line, Money, Store, open_store
from tests.gateway.serving import PATIENCE
from tests.stores import on

LEASE = 0.5  # seconds; more than a busy machine lets a process wait
BUDGET = Limits(1000, 1000, LEASE, money=Money(10_000, 86400.0, degrade=False))
TWO = Limits(1000, 2, LEASE)
COSTLY = Bound("pro", "flash", prompt=10, completion=90, money=1000, cheap=100)
USED = [Line("pro", "answer", False, 8, 4, 20, 300)]

# Holds ten calls; settles them when a line comes in, says so, and stays.
HOLDER = """
import asyncio, sys
from gateway.store import open_store
from tests.gateway.test_store_leases import BUDGET, COSTLY, USED

async def main():
    store = open_store(sys.argv[1])
    held = [await store.admit("ann", BUDGET, None, COSTLY) for _ in range(12)]
    print(sum(answer.allowed for answer in held), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for answer in held:
        await store.settle("ann", answer.lease or "", USED)
    print("settled", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextmanager
def holder(url: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the whole budget."""
    command = [sys.executable, "-c", HOLDER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert said(process) == "10"
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


async def told_to_settle(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    assert await asyncio.to_thread(said, process) == "settled"


async def money(store: Store) -> list[tuple[int, bool, int]]:
    return [(line.requests, line.estimated, line.money) for line in await store.ledger("ann")]


async def affords(store: Store) -> bool:
    """Whether one call more fits; it is given back."""
    answer = await store.admit("ann", BUDGET, None, COSTLY)
    await store.settle("ann", answer.lease or "")
    return answer.allowed


def renewed(url: str) -> bool:
    """Whether no lease of Ann's has ended."""
    with Valkey.from_url(url) as client:
        ((_, first),) = client.zrange("tg5:{ann}:leases", 0, 0, withscores=True)
        return bool(first > time.time() * 1e6)


def test_what_a_living_process_holds_outlives_its_lease(url: str | None) -> None:
    async def main(store: Store) -> None:
        held = [await store.admit("ann", TWO, None, COSTLY) for _ in range(3)]
        await asyncio.sleep(1.5 * LEASE)
        assert [answer.allowed for answer in held] == [True, True, False]
        assert not (await store.admit("ann", TWO, None, COSTLY)).allowed
        assert await money(store) == []
        await store.settle("ann", held[0].lease or "", USED)
        assert await money(store) == [(1, False, 300)]

    on(url, main)


@pytest.mark.parametrize("kind", ["valkey", "valkey_cluster"])
def test_what_a_process_held_that_ended_returns_after_the_lease(kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(kind)

    async def main(store: Store) -> Any:
        other = open_store(url)
        held = [await other.admit("ann", TWO, None, COSTLY) for _ in range(2)]
        await other.close()
        before = (await store.admit("ann", TWO, None)).allowed
        await asyncio.sleep(LEASE + 0.05)
        after = [(await store.admit("ann", TWO, None)).allowed for _ in range(3)]
        await store.settle("ann", held[0].lease or "", USED)
        return before, after, (await store.admit("ann", TWO, None)).allowed

    assert on(url, main) == (False, [True, True, False], False)


def test_a_short_lease_ends_in_its_time_beside_a_longer_one_and_again_after_it(valkey: str) -> None:
    async def main(store: Store) -> list[bool]:
        await store.admit("ann", replace(TWO, lease=60.0), None)
        ended = []
        for _ in range(2):
            other = open_store(valkey)
            assert (await other.admit("ann", replace(TWO, lease=0.4), None)).allowed
            await other.close()
            assert not (await store.admit("ann", TWO, None)).allowed
            await asyncio.sleep(0.41)
            last = await store.admit("ann", TWO, None)
            await store.settle("ann", last.lease or "")
            ended.append(last.allowed)
        return ended

    assert on(valkey, main) == [True, True]


def test_what_a_killed_process_held_is_booked_as_an_estimate(valkey: str) -> None:
    async def main(store: Store) -> None:
        with holder(valkey) as process:
            await asyncio.sleep(1.5 * LEASE)
            assert not await affords(store)
            assert await money(store) == []
            os.kill(process.pid, signal.SIGKILL)
            assert not await affords(store)
            await asyncio.sleep(LEASE + 0.05)
        (line,) = await store.ledger("ann")
        assert replace(line, day="") == Line("pro", "answer", True, 100, 0, 900, 10_000, 10, "ann")
        assert not await affords(store)

    on(valkey, main)


def test_what_a_call_held_that_had_to_go_to_the_first_tier_is_booked_there(valkey: str) -> None:
    async def main(store: Store) -> None:
        other = open_store(valkey)
        poor = Limits(1000, 1000, 0.1, money=Money(999, 86400.0, degrade=True))
        assert (await other.admit("ann", poor, None, COSTLY)).capped == "budget"
        await other.close()
        await asyncio.sleep(0.11)
        assert [(line.tier, line.estimated, line.money) for line in await store.ledger("ann")] == [("flash", True, 100)]

    on(valkey, main)


def test_a_process_that_was_stopped_for_longer_changes_nothing_of_what_was_booked_meanwhile(valkey: str) -> None:
    async def main(store: Store) -> None:
        with holder(valkey) as process:
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(LEASE + 0.05)
            assert await money(store) == [(10, True, 10_000)]
            os.kill(process.pid, signal.SIGCONT)
            await told_to_settle(process)
        assert await money(store) == [(10, True, 10_000)]
        assert not await affords(store)

    on(valkey, main)


def test_a_process_that_was_stopped_settles_what_nobody_missed(valkey: str) -> None:
    async def main(store: Store) -> None:
        with holder(valkey) as process:
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(LEASE + 0.05)
            os.kill(process.pid, signal.SIGCONT)
            async with asyncio.timeout(PATIENCE):
                while not renewed(valkey):  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.01)
            await told_to_settle(process)
        assert await money(store) == [(10, False, 3000)]
        assert await affords(store)

    on(valkey, main)


def test_what_was_settled_is_renewed_no_more(valkey: str) -> None:
    async def main(store: Store) -> None:
        held = [await store.admit("ann", TWO, None) for _ in range(2)]
        for one in held:
            await store.settle("ann", one.lease or "")
        assert not any(store._beat._held.values())  # type: ignore[attr-defined]

    on(valkey, main)


@pytest.mark.parametrize("lost", ["leases account", "account"])
def test_a_slot_whose_books_were_lost_returns_with_its_answer(valkey: str, lost: str) -> None:
    """A server that drops keys may have lost them; a lease that is there no more is not renewed either."""

    async def main(store: Store) -> list[bool]:
        held = await asyncio.gather(*(store.admit("ann", TWO, None) for _ in range(2)))
        with Valkey.from_url(valkey) as client:
            client.delete(*(f"tg5:{{ann}}:{name}" for name in lost.split()))
            await asyncio.sleep(LEASE / 2)  # it would be renewed meanwhile
            assert bool(client.exists("tg5:{ann}:leases")) is (lost == "account")
        for one in held:
            await store.settle("ann", one.lease or "")
        return [(await store.admit("ann", TWO, None)).allowed for _ in range(3)]

    assert on(valkey, main) == [True, True, False]


def test_what_a_dead_process_held_is_booked_and_returns_while_gateways_of_the_form_before_run(valkey: str) -> None:
    async def main(store: Store) -> None:
        await asyncio.gather(*(store.admit("ann", BUDGET, None, COSTLY) for _ in range(10)))

    async def after(store: Store) -> None:
        with Valkey.from_url(valkey) as client:
            client.zremrangebyscore("tg3:{ann}:leases", "-inf", "+inf")  # as they do with leases that expired
        await asyncio.sleep(LEASE)
        assert await money(store) == [(10, True, 10_000)]

    on(valkey, main)
    on(valkey, after)


def test_the_usage_of_a_caller_is_told_where_its_account_is_gone_or_of_another_form(valkey: str) -> None:
    async def main(store: Store) -> None:
        held = await store.admit("ann", BUDGET, None, COSTLY)
        await store.settle("ann", held.lease or "", USED)
        with Valkey.from_url(valkey) as client:
            client.delete("tg5:{ann}:account")
        assert [(line.caller, line.money) for line in await store.ledger()] == [("ann", 300)]

    on(valkey, main)
