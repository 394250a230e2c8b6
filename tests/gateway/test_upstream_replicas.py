"""Several servers of one tier: who is asked when one fails, and what their own queues say."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from gateway.errors import Overloaded, UpstreamFailed
from gateway.http1 import Client, TransportError
from gateway.policy import Policy
from gateway.types import Caller
from gateway.upstream import Upstream
from gateway.upstream.balance import FEW
from gateway.upstream.breaker import FAILURES, FIRST_REST
from gateway.upstream.loads import Load, load
from gateway.upstream.places import Places
from gateway.upstream.queues import EVERY, Queues, ask
from gateway.upstream.replicas import FRESH, Replica, Replicas
from gateway.upstream.retry_budget import MOST, RATIO
from loadtest.servers import Sim, free_port
from tests.gateway.loopback import Peer, serving
from tests.gateway.serving import CHAT, asked, body, collected, eventually, plain, scripted, upstream
from tests.gateway.test_upstream import BOTH, FIRST, GOOD, NOWHERE, broke
from tests.tiers import policy_for

BOB = Caller("bob", "bob", "usual", "salt-of-bob")


def two(flash: Sim, other: str, **tier: Any) -> Policy:
    """A policy whose flash has two replicas."""
    return policy_for(flash, NOWHERE, tiers={"flash": {"replicas": [flash.url, other], **tier}})


def alias(sim: Sim) -> str:
    """Another URL of the same server."""
    return sim.url.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize(("on", "answered"), [(["5xx"], True), (["connect"], False)])
async def test_another_replica_answers_when_one_fails_before_the_first_byte(
    on: list[str], answered: bool, pro: Sim
) -> None:
    async with scripted(plain(b"", "500 Oh"), plain(GOOD)) as (url, seen), upstream() as door:
        tier = {"replicas": [url, url + "/two"], "balance": "round_robin"}
        policy = policy_for(Sim(url, "m"), pro, tiers={"flash": tier}, failover={"on": on})
        request = asked(body())
        reply = await door.send(request, FIRST, policy)
        if answered:
            assert (reply.tier, await collected(reply)) == ("flash", GOOD)
            assert len({head.split()[1] for head in seen}) == 2
        else:
            assert isinstance(await broke(reply), UpstreamFailed)
        calls = {(bill.void, bill.lost) for bill in request.bills}
        assert calls == ({(True, True), (False, False)} if answered else {(True, True)})


REFUSALS = [
    (plain(b"{}", "400 No"), 400),
    (plain(b"{}", "429 Slow", retry_after="7"), 429),
    (plain(b"{}", "500 Oh", x_should_retry="false"), 502),
    (plain(b"{}", "503 Busy", x_should_retry="false", retry_after="7"), 503),
    (plain(b"{}", "401 No"), 502),
    (plain(b"{}", "403 No"), 502),
]


@pytest.mark.parametrize(("answer", "status"), REFUSALS)
async def test_no_replica_is_asked_again_what_one_refused(answer: bytes, status: int) -> None:
    async with scripted(answer) as (url, seen), upstream() as door:
        policy = policy_for(Sim(url, "m"), NOWHERE, tiers={"flash": {"replicas": [url, url + "/two"]}})
        reply = await door.send(asked(body()), FIRST, policy)
        assert reply.status == status
        assert len(seen) == 1
        if status > 500:
            refusal = await broke(reply)
            assert dict(refusal.headers())[b"x-should-retry"] == b"false"
            assert refusal.code == ("upstream_auth" if b" No" in answer else refusal.code)
        if b"retry-after" in answer:
            headers = reply.headers or refusal.headers()
            assert dict(headers)[b"retry-after"] == b"7"
        await reply.close()


@pytest.mark.parametrize("balance", ["prefix_affinity", "round_robin"])
async def test_a_replica_that_says_when_to_come_back_is_asked_then_and_another_one_until_then(balance: str) -> None:
    busy = plain(b"{}", "429 Slow", retry_after="9")
    async with scripted(busy, plain(GOOD)) as (first, seen), scripted(*[plain(GOOD)] * 9) as (other, rest):
        tier = {"replicas": [first, other], "balance": balance}
        policy = policy_for(Sim(first, "m"), NOWHERE, tiers={"flash": tier})
        async with upstream() as door:
            told = []
            for turn in range(9):
                door._replicas.at(other).inflight = 9 if turn == 0 else 0
                reply = await door.send(asked(body(f"{turn}")), FIRST, policy)
                told.append(reply.status)
                await reply.close()
            assert (sorted(told), len(seen), len(rest)) == ([*[200] * 8, 429], 1, 8)
            replica = door._replicas.at(first)
            assert 8.0 < replica.busy - asyncio.get_running_loop().time() <= 9.0
            door._replicas.at(other).busy = replica.busy + 1
            assert door._replicas.choose(policy.tiers["flash"], 0, (), 0.0) is not None, "all are busy"
            assert door._replicas.choose(policy.tiers["flash"], 0, (), replica.busy) is replica


@pytest.mark.parametrize(("late", "least"), [(plain(GOOD), 0.0), (plain(b"{}", "429 Slow", retry_after="9"), 8.0)])
async def test_only_an_answer_asked_for_after_a_429_ends_the_time_that_it_told_to_wait(
    late: bytes, least: float
) -> None:
    answers, released = iter([late, plain(b"{}", "429 Slow", retry_after="2"), plain(GOOD)]), asyncio.Event()

    async def talk(peer: Peer) -> None:
        while await peer.request():
            answer = next(answers)
            await (released.wait() if peer.server.requests == 1 else asyncio.sleep(0))
            await peer.answer(answer)

    async with upstream() as door, serving(talk) as (_, origin, server):
        url = f"http://{origin.authority}"
        policy, replica = policy_for(Sim(url, "m"), NOWHERE), door._replicas.at(url)
        before = asyncio.create_task(door.send(asked(body()), FIRST, policy))
        await eventually(lambda: server.requests == 1)
        assert (await door.send(asked(body()), FIRST, policy)).status == 429
        released.set()
        await before
        assert replica.busy - asyncio.get_running_loop().time() > least
        assert ((await door.send(asked(body()), FIRST, policy)).status, replica.busy) == (200, 0.0)


async def test_an_answer_does_not_follow_its_question_to_a_replica_that_was_busy(flash: Sim) -> None:
    async with scripted(plain(b"{}", "429 Slow", retry_after="9")) as (url, seen), upstream() as door:
        policy = two(flash, url)
        request = asked(body())
        door._replicas.at(flash.url).inflight += 9
        with await door.ask(request, CHAT, b"{}", policy, 5.0) as said:
            assert (said.status, len(seen)) == (429, 1)
        door._replicas.at(flash.url).inflight -= 9
        reply = await door.send(request, FIRST, policy)
        assert (reply.status, len(flash.seen())) == (200, 1)
        await reply.close()


async def test_a_replica_that_fails_is_left_alone_and_comes_back_by_one_probe(flash: Sim) -> None:
    flash.config(status=500)
    async with scripted(*[plain(GOOD)] * 30) as (url, _), upstream() as door:
        policy = two(flash, url, balance="round_robin")
        for turn in range(2 * FAILURES):
            reply = await door.send(asked(body(), caller=BOB) if turn % 4 < 2 else asked(body()), FIRST, policy)
            assert reply.status == 200, "the other replica answers"
            await reply.close()
        failed = len(flash.seen())
        assert door.states(policy)["flash"].up == (False, True)
        for _ in range(6):
            await (await door.send(asked(body()), FIRST, policy)).close()
        assert len(flash.seen()) == failed == FAILURES
        flash.reset()
        door._replicas.at(flash.url).breaker._until -= FIRST_REST
        for _ in range(6):
            await (await door.send(asked(body()), FIRST, policy)).close()
        assert door.states(policy)["flash"].up == (True, True)
        assert len(flash.seen()) >= 3


@pytest.mark.parametrize(
    ("answer", "why"),
    [(b"garbage", "the server's answer is not HTTP"), (plain(b"", "500 No"), "(status 500)"), (plain(b"{"), "JSON")],
)
async def test_the_log_says_why_a_replica_is_left_alone(
    caplog: pytest.LogCaptureFixture, answer: bytes, why: str
) -> None:
    async with scripted(*[answer] * FAILURES) as (url, _), upstream() as door:
        for _ in range(FAILURES):
            await door.send(asked(body()), FIRST, policy_for(Sim(url, "m"), NOWHERE))
        (line,) = (record.getMessage() for record in caplog.records)
        assert "fails and is left alone" in line
        assert why in line


async def test_the_last_replica_is_asked_however_often_it_failed_and_bad_requests_are_no_failures(flash: Sim) -> None:
    policy = policy_for(flash, NOWHERE)
    async with upstream() as door:
        for status, up in ((422, True), (500, False)):
            flash.config(status=status)
            for _ in range(2 * FAILURES):
                await (await door.send(asked(body()), FIRST, policy)).close()
            assert door.states(policy)["flash"].up == (up,)
        flash.reset()
        await (await door.send(asked(body()), FIRST, policy)).close()
        assert door.states(policy)["flash"].up == (True,)


@pytest.mark.parametrize(("status", "told"), [(500, 502), (429, 429)])
async def test_where_everything_fails_calls_are_hardly_multiplied(flash: Sim, pro: Sim, status: int, told: int) -> None:
    for sim in (flash, pro):
        sim.config(status=status, retry_after=7.0)
    turns: Any = {"balance": "round_robin"}
    both = {sim.model.partition("-")[0]: turns | {"replicas": [sim.url, alias(sim)]} for sim in (flash, pro)}
    policy = policy_for(flash, pro, tiers=both)
    async with upstream() as door:
        for turn in range(100):
            caller = BOB if turn % 2 else asked(body()).caller
            assert (await door.send(asked(body(), caller=caller), BOTH, policy)).status == told
        assert 100 < len(flash.seen()) + len(pro.seen()) <= 130


async def test_of_calls_that_fail_now_and_then_a_tenth_is_tried_again() -> None:
    calls, some = 120, [plain(b"{}", "500 Oh"), *[plain(GOOD)] * 3]
    async with scripted(*some * calls) as (url, seen), upstream() as door:
        policy = policy_for(Sim(url, "m"), NOWHERE, tiers={"flash": {"replicas": [url, url + "/two"]}})
        for _ in range(calls):
            await (await door.send(asked(body()), FIRST, policy)).close()
        assert calls + MOST < len(seen) <= calls * (1 + RATIO) + MOST + 1


async def questions(door: Upstream, policy: Policy, seconds: float) -> tuple[bool, ...]:
    """Asks as often as a server may fail; which of the tier's servers are asked still."""
    sent = json.dumps(body(model=policy.tiers["flash"].model)).encode()
    for _ in range(FAILURES):
        with suppress(TransportError), await door.ask(asked(body()), CHAT, sent, policy, seconds):
            pass
    return door.states(policy)["flash"].up


async def test_questions_that_fail_leave_a_server_alone_and_those_that_take_too_long_do_not(flash: Sim) -> None:
    policy, gone = policy_for(flash, NOWHERE), Sim(f"http://127.0.0.1:{free_port()}", "m")
    async with upstream() as door:
        flash.config(stall_first=60.0)
        assert await questions(door, policy, 0.01) == (True,)
        flash.config(stall_first=0.0, status=500)
        assert await questions(door, policy, 5.0) == (False,)
        assert await questions(door, policy_for(gone, NOWHERE), 5.0) == (False,)


async def test_a_busy_tier_is_tried_again_as_soon_as_it_answers(flash: Sim) -> None:
    flash.config(status=500)
    some = [plain(b"{}", "429 Busy", retry_after="9"), *[plain(GOOD)] * 30]
    async with scripted(*some) as (url, _), upstream() as door:
        policy = policy_for(flash, Sim(url, "m"))
        for turn in range(len(some)):
            reply = await door.send(asked(body()), BOTH, policy)
            assert reply.status == (200 if turn else 429)
            await reply.close()


async def test_a_probe_that_is_left_makes_room_for_the_next(flash: Sim) -> None:
    policy = policy_for(flash, NOWHERE)
    async with upstream() as door:
        flash.config(status=500)
        for _ in range(FAILURES):
            await (await door.send(asked(body()), FIRST, policy)).close()
        breaker = door._replicas.at(flash.url).breaker
        breaker._until -= FIRST_REST
        flash.reset()
        flash.config(stall_first=30.0)
        task = asyncio.create_task(door.send(asked(body()), FIRST, policy))
        await eventually(lambda: bool(flash.seen()))
        assert not breaker.lets(asyncio.get_running_loop().time())
        task.cancel()
        await asyncio.wait([task])
        assert breaker.lets(asyncio.get_running_loop().time())


SAID = b"""# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 100.0
vllm:num_requests_running{engine="0",model_name="m"} 50.0
"""


@pytest.mark.parametrize(
    ("text", "count"),
    [(SAID, 7), (b"vllm:num_requests_waiting 2", 2), (SAID.replace(b"waiting{", b"swapped{"), None), (b"", None),
     (b"<html>", None), (b"vllm:num_requests_waiting{} e", None), (b"vllm:num_requests_waiting{} 1e999", None)],
)  # fmt: skip
def test_a_queue_is_summed_over_engines_and_unknown_without_its_name(text: bytes, count: int | None) -> None:
    assert load(text).waiting == count


CACHED = b"""vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:prefix_cache_hits_total{engine="0"} 30.0
vllm:prefix_cache_hits_total{engine="1"} 10.0
vllm:prefix_cache_queries_total{engine="0"} 60.0
vllm:prefix_cache_queries_total{engine="1"} 40.0
"""


def test_a_servers_cache_is_that_of_its_fullest_engine_and_its_hits_are_a_part_of_what_was_looked_up() -> None:
    assert load(CACHED) == Load(kv_cache=0.5, prefix_hits=0.4)
    idle = CACHED.replace(b"60.0", b"0").replace(b"40.0", b"0")
    for text in (CACHED.replace(b"hits", b"hints"), CACHED.replace(b"queries", b"asked"), idle):
        assert load(text) == Load(kv_cache=0.5)


SGLANG = b"""sglang:num_queue_reqs{dp_rank="0"} 3.0
sglang:num_queue_reqs{dp_rank="1"} 4.0
sglang:num_grammar_queue_reqs{dp_rank="0"} 9.0
sglang:num_running_reqs{dp_rank="0"} 16.0
sglang:token_usage{dp_rank="0"} 0.25
sglang:token_usage{dp_rank="1"} 0.5
sglang:cached_tokens_total{cache_source="device"} 30.0
sglang:cached_tokens_total{cache_source="host"} 10.0
sglang:prompt_tokens_total{is_streaming="false"} 60.0
sglang:prompt_tokens_total{is_streaming="true"} 40.0
sglang:fwd_occupancy{dp_rank="0"} NaN
"""


def test_sglang_tells_the_same_by_names_of_its_own() -> None:
    assert load(SGLANG) == Load(running=16, waiting=7, kv_cache=0.5, prefix_hits=0.4)


def test_the_shortest_queue_is_asked_while_all_are_known_else_who_has_least_in_flight(flash: Sim, pro: Sim) -> None:
    tier = two(flash, pro.url, balance="least_waiting").tiers["flash"]
    replicas = Replicas()
    one, other = replicas.of(tier)
    other.inflight = 5
    assert replicas.choose(tier, 1, (), 0.0) is one, "unknown queues are not compared"
    one.told(9, 0.0)
    other.told(0, 0.0)
    assert replicas.choose(tier, 1, (), 0.0) is other
    other.inflight += 12
    assert replicas.choose(tier, 1, (), 0.0) is one, "what we sent since the reading counts"
    other.inflight -= 12
    assert replicas.choose(tier, 1, (), FRESH) is one, "an old reading is none"


async def test_queues_are_read_from_servers_and_what_cannot_be_read_stays_unknown(flash: Sim) -> None:
    both = {"replicas": [flash.url, NOWHERE.url], "balance": "least_waiting"}
    policy = policy_for(flash, NOWHERE, tiers={"flash": both})
    async with upstream() as door:
        assert door.waiting(policy) == {}
        await eventually(lambda: door.waiting(policy) == {"flash": 0})
        assert door._replicas.at(NOWHERE.url).waiting(asyncio.get_running_loop().time()) is None


async def test_a_server_that_does_not_tell_its_queue_is_asked_in_vain_and_that_is_all() -> None:
    client = Client()
    async with scripted(plain(b"vllm:num_requests_running 2"), plain(b"", "404 Not Found")) as (url, seen):
        for one in (Replica(url), Replica(url), Replica(NOWHERE.url)):
            await ask(client, one)
            assert one.waiting(asyncio.get_running_loop().time()) is None
        assert len(seen) == 2
    client.close()


async def test_servers_at_whose_queues_nobody_looks_any_more_are_left_in_peace() -> None:
    text = plain(b"vllm:num_requests_waiting 2")
    async with scripted(*[text] * 9) as (url, seen):
        client, replica = Client(), Replica(url)
        queues = Queues(client, lapse=0.5)
        watched, now = {Places("flash"): [replica]}, asyncio.get_running_loop().time

        def reads(more: int) -> bool:
            queues.look(watched)
            return replica.waiting(now()) == 2 and len(seen) >= more

        await eventually(lambda: reads(1))
        found = len(seen)
        await asyncio.sleep(2.5 * EVERY)
        assert len(seen) <= found + 1, "one that was due already"
        await eventually(lambda: reads(found + 2))
        await queues.close()
        client.close()


async def test_a_conversation_leaves_its_replica_when_that_is_crowded(flash: Sim) -> None:
    flash.config(stall_after=1)
    policy = two(flash, alias(flash))
    async with upstream() as door:
        held = [await door.send(asked(body(stream=True)), FIRST, policy) for _ in range(8)]
        counts = sorted(replica.inflight for replica in door._replicas.of(policy.tiers["flash"]))
        assert counts in ([3, 5], [4, 4])
        await asyncio.gather(*(anext(reply.chunks) for reply in held))
        for reply in held:
            await reply.close()


async def test_an_answer_goes_where_its_question_went_though_that_replica_is_crowded(flash: Sim) -> None:
    policy = two(flash, alias(flash))
    async with upstream() as door:
        for text in "abcdefgh":
            request = asked(body(text, stream=True))
            with await door.ask(request, CHAT, b"{}", policy, 5.0):
                (home,) = (one for one in door._replicas.of(policy.tiers["flash"]) if one.inflight)
                home.inflight += FEW
                reply = await door.send(request, FIRST, policy)
                assert home.inflight == FEW + 2
                await reply.close()
                home.inflight -= FEW


async def test_an_answer_does_not_follow_its_question_to_a_replica_that_is_left_alone(flash: Sim) -> None:
    policy = two(flash, alias(flash))
    async with upstream() as door:
        request = asked(body(stream=True))
        with await door.ask(request, CHAT, b"{}", policy, 5.0):
            (home,) = (one for one in door._replicas.of(policy.tiers["flash"]) if one.inflight)
        for _ in range(FAILURES):
            home.breaker.failed(None, asyncio.get_running_loop().time(), trial=False)
        reply = await door.send(request, FIRST, policy)
        assert (reply.status, home.inflight) == (200, 0)
        await reply.close()


async def test_a_full_tier_lets_requests_wait_for_a_place(flash: Sim, pro: Sim) -> None:
    limits = {"max_inflight": 1, "queue": 1, "queue_timeout": "5s"}
    policy = policy_for(flash, pro, tiers={"flash": {"limits": limits}})
    flash.config(stall_after=1)
    async with upstream() as door:
        held = await door.send(asked(body(stream=True)), FIRST, policy)
        flash.reset()
        waits = asyncio.create_task(door.send(asked(body()), FIRST, policy))
        await eventually(lambda: door.states(policy)["flash"].queued == 1)
        assert isinstance(await broke(await door.send(asked(body()), FIRST, policy)), Overloaded)
        left = asyncio.create_task(door.send(asked(body()), FIRST, policy))
        left.cancel()
        await asyncio.wait([left])
        assert not waits.done()
        await held.close()
        reply = await waits
        assert json.loads(await collected(reply))["choices"]
        assert reply.waited > 0


def test_the_door_needs_no_loop_to_tell_its_states(flash: Sim, pro: Sim) -> None:
    assert Upstream(None).states(two(flash, pro.url))["flash"].up == (True, True)  # type: ignore[arg-type]
