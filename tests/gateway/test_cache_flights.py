import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import nullcontext
from typing import Any

import pytest

from gateway.cache import Flights, cached_reply
from gateway.cache.entry import LONGEST
from gateway.cache.flights import AHEAD, worth_keeping
from gateway.dialects import CHAT, DIALECTS
from gateway.done import DONE
from gateway.errors import UpstreamFailed
from gateway.reply import Reply
from gateway.store import Kept, Lock, MemoryStore, Store
from gateway.stream import Pieces
from gateway.types import Decision, Facts, Route, Usage, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import PATIENCE, asked, body, collected, eventually, gateway, parsed, watched
from tests.tiers import policy_for

FLASH, PRO = Sim("http://127.0.0.1:1", "flash-model"), Sim("http://127.0.0.1:2", "pro-model")
POLICY = policy_for(FLASH, PRO, caching={"ttl": "1m"})
REQUEST, STREAM = asked(body(temperature=0)), asked(body(temperature=0, stream=True))
ROUTE = Route(("flash", "pro"), "r", "rule")
DECISION = Decision(Facts("auto", "ann", "usual"), None, ROUTE)


WHOLE = b'{"choices": [{"finish_reason": "stop"}]}'
END = b'"finish_reason":"stop"'


def a_reply(data: bytes = WHOLE, **fields: Any) -> Reply:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield data

    reply = Reply(200, [(b"content-type", b"application/json"), (b"x-secret", b"1")], chunks(), False, "flash", nothing)
    reply.decided(DECISION)
    for name, value in fields.items():
        setattr(reply, name, value)
    return reply


async def nothing() -> None:
    pass


def kept(reply: Reply, data: bytes, path: str = CHAT) -> bool:
    return worth_keeping(reply, data, DIALECTS[path].answers)


def test_only_a_sound_answer_of_the_tier_that_was_chosen_is_worth_keeping() -> None:
    data = WHOLE
    assert kept(a_reply(), data)
    assert not kept(a_reply(), b'{"error": {}}')
    assert not kept(a_reply(), data + b" " * LONGEST)
    assert not kept(a_reply(status=400), data)
    assert not kept(a_reply(usage=Usage(failed=True)), data)
    assert not kept(a_reply(tier="pro"), data), "failover's"
    unsure = Decision(DECISION.facts, Verdict(None, None, "timeout"), ROUTE)
    assert not kept(a_reply(decision=unsure), data), "nobody knows whether Flash is enough"


def test_an_answer_without_an_end_is_not_worth_keeping_where_its_dialect_tells_of_ends() -> None:
    begun, ended = b'{"message":{"stop_reason":null}}', b'{"delta":{"stop_reason" : "max_tokens"}}'
    answers = {begun + ended: True, ended: True, begun: False, b"{}": False}
    assert {data: kept(a_reply(), data, "/v1/messages") for data in answers} == answers
    wholes = {
        "/v1/messages/count_tokens": b'{"input_tokens": 5}',
        "/v1/embeddings": b'{"data": []}',
        "/v1/responses": b'{"output": []}',
    }
    for path, data in wholes.items():
        assert [kept(a_reply(), one, path) for one in (data, b'{"object": 5}')] == [True, False], path


class Hold(nullcontext[None]):
    """An admission of `caller`, of which only what it remembers is looked at."""

    def __init__(self, store: Store, caller: str = "ann") -> None:
        super().__init__()
        self.store, self.caller = store, caller

    def settle(self, kept: Kept) -> None:
        self.store.settle(self.caller, "", kept=kept)


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
        reply.body, reply.shut = self._chunks(), self._close
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


class Poured(Pieces):
    """Makes a stream of which the first piece is asked for, and the others are poured, save the last."""

    stream = True

    def __init__(self, *pieces: bytes) -> None:
        self.pieces, self.sink = list(pieces), asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

    async def make(self) -> Reply:
        return a_reply(stream=True, body=self)

    async def __anext__(self) -> bytes:
        return self.pieces.pop(0)

    async def pour(self, sink: Callable[[bytes], bool]) -> bytes | None:
        self.sink.set_result(sink)
        await self.over.wait()
        return self.pieces.pop()


Share = Callable[[Server | Poured], Coroutine[Any, Any, Reply]]


def flying(scenario: Callable[[Share, MemoryStore], Awaitable[None]], store: MemoryStore | None = None) -> None:
    """Runs a scenario over one Flights and one key; nothing may be left over."""

    async def main() -> None:
        troubles, kept = watched(), store or MemoryStore()
        flights, tokens = Flights(kept), itertools.count()

        async def share(server: Server | Poured) -> Reply:
            return await flights.share(
                Lock(b"key", b"%d" % next(tokens)),
                STREAM if server.stream else REQUEST,
                POLICY,
                server.make,
                Hold(kept),
            )

        await scenario(share, kept)
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        await eventually(lambda: flights._flights == {})
        assert troubles == []

    asyncio.run(main())


async def test_200_identical_requests_make_one_call_and_all_get_every_byte(flash: Sim, pro: Sim) -> None:
    flash.config(only="answer", stall_first=0.3)
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        fields = body(temperature=0, stream=True, model="flash")
        answers = await asyncio.gather(*(gate.ask(fields) for _ in range(200)))
        assert len(flash.seen()) == 1
        assert len({answer.data for answer in answers}) == 1
        assert answers[0].events()[-1] == b"[DONE]"
        kinds = [answer.headers["x-route-cache"] for answer in answers]
        assert "coalesced" in kinds
        assert (kinds.count("miss"), kinds.count("coalesced") + kinds.count("hit")) == (1, 199)
        assert (await gate.ask(fields)).headers["x-route-cache"] == "hit"
        assert all(float(answer.headers["x-gateway-overhead-ms"]) >= 0 for answer in answers)


async def test_the_leader_may_leave_and_the_others_get_everything(flash: Sim, pro: Sim) -> None:
    flash.config(only="answer", drip=0.001, drip_bytes=64)
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        fields = body(temperature=0, stream=True, model="flash")
        leader = await gate.open(fields)
        await leader.some()
        followers = [await gate.open(fields) for _ in range(20)]
        starts = [await follower.some() for follower in followers]
        await leader.leave(reset=True)
        answers = [parsed(start + await line.reader.read()) for start, line in zip(starts, followers, strict=True)]
        for follower in followers:
            await follower.leave()
        assert {answer.events()[-1] for answer in answers} == {b"[DONE]"}
        assert len({answer.data for answer in answers}) == 1
        assert [entry["state"] for entry in flash.seen()] == ["finished"]


async def test_when_all_have_left_the_server_is_stopped_and_the_next_one_starts_anew(flash: Sim, pro: Sim) -> None:
    flash.config(only="answer", stall_after=3)
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        fields = body(temperature=0, stream=True, model="flash")
        lines = [await gate.open(fields) for _ in range(3)]
        for line in lines:
            await line.some()
        for line in lines:
            assert flash.seen()[0]["state"] == "running"
            await line.leave()
        await eventually(lambda: flash.seen()[0]["state"] == "aborted")
        flash.config(stall_after=None)
        assert (await gate.ask(fields)).headers["x-route-cache"] == "miss"


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


def test_who_boards_a_flight_gives_its_own_lock_back() -> None:
    async def main(store: MemoryStore, flights: Flights) -> None:
        server = Server(b"x", stream=False)
        server.run()
        await store.take_lock("ann", b"key", b"his", 60.0)
        first = asyncio.create_task(flights.share(Lock(b"key", b"mine"), REQUEST, POLICY, server.make, Hold(store)))
        await asyncio.sleep(0)
        second = flights.share(Lock(b"key", b"his", b"his"), REQUEST, POLICY, server.make, Hold(store))
        replies = await asyncio.wait_for(asyncio.gather(first, second), PATIENCE)
        assert [await collected(reply) for reply in replies] == [b"x", b"x"]

    kept = MemoryStore()
    asyncio.run(main(kept, Flights(kept)))


async def read(reply: Reply, most: int) -> tuple[list[bytes], list[bytes], bytes]:
    """What was asked for, what was poured, so many pieces at once, and what may leave with the end."""
    asked, poured, body = list[bytes](), list[bytes](), reply.body
    assert isinstance(body, Pieces)

    def sink(piece: bytes) -> bool:
        poured.append(piece)
        return len(poured) % most != 0

    try:
        async for piece in body:
            asked.append(piece)
            if (last := await body.pour(sink)) is not None:
                return asked, poured, last
    finally:
        await reply.close()
    return asked, poured, b""


def test_what_comes_is_poured_for_each_reader_until_that_is_too_much_for_it() -> None:
    async def scenario(share: Share, store: MemoryStore) -> None:
        body = Poured(b"a", b"b", b"c", b"d", END)
        replies = [await share(body) for _ in range(3)]
        quick, slow, leaver = [
            asyncio.create_task(read(reply, most)) for reply, most in zip(replies, (9, 2, 9), strict=True)
        ]
        sink = await body.sink
        await asyncio.sleep(0)
        assert sink(b"b")
        assert sink(b"c")
        leaver.cancel()
        await asyncio.wait([leaver])
        late = asyncio.create_task(read(await share(body), 9))
        await asyncio.sleep(0)
        assert sink(b"d")
        body.over.set()
        assert await quick == ([b"a"], [b"b", b"c", b"d"], END)
        assert await slow == ([b"a", b"d"], [b"b", b"c"], END)
        assert await late == ([b"a", b"b", b"c"], [b"d"], END)
        hit = cached_reply(await store.recall("ann", b"key"), b"key", STREAM)
        assert hit is not None
        assert hit.body == b"abcd" + END

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
        def remember(self, *args: Any) -> Awaitable[None]:
            asyncio.get_running_loop().call_later(0.05, super().remember, *args)
            return DONE

    store = SlowStore()

    async def scenario(share: Share, _: MemoryStore) -> None:
        server = Server(WHOLE, stream=False)
        server.run()
        assert await collected(await share(server)) == WHOLE
        assert server.closed == 1, "the server's connection does not wait for the store"
        await eventually(lambda: store._cache != {})
        hit = cached_reply(await store.recall("ann", b"key"), b"key", REQUEST)
        assert hit is not None
        assert (hit.cache, hit.headers) == ("hit", [(b"content-type", b"application/json")])
        assert (hit.route, await collected(hit)) == (Route(("flash",), "r", "cache"), WHOLE)

    flying(scenario, store)


async def drained(reply: Reply) -> bytes:
    """As `collected`, by a reader that nothing is too much for."""
    asked, poured, last = await read(reply, 1 << 20)
    return b"".join([*asked, *poured, last])


@pytest.mark.parametrize("reading", [collected, drained])
def test_a_slow_reader_does_not_grow_memory(reading: Callable[[Reply], Coroutine[Any, Any, bytes]]) -> None:
    async def scenario(share: Share, store: MemoryStore) -> None:
        server = Server(*[END.ljust(65536)] * 300)
        leader, slow = await asyncio.gather(asyncio.create_task(begun(share, server)), begun(share, server))
        got = asyncio.create_task(reading(leader))
        await asyncio.sleep(0.05)
        assert server.sent * 65536 <= LONGEST + AHEAD + 2 * 65536, "it waits for the slowest"
        assert len(await reading(slow)) == 300 * 65536
        assert len(await got) == 300 * 65536
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
