import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from gateway.admission import new_key
from gateway.cache import AHEAD, Flights, lookup, replay, worth_keeping
from gateway.errors import UpstreamFailed
from gateway.policy import Policy
from gateway.store import VALUE_LIMIT, MemoryStore
from gateway.types import Caller, Decision, Facts, Reply, Route, Usage, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, asked, body, collected, eventually, gateway, watched
from tests.tiers import JSON, policy_for

FLASH, PRO = Sim("http://127.0.0.1:1", "flash-model"), Sim("http://127.0.0.1:2", "pro-model")
POLICY = policy_for(FLASH, PRO, caching={"ttl": "1m"})
BASE = body(temperature=0, seed=1, max_tokens=5, stop=["x"], metadata={"a": 1}, tools=[], stream=False)
ROUTE = Route(("flash", "pro"), "r", "rule")
DECISION = Decision(Facts("auto", "ann", "usual"), None, ROUTE)


def key(fields: JSON, policy: Policy = POLICY, path: str = CHAT, tier: str | None = None) -> bytes | None:
    return lookup(asked(fields, path, headers={"x-route-tier": tier} if tier else None), policy)


def test_the_same_request_has_the_same_key_whatever_the_order_of_its_members() -> None:
    assert key(BASE) == key(dict(reversed(BASE.items())))
    assert key(BASE) == key(BASE | {"user": "u", "safety_identifier": "s", "priority": 3, "stop_token_ids": None})


@pytest.mark.parametrize("name", [*BASE, "logprobs", "chat_template_kwargs", "cache_salt", "anything"])
def test_every_member_that_differs_misses(name: str) -> None:
    other: Any = {"temperature": -0.5, "messages": body("other")["messages"], "tools": None, "stream": True}
    changed = BASE | {name: other.get(name, "other" if name in ("model", "cache_salt") else {"new": 1})}
    if name in ("seed", "max_tokens"):
        changed[name] = 2
    assert key(changed) not in (None, key(BASE))


def test_callers_plans_policies_paths_models_and_routing_headers_miss() -> None:
    bob, salted = Caller("bob", "bob", "usual", "salt-of-bob"), Caller("ann", "ann", "other", "salt-of-ann")
    renamed, again = (
        policy_for(FLASH, Sim(PRO.url, "${MODEL}"), caching={"ttl": "1m"}, env={"MODEL": name}) for name in "ab"
    )
    assert renamed.digest == again.digest
    keys = [
        key(BASE),
        lookup(asked(BASE, caller=bob), POLICY),
        lookup(asked(BASE, caller=salted), POLICY),
        key(BASE, renamed),
        key(BASE, again),
        key(BASE, policy_for(FLASH, PRO, caching={"ttl": "2m"})),
        key(BASE, tier="pro"),
        key({"prompt": "x", "temperature": 0}, path="/v1/completions"),
        key({"messages": [], "prompt": "x", "temperature": 0}, path="/v1/completions"),
    ]
    assert len(set(keys)) == len(keys)
    assert None not in keys


@pytest.mark.parametrize("fields", [body(), body(temperature=0.7), body(temperature=0, tools=[{"type": "function"}])])
def test_what_is_not_meant_to_repeat_is_not_remembered(fields: JSON) -> None:
    assert key(fields) is None
    assert key(BASE, policy_for(FLASH, PRO)) is None


def test_what_cannot_be_read_is_a_miss() -> None:
    for data in (None, b"", b"garbage", msgspec.msgpack.encode([200]), msgspec.msgpack.encode({"a": 1})):
        assert replay(data) is None


def a_reply(data: bytes = b'{"choices": []}', **fields: Any) -> Reply:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield data

    reply = Reply(200, [(b"content-type", b"application/json"), (b"x-secret", b"1")], chunks(), False, "flash", nothing)
    reply.decided(DECISION)
    for name, value in fields.items():
        setattr(reply, name, value)
    return reply


async def nothing() -> None:
    pass


def test_only_a_sound_answer_of_the_tier_that_was_chosen_is_worth_keeping() -> None:
    data = b'{"choices": []}'
    assert worth_keeping(a_reply(), data)
    assert not worth_keeping(a_reply(), b'{"error": {}}')
    assert not worth_keeping(a_reply(), data + b" " * VALUE_LIMIT)
    assert not worth_keeping(a_reply(status=400), data)
    assert not worth_keeping(a_reply(usage=Usage(failed=True)), data)
    assert not worth_keeping(a_reply(tier="pro"), data), "failover's"
    unsure = Decision(DECISION.facts, Verdict(None, None, "timeout"), ROUTE)
    assert not worth_keeping(a_reply(decision=unsure), data), "nobody knows whether Flash is enough"


# -- flights -----------------------------------------------------------------------------------------------------------


class Server:
    """Makes replies of `chunks`, each when `go` lets it; counts what it was asked and how often it was closed."""

    def __init__(self, *chunks: bytes, stream: bool = True, fails: Exception | None = None) -> None:
        self.chunks, self.stream, self.fails = chunks, stream, fails
        self.asked = self.closed = self.sent = 0
        self.go = asyncio.Semaphore(0)

    async def make(self) -> Reply:
        self.asked += 1
        await self.go.acquire()
        if self.fails and not self.chunks:
            raise self.fails
        reply = a_reply(stream=self.stream)
        reply.chunks, reply.shut = self._chunks(), self._close
        return reply

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        for chunk in self.chunks:
            await self.go.acquire()
            self.sent += 1
            yield chunk
        if self.fails:
            raise self.fails

    async def _close(self) -> None:
        self.closed += 1

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            self.go.release()


Share = Callable[[Server], Coroutine[Any, Any, Reply]]


def flying(scenario: Callable[[Share, MemoryStore], Awaitable[None]], store: MemoryStore | None = None) -> None:
    """Runs a scenario over one Flights and one key; nothing may be left over."""

    async def main() -> None:
        troubles, kept = watched(), store or MemoryStore()
        flights, request = Flights(kept), asked(BASE)

        async def share(server: Server) -> Reply:
            return await flights.share(b"key", request, POLICY, server.make)

        await scenario(share, kept)
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        await eventually(lambda: flights._flights == {})
        assert troubles == []

    asyncio.run(main())


def test_200_identical_requests_make_one_call_and_all_get_every_byte(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        flash.config(only="answer", stall_first=0.3)
        async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
            fields = body(temperature=0, stream=True, model="flash")
            answers = await asyncio.gather(*(gate.ask(fields) for _ in range(200)))
            assert len(flash.seen()) == 1
            assert len({answer.data for answer in answers}) == 1
            assert answers[0].events()[-1] == b"[DONE]"
            kinds = [answer.headers["x-route-cache"] for answer in answers]
            assert (kinds.count("miss"), kinds.count("coalesced")) == (1, 199)
            assert (await gate.ask(fields)).headers["x-route-cache"] == "hit"
            assert all(float(answer.headers["x-gateway-overhead-ms"]) >= 0 for answer in answers)

    asyncio.run(main())


def test_the_leader_may_leave_and_the_others_get_everything(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        flash.config(only="answer", drip=0.001, drip_bytes=64)
        async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
            fields = body(temperature=0, stream=True, model="flash")
            leader = await gate.open(fields)
            await leader.some()
            followers = [asyncio.create_task(gate.ask(fields)) for _ in range(20)]
            await asyncio.sleep(0.05)
            await leader.leave(reset=True)
            answers = [await follower for follower in followers]
            assert {answer.events()[-1] for answer in answers} == {b"[DONE]"}
            assert len({answer.data for answer in answers}) == 1
            assert [entry["state"] for entry in flash.seen()] == ["finished"]

    asyncio.run(main())


def test_when_all_have_left_the_server_is_stopped_and_the_next_one_starts_anew(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        flash.config(only="answer", stall_after=3)
        async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
            fields = body(temperature=0, stream=True, model="flash")
            lines = [await gate.open(fields) for _ in range(3)]
            for line in lines:
                await line.some()
            for line in lines:
                assert flash.seen()[0]["state"] == "running"
                await line.leave()
            assert await eventually(lambda: flash.seen()[0]["state"] == "aborted") < 0.5
            flash.config(stall_after=None)
            assert (await gate.ask(fields)).headers["x-route-cache"] == "miss"

    asyncio.run(main())


def test_a_follower_who_leaves_disturbs_nobody() -> None:
    async def scenario(share: Share, _: MemoryStore) -> None:
        server = Server(b"a", b"b")
        leader, follower = asyncio.create_task(share(server)), asyncio.create_task(share(server))
        await asyncio.sleep(0.01)
        follower.cancel()
        await asyncio.wait([follower])
        server.run()
        assert await collected(await leader) == b"ab"
        assert (server.asked, server.closed) == (1, 1)

    flying(scenario)


def test_a_failure_is_everyones_but_not_the_next_ones() -> None:
    async def scenario(share: Share, _: MemoryStore) -> None:
        server = Server(fails=UpstreamFailed("no"))
        both = [asyncio.create_task(share(server)) for _ in range(2)]
        await asyncio.sleep(0.01)
        server.run()
        for task in both:
            with pytest.raises(UpstreamFailed):
                await task
        good = Server(b"x")
        good.run()
        assert await collected(await share(good)) == b"x"

    flying(scenario)


def test_a_bug_while_answering_is_told_and_leaves_no_unread_exception() -> None:
    async def scenario(share: Share, _: MemoryStore) -> None:
        server = Server(fails=ZeroDivisionError("a bug"))
        server.run()
        with pytest.raises(ZeroDivisionError):
            await share(server)
        late = Server(b"x", fails=ZeroDivisionError("a bug"))
        late.run()
        reply = await share(late)
        with pytest.raises(ZeroDivisionError):
            await collected(reply)
        assert late.closed == 1

    flying(scenario)


def test_an_answer_that_breaks_is_told_to_all_and_not_remembered() -> None:
    async def scenario(share: Share, store: MemoryStore) -> None:
        server = Server(b'{"choices"', fails=UpstreamFailed("cut"))
        replies = [asyncio.create_task(share(server)) for _ in range(2)]
        await asyncio.sleep(0.01)
        server.run()
        for task in replies:
            with pytest.raises(UpstreamFailed):
                await collected(await task)
        await asyncio.sleep(0.01)
        assert await store.recall("ann", b"key") is None

    flying(scenario)


def test_an_answer_is_remembered_though_the_store_is_slower_than_the_caller() -> None:
    class SlowStore(MemoryStore):
        async def remember(self, *args: Any) -> None:
            await asyncio.sleep(0.05)
            await super().remember(*args)

    store = SlowStore()

    async def scenario(share: Share, _: MemoryStore) -> None:
        server = Server(b'{"choices": []}', stream=False)
        server.run()
        assert await collected(await share(server)) == b'{"choices": []}'
        assert server.closed == 1, "the server's connection does not wait for the store"
        await eventually(lambda: store._cache != {})
        hit = replay(await store.recall("ann", b"key"))
        assert hit is not None
        assert (hit.cache, hit.headers) == ("hit", [(b"content-type", b"application/json")])
        assert (hit.route, await collected(hit)) == (Route(("flash",), "r", "cache"), b'{"choices": []}')

    flying(scenario, store)


def test_a_slow_reader_does_not_grow_memory() -> None:
    async def scenario(share: Share, store: MemoryStore) -> None:
        server = Server(*[b'"choices"'.ljust(65536)] * 200)
        leader, slow = await asyncio.gather(asyncio.create_task(begun(share, server)), begun(share, server))
        got = asyncio.create_task(collected(leader))
        await asyncio.sleep(0.05)
        assert server.sent * 65536 <= VALUE_LIMIT + AHEAD + 2 * 65536, "it waits for the slowest"
        assert len(await collected(slow)) == 200 * 65536
        assert len(await got) == 200 * 65536
        assert await store.recall("ann", b"key") is None

    flying(scenario)


async def begun(share: Share, server: Server) -> Reply:
    server.run()
    return await share(server)


def test_a_slow_reader_who_leaves_frees_the_others() -> None:
    async def scenario(share: Share, _: MemoryStore) -> None:
        server = Server(*[b"x" * 65536] * 100)
        leader, slow = await asyncio.gather(begun(share, server), begun(share, server))
        got = asyncio.create_task(collected(leader))
        await asyncio.sleep(0.05)
        assert not got.done()
        await slow.close()
        assert len(await got) == 100 * 65536

    flying(scenario)


def test_one_callers_answers_are_never_anothers(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        store = MemoryStore()
        keys = []
        for name in ("ann", "bob"):
            secret, record = new_key(await store.secret(), name, None)
            await store.put_key(record)
            keys.append(f"Bearer {secret}")
        async with gateway(policy_for(flash, pro, caching={"ttl": "1m"}), store, everyone=False) as gate:
            fields = body(temperature=0, model="flash")
            flash.config(stall_first=0.1)
            together = await asyncio.gather(*(gate.ask(fields, authorization=key) for key in keys))
            again = [await gate.ask(fields, authorization=key) for key in keys]
        assert [answer.headers["x-route-cache"] for answer in together] == ["miss", "miss"]
        assert [answer.headers["x-route-cache"] for answer in again] == ["hit", "hit"]
        assert len(flash.seen()) == 2
        salts = {json.loads(entry["body"])["cache_salt"] for entry in flash.seen()}
        assert len(salts) == 2

    asyncio.run(main())


def test_what_failover_or_a_missing_verdict_gave_is_asked_again(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
            fields = body(temperature=0)
            flash.config(only="triage", verdict="garbage")
            assert (await gate.ask(fields)).headers["x-route-reason"] == "parse"
            flash.config(only="answer", verdict=None, status=500)
            assert (await gate.ask(fields)).headers["x-route-tier"] == "pro"
            flash.config(status=None)
            assert [(await gate.ask(fields)).headers["x-route-cache"] for _ in range(2)] == ["miss", "hit"]

    asyncio.run(main())
