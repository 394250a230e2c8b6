"""What holds only where processes share a server: a real Valkey on a unix socket."""

import asyncio
import hashlib
import struct
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from valkey import Valkey

from gateway.store import VALUE_LIMIT, KeyRecord, Line, Store, open_store
from gateway.store.beat import LAST
from gateway.store.opening import written
from gateway.store.scripts import ADMIT, NAMES
from gateway.store.words import booked, key_names, milliseconds, run
from tests.gateway.serving import eventually
from tests.stores import burst, granted, limits, on

KEY = b"k" * 32


def test_two_processes_on_one_server_share_limits_slots_entries_and_the_secret(valkey: str) -> None:
    async def both(one: Store) -> None:
        other = open_store(valkey)
        halves = await asyncio.gather(burst(one, 200, limits(50)), burst(other, 200, limits(50)))
        assert sum(map(granted, halves)) == 50
        held = await one.admit("bob", limits(concurrency=1), None)
        assert not (await other.admit("bob", limits(concurrency=1), None)).allowed
        await other.settle("bob", held.lease or "")
        assert (await other.admit("bob", limits(concurrency=1), None)).allowed
        await one.remember("ann", KEY, b"answer", 10.0)
        assert await other.recall("ann", KEY) == b"answer"
        assert await one.secret() == await other.secret()
        await other.close()

    on(valkey, both)


def test_who_left_died_or_comes_from_a_clock_that_went_back_counts_no_more(valkey: str) -> None:
    async def main(one: Store, client: Valkey) -> None:
        client.zadd("tg1:processes", {"died": 1.0, "ahead": 4e15})
        await one.admit("ann", limits(), None)
        await eventually(lambda: client.zcard("tg1:processes") == 1)
        other = open_store(valkey)
        await other.admit("ann", limits(), None)
        await eventually(lambda: other.processes == 2)
        await other.close()
        assert client.zcard("tg1:processes") == 1

    with Valkey.from_url(valkey) as client:
        on(valkey, lambda store: main(store, client))


def test_processes_count_for_three_beats_after_an_outage_in_which_the_server_lost_them() -> None:
    async def main(one: Store) -> list[int]:
        beat = one._beat  # type: ignore[attr-defined]
        beat._seen.append(2)
        seen = []
        for _ in range(LAST):
            seen.append(one.processes)
            beat._seen.append(1)
        return [*seen, one.processes]

    assert on("redis://127.0.0.1:1", main) == [2, 2, 2, 1]


def test_of_two_processes_that_make_the_first_key_one_does(valkey: str) -> None:
    async def race(one: Store) -> int:
        other = open_store(valkey)
        records = [KeyRecord(name, "hash", name, None, 1.0) for name in ("ann", "bob")]
        stores = zip((one, other), records, strict=True)
        kept = await asyncio.gather(*(store.put_key(record, only_first=True) for store, record in stores))
        await other.close()
        return sum(kept)

    assert on(valkey, race) == 1


def test_changes_that_processes_make_of_a_key_at_once_are_all_kept(valkey: str) -> None:
    def counted(record: KeyRecord) -> KeyRecord:
        return replace(record, requests_per_minute=1 + (record.requests_per_minute or 0))

    async def race(one: Store) -> KeyRecord | None:
        other = open_store(valkey)
        await one.put_key(KeyRecord("ann", "hash", "ann", None, 1.0))
        await asyncio.gather(*(store.change_key("ann", counted) for store in (one, other) * 10))
        await other.close()
        return await one.key("ann")

    assert on(valkey, race) == KeyRecord("ann", "hash", "ann", None, 1.0, requests_per_minute=20)


def test_a_crowd_of_requests_and_of_large_values_is_no_outage(valkey: str) -> None:
    async def crowd(store: Store) -> tuple[int, str]:
        answers = asyncio.create_task(burst(store, 4000, limits(1)))
        await asyncio.gather(*(store.remember("ann", b"%d" % n, b"x" * VALUE_LIMIT, 10.0) for n in range(20)))
        return granted(await answers), store.state

    assert on(valkey, crowd) == (1, "ok")


def test_all_that_is_kept_of_a_caller_is_kept_for_a_time(valkey: str) -> None:
    """So that a server can drop what is asked for least when its memory is full."""

    async def main(store: Store) -> dict[str, bool]:
        done, _ = await burst(store, 2, limits(), KEY)
        await store.settle("ann", done.lease or "", [Line("pro", "answer", False, 1, 0, 1, 1)])
        await store.remember("ann", b"another", b"answer", 10.0)
        with Valkey.from_url(valkey, decode_responses=True) as client:
            names = client.keys("*{ann}*")
            return {name.split(":")[2]: client.ttl(name) > 0 for name in names}

    kinds = ("account", "leases", "ledger", "entry")
    assert on(valkey, main) == dict.fromkeys(kinds, True)


def test_what_is_kept_of_a_caller_is_kept_for_longer_on_each_day(valkey: str) -> None:
    async def main(store: Store) -> None:
        await store.admit("ann", limits(), None)
        with Valkey.from_url(valkey) as client:
            state = bytearray(client.hget("tg5:{ann}:account", "state") or b"")
            struct.pack_into("<d", state, 8 * NAMES.index(b"day"), time.time() // 86_400 - 1)
            client.hset("tg5:{ann}:account", "state", bytes(state))
            for name in ("account", "leases"):
                client.persist(f"tg5:{{ann}}:{name}")
            await store.admit("ann", limits(), None)
            left = [client.ttl(f"tg5:{{ann}}:{name}") for name in ("account", "leases")]
            assert left == pytest.approx([401 * 86_400] * 2, abs=60)

    on(valkey, main)


def test_a_server_that_forgot_its_scripts_gets_them_again(valkey: str) -> None:
    async def forget(store: Store) -> None:
        began, before = time.monotonic(), granted(await burst(store, 20, limits(50)))
        with Valkey.from_url(valkey) as client:
            client.script_flush()
        both = before + granted(await burst(store, 100, limits(50)))
        assert 50 <= both <= 50 + (time.monotonic() - began) * 50 / 60
        assert store.state == "ok"

    on(valkey, forget)


SHIFTED = """
import sys, time
seconds, url = float(sys.argv[1]), sys.argv[2]
real, steady = time.time, time.monotonic
time.time, time.monotonic = lambda: real() + seconds, lambda: steady() + seconds
import asyncio
from gateway.store import Limits, open_store

async def main():
    store = open_store(url)
    answers = await asyncio.gather(*(store.admit("ann", Limits(5, 4, 60.0), None) for _ in range(30)))
    print(sum(answer.allowed for answer in answers))
    await store.close()

asyncio.run(main())
"""


def test_clocks_of_processes_that_are_an_hour_off_change_nothing(valkey: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", SHIFTED, shift, valkey], stdout=subprocess.PIPE, text=True)
        for shift in ("3600", "-3600")
    ]
    admitted = sum(int(process.communicate(timeout=60)[0]) for process in processes)
    assert admitted == 4
    assert granted(on(valkey, lambda store: burst(store, 30, limits(5)))) == 1


def test_when_the_clock_of_the_server_went_back_callers_get_their_requests_again_at_the_usual_pace(valkey: str) -> None:
    async def main(store: Store) -> None:
        await store.admit("ann", limits(6000), None)
        with Valkey.from_url(valkey) as client:
            seconds, micros = client.time()
            state = bytearray(client.hget(key_names("ann").names.all[0], "state") or b"")
            struct.pack_into("<d", state, 8 * NAMES.index(b"idle_at"), (seconds + 3600) * 10**6 + micros)
            client.hset(key_names("ann").names.all[0], "state", bytes(state))
        refused = await store.admit("ann", limits(6000), None)
        assert (refused.refused_by, refused.retry_after) == ("requests", 0.01)
        await asyncio.sleep(refused.retry_after)
        assert (await store.admit("ann", limits(6000), None)).allowed

    on(valkey, main)


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="redis://"):
        open_store("http://127.0.0.1:6379")


def test_a_scripts_run_is_written_as_any_command_is() -> None:
    names, script = key_names("ann").names, ADMIT
    name = hashlib.sha1(script.text, usedforsecurity=False).hexdigest()
    for size in (0, 1, 1023, 1024, 70_000):
        more = (b"name", b"w" * size)
        assert run(script, names, more) == written((b"EVALSHA", name, 4, *names.all, *more))


def test_a_ledger_is_told_in_the_order_of_its_days() -> None:
    kept = [b"20001/answer/0/flash/requests", b"1", b"20000/answer/0/pro/requests", b"2"]
    told = [(line.day, line.tier, line.requests) for line in booked("ann", kept)]
    assert told == [("2024-10-04", "pro", 2), ("2024-10-05", "flash", 1)]


def test_what_is_kept_for_hardly_a_time_is_kept_for_a_millisecond() -> None:
    assert [milliseconds(seconds) for seconds in (0.0001, 0.0019, 2.0)] == [b"1", b"1", b"2000"], "a server refuses 0"


def test_whoever_waits_for_a_settlement_hears_of_it_and_one_who_leaves_keeps_no_other_waiting(valkey: str) -> None:
    async def wait(store: Store) -> None:
        settled = store.settle("ann", "a lease", ())
        first, second = (asyncio.ensure_future(settled) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait_for(second, 20)
        assert first.cancelled()
        await settled

    on(valkey, wait)
