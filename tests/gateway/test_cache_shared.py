"""Several gateway processes on one Valkey answer as one."""

import asyncio
import base64
import contextlib
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from gateway.cache import Flights, cache_key, cached_reply
from gateway.cache.lock import Claim, Locks
from gateway.errors import UpstreamFailed
from gateway.policy import Caching, load_policy
from gateway.reply import Reply
from gateway.store import HELD, Lock, Store, open_store
from gateway.types import Caller
from loadtest.servers import Process, Sim
from loadtest.servers import running as serving
from tests.gateway.serving import Port, asked, body, collected, eventually, gateway, plain, scripted
from tests.gateway.test_cache_flights import POLICY, WHOLE, Hold, Server
from tests.stores import on
from tests.tiers import JSON

TEXT = """
schema: 1
tiers:
  flash: {{model: flash-model, replicas: ["{0}"]}}
  pro: {{model: pro-model, replicas: ["{1}"]}}
rules: [{{id: all, route: flash}}]
caching: {{ttl: 1m}}
callers: {{default: {{plan: p}}, plans: {{p: {{requests_per_minute: 100000, concurrency: 10000}}}}}}
"""
Share = Callable[[Server], Coroutine[Any, Any, Reply]]
ASKED: JSON = body("What is asked by all?", temperature=0, max_tokens=10)


@asynccontextmanager
async def two(flash: Sim, pro: Sim, store: str) -> AsyncIterator[tuple[Port, Port, Process]]:
    """A gateway in this process, and another with its process."""
    text = TEXT.format(flash.url, pro.url)
    with serving(text, (flash, pro), REDIS_URL=store) as (url, process):
        async with gateway(load_policy(text), open_store(store)) as here:
            yield here, Port(int(url.rpartition(":")[2])), process


async def test_500_identical_requests_over_two_processes_make_one_call(flash: Sim, pro: Sim, valkey: str) -> None:
    flash.config(stall_first=0.7)
    fields = [ASKED, ASKED | {"stream": True}]
    async with two(flash, pro, valkey) as (*ports, _):
        answers = await asyncio.gather(*(ports[n % 2].ask(fields[n // 2 % 2]) for n in range(500)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.data for answer in answers}) == 2
    kinds = [answer.headers["x-route-cache"] for answer in answers]
    assert kinds.count("miss") == 1
    assert kinds.count("coalesced") + kinds.count("hit") == 499
    assert len(flash.seen()) == 1


async def test_the_death_of_the_process_that_answers_elects_another(flash: Sim, pro: Sim, valkey: str) -> None:
    flash.config(stall_first=60.0)
    async with two(flash, pro, valkey) as (second, first, process):
        lost = [asyncio.create_task(first.ask(ASKED)) for _ in range(3)]
        await eventually(lambda: len(flash.seen()) == 1)
        waiting = [asyncio.create_task(second.ask(ASKED)) for _ in range(100)]
        await asyncio.sleep(0.2)
        flash.config(stall_first=0.0)  # for the next one
        process.kill()
        answers = await asyncio.gather(*waiting)
        assert {answer.status for answer in answers} == {200}
        assert len({answer.data for answer in answers}) == 1
        await asyncio.gather(*lost, return_exceptions=True)
    assert len(flash.seen()) == 2


# -- two stores in one process stand for two processes -----------------------------------------------------------------


def both(url: str, scenario: Callable[[Share, Share], Awaitable[None]]) -> None:
    async def main(one: Store) -> None:
        other = open_store(url)
        try:
            await scenario(partial(share, Flights(one)), partial(share, Flights(other)))
            await asyncio.sleep(0.05)
        finally:
            await other.close()

    on(url, main)


async def share(flights: Flights, server: Server) -> Reply:
    return await flights.share(
        Lock(b"key", secrets.token_bytes(8)),
        asked(body(temperature=0, stream=server.stream)),
        POLICY,
        server.make,
        Hold(flights._store),
    )


def running(data: bytes = WHOLE, **more: Any) -> Server:
    server = Server(data, stream=False, **more)
    server.run()
    return server


def test_a_follower_gets_the_entry_and_asks_nobody(valkey: str) -> None:
    async def scenario(one: Share, other: Share) -> None:
        slow, spare = Server(WHOLE, stream=False), running()
        leader = asyncio.create_task(one(slow))
        await eventually(lambda: slow.asked == 1)
        follower = asyncio.create_task(other(spare))
        await asyncio.sleep(0.1)
        slow.run()
        replies = [await leader, await follower]
        assert [reply.cache for reply in replies] == ["miss", "coalesced"]
        assert {await collected(reply) for reply in replies} == {WHOLE}
        assert replies[1].waited > 0
        assert spare.asked == 0

    both(valkey, scenario)


def test_a_leader_whose_callers_left_lets_the_next_in_at_once(valkey: str) -> None:
    async def scenario(one: Share, other: Share) -> None:
        slow, spare = Server(b"x", stream=False), running()
        leader = asyncio.create_task(one(slow))
        await eventually(lambda: slow.asked == 1)
        follower = asyncio.create_task(other(spare))
        await asyncio.sleep(0.1)
        leader.cancel()
        started = time.monotonic()
        assert await collected(await follower) == WHOLE
        assert time.monotonic() - started < HELD, "as long as the lock would have lasted"

    both(valkey, scenario)


@pytest.mark.parametrize("spoilt", [{"data": b'{"error": {}}'}, {"fails": UpstreamFailed("no")}])
def test_when_no_entry_comes_all_who_waited_ask_at_once(valkey: str, spoilt: JSON) -> None:
    async def scenario(one: Share, other: Share) -> None:
        slow, spare = running(**spoilt), running()
        slow.go = asyncio.Semaphore(0)
        leader = asyncio.create_task(one(slow))
        await eventually(lambda: slow.asked == 1)
        follower = asyncio.create_task(other(spare))
        await asyncio.sleep(0.1)
        slow.run()
        with contextlib.suppress(UpstreamFailed):
            await collected(await leader)
        reply = await follower
        assert (reply.cache, await collected(reply), spare.asked) == ("miss", WHOLE, 1)

    both(valkey, scenario)


def test_who_has_waited_long_enough_asks_for_itself(valkey: str) -> None:
    async def wait(store: Store) -> float:
        first = Claim(Locks(store), "ann", Lock(b"key", b"1"), Caching())
        second = Claim(Locks(store), "ann", Lock(b"key", b"2"), Caching(wait=0.1))
        started = time.monotonic()
        with first, second:
            assert await first.wait() is None
            assert await second.wait() is None
        return time.monotonic() - started

    assert 0.1 <= on(valkey, wait) < 30


def test_a_lock_is_renewed_while_its_process_lives(valkey: str) -> None:
    async def live(store: Store) -> bytes | None:
        with Claim(Locks(store), "ann", Lock(b"key", b"1"), Caching()) as claim:
            await claim.wait()
            await asyncio.sleep(1.7)
            return (await store.take_lock("ann", b"key", b"other", 1.0)).holder

    assert on(valkey, live) not in (None, b"other")


async def test_without_a_store_each_process_answers_by_itself() -> None:
    store = open_store("redis://127.0.0.1:1")
    reply = await share(Flights(store), running())
    assert (reply.cache, await collected(reply)) == ("miss", WHOLE)
    await store.close()


async def test_while_the_store_does_not_answer_identical_requests_to_one_process_make_one_call() -> None:
    store, go = open_store("redis://127.0.0.1:1"), asyncio.Event()
    async with scripted(plain(WHOLE), go=go) as (url, seen), gateway(load_policy(TEXT.format(url, url)), store) as gate:
        flights = gate.front.doors.flights._flights
        asking = [asyncio.create_task(gate.ask(ASKED)) for _ in range(9)]
        await eventually(lambda: [len(flight._seats) for flight in flights.values()] == [9])
        go.set()
        answers = await asyncio.gather(*asking)
    assert [answer.headers["x-route-cache"] for answer in answers].count("coalesced") == 8
    assert len(seen) == 1


@pytest.mark.parametrize(("size", "kept"), [(4 << 20, False), (3 << 19, False), (1 << 19, True)])
def test_an_answer_of_4_mb_is_not_stored_nor_one_that_stays_too_large(valkey: str, size: int, kept: bool) -> None:
    data = b'{"text": "' + base64.b64encode(os.urandom(size)) + b'", "finish_reason": "stop"}'

    async def keep(store: Store) -> None:
        assert await collected(await share(Flights(store), running(data))) == data
        end = time.monotonic() + (20 if kept else 0.15)
        while (found := await store.recall("ann", b"key")) is None and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (found is not None) == kept

    on(valkey, keep)


def test_50_callers_who_share_prompts_and_leave_never_see_a_byte_of_another(valkey: str) -> None:
    async def storm(one: Store) -> tuple[int, int]:
        other = open_store(valkey)
        flights = [Flights(one), Flights(other)]
        chance = random.Random(7)
        callers = [Caller(f"c{n}", f"c{n}", "usual", f"salt-of-c{n}") for n in range(50)]

        async def ask(caller: Caller, text: str, at: int) -> bool:
            request = asked(body(text, temperature=0, stream=chance.random() < 0.5), caller=caller)
            key = cache_key(request, POLICY)
            assert key is not None
            found = cached_reply(await (one, other)[at].recall(caller.id, key), key, request)
            mark = b'{"finish_reason": "stop", "of": "%s"}' % caller.id.encode()
            server = Server(mark, b" " * 64, stream=bool(request.fields.stream))
            server.run(10)
            reply = found or await flights[at].share(
                Lock(key, secrets.token_bytes(8)), request, POLICY, server.make, Hold((one, other)[at], caller.id)
            )
            data = await collected(reply)
            assert data.strip() == mark
            return True

        async def leave(task: asyncio.Task[bool]) -> bool:
            await asyncio.sleep(chance.random() * 0.01)
            return chance.random() < 0.5 and task.cancel()

        served = 0
        for n in range(20):
            tasks = [
                asyncio.create_task(ask(caller, f"prompt {n // 4}", n % 2)) for caller in callers for _ in range(2)
            ]
            await asyncio.gather(*(leave(task) for task in tasks))
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(end is True or isinstance(end, asyncio.CancelledError) for end in ends), ends
            served += sum(end is True for end in ends)
        await asyncio.sleep(0.1)
        await other.close()
        return served, 2000 - served

    served, left = on(valkey, storm)
    assert served > 500
    assert left > 100
