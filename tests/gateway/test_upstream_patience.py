"""A server stands still: whose answers are asked of another one, which streams end, and what is waited for."""

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

from gateway.errors import Refusal
from gateway.http1 import Client, Origin
from gateway.policy import Policy
from gateway.resolver import Resolver
from gateway.upstream import Upstream
from gateway.upstream.replicas import Signs
from loadtest.servers import Sim
from tests.gateway.loopback import Peer, Talk, serving
from tests.gateway.serving import PATIENCE, asked, body, collected, plain, upstream
from tests.gateway.test_pulse import BEGUN
from tests.gateway.test_upstream import BOTH, FIRST, GOOD, NOWHERE
from tests.tiers import JSON, policy_for

FIRST_BYTE = 0.1  # seconds
LONG = 1.5 * FIRST_BYTE  # seconds that an answer takes
Tells = Callable[[], bytes | None]  # what /metrics answers; None: nothing


def works(steps: Any = itertools.count()) -> bytes:  # noqa: B008  never the same again
    return plain(b"vllm:generation_tokens_total %d\nvllm:num_requests_running 1\n" % next(steps))


def hangs(running: int = 1) -> bytes:
    told = b"process_cpu_seconds_total %f\nvllm:generation_tokens_total 7.0\nvllm:num_requests_running %d\n"
    return plain(told % (time.monotonic(), running))


def rests() -> bytes:
    return hangs(0)


def sglang_works(steps: Any = itertools.count()) -> bytes:  # noqa: B008  never the same again
    return plain(b'sglang:realtime_tokens_total{mode="decode"} %d\n' % next(steps))


def sglang_hangs(asked: Any = itertools.count()) -> bytes:  # noqa: B008  never the same again
    own = b'sglang:http_requests_total{endpoint="/metrics"} %d\nsglang:process_cpu_seconds_total 7.0\n' % next(asked)
    return plain(own + b"sglang:realtime_tokens_total 7.0\n")


def routes() -> bytes:
    return plain(b"vllm:current_qps 7.0\n")


def tells_no_figures() -> bytes:
    return plain(b"", "404 Not Found")


def garbles() -> bytes:
    return b"figures\r\n\r\n"


def tells_nothing() -> None:
    return None


def server(tells: Tells, seconds: Iterable[float]) -> Talk:
    """Its answers take so many seconds, one after another."""
    left = iter(seconds)

    async def talk(peer: Peer) -> None:
        while head := await peer.request():
            told = tells() if head.startswith(b"GET") else await asyncio.sleep(next(left), plain(GOOD))
            await (peer.answer(told) if told else peer.left())

    return talk


def one_of(*urls: str, on: Iterable[str] = ("first_byte",), **tier: Any) -> Policy:
    """The second one is asked first."""
    times = {"first_byte": f"{FIRST_BYTE * 1000:.0f}ms"}
    changes = {"replicas": urls, "balance": "round_robin", "timeouts": times, **tier}
    return policy_for(Sim(urls[0], "m"), NOWHERE, tiers={"flash": changes}, failover={"on": list(on)})


def url(origin: Origin) -> str:
    return f"http://{origin.authority}"


def left(door: Upstream, retries: float) -> None:
    budget = door._budgets["flash"]
    budget._left, budget._at = retries, asyncio.get_running_loop().time()


async def test_what_a_replica_that_stands_still_was_asked_another_one_answers() -> None:
    async with (
        upstream() as door,
        serving(server(tells_nothing, [60])) as (_, frozen, _),
        serving(server(works, [0])) as (_, well, _),
    ):
        policy, request = one_of(url(well), url(frozen), NOWHERE.url), asked(body())
        now = asyncio.get_running_loop().time()
        door._replicas.at(NOWHERE.url).signs.saw("the same", now, now + 60)  # not as long as to be sure
        door._replicas.at(url(well)).signs.saw("something", now + 60, now + 60)
        left(door, 1.0)
        reply = await asyncio.wait_for(door.send(request, FIRST, policy), PATIENCE)
        assert await collected(reply) == GOOD
        assert [(bill.lost, bill.void) for bill in request.bills[1:]] == [(True, False)]
        assert door.states(policy)["flash"].up == (True, False, True), "no more calls than this find out"


async def test_what_halted_one_server_is_asked_of_one_more_at_most() -> None:
    async with (
        upstream() as door,
        serving(server(sglang_hangs, [60])) as (_, first, _),
        serving(server(hangs, [LONG])) as (_, second, _),
    ):
        request = asked(body())
        reply = await door.send(request, FIRST, one_of(NOWHERE.url, url(first), url(second)))
        assert (await collected(reply), len(request.bills)) == (GOOD, 2)


Meanwhile = Callable[[Upstream, str], Awaitable[None]]


async def nothing(*_: Any) -> None: ...


async def spent(door: Upstream, _: str) -> None:
    left(door, 0.0)


async def failing(door: Upstream, _: str) -> None:
    door._replicas.at(NOWHERE.url).breaker.trip(asyncio.get_running_loop().time())


async def busy(door: Upstream, _: str) -> None:
    door._replicas.at(NOWHERE.url).busy = math.inf


async def answering(door: Upstream, url: str) -> None:
    """Others are answered while its /metrics is not."""
    for _ in range(10):
        assert await collected(await door.send(asked(body()), FIRST, one_of(url))) == GOOD
        await asyncio.sleep(LONG / 10)


class Once(Resolver):
    """No name server answers once a connection was made."""

    made = False

    async def connect(self, *given: Any, **named: Any) -> Any:
        if self.made:
            await asyncio.sleep(PATIENCE)
        self.made = True
        return await super().connect(*given, **named)


class Case(NamedTuple):
    tells: Tells
    tier: JSON
    meanwhile: Meanwhile = nothing
    names: type[Resolver] = Resolver


CASES = {
    "its engine works": Case(works, {}),
    "its engine, SGLang, works": Case(sglang_works, {}),
    "its figures are no engine's": Case(routes, {}),
    "it has no figures": Case(tells_no_figures, {}),
    "its figures cannot be read": Case(garbles, {}),
    "it is not found to ask for them": Case(works, {}, names=Once),
    "it is too busy to tell them": Case(tells_nothing, {}, answering),
    "its engine is another": Case(hangs, {"engine": "openai"}),
    "the policy does not move what is late": Case(hangs, {"on": ["5xx"]}),
    "no other is there": Case(hangs, {"replicas": []}),
    "no other is well": Case(hangs, {}, failing),
    "no other is free": Case(hangs, {}, busy),
    "enough was retried": Case(hangs, {}, spent),
}


async def waited(case: Case) -> tuple[bytes, int]:
    """What came of an answer that takes LONG, and how many calls were made for it."""
    talk = server(case.tells, [LONG, *[0] * 10])
    async with serving(talk, client=Client(names=case.names())) as (client, origin, _):
        own, door, request = url(origin), Upstream(client), asked(body())
        urls = [own] if "replicas" in case.tier else [NOWHERE.url, own]
        tier = {key: value for key, value in case.tier.items() if key != "replicas"}
        sent = asyncio.create_task(door.send(request, FIRST, one_of(*urls, **tier)))
        await asyncio.sleep(0)
        await case.meanwhile(door, own)
        data = await collected(await sent)
        await door.close()
        return data, len(request.bills)


async def test_an_answer_that_takes_long_is_waited_for() -> None:
    found = await asyncio.gather(*map(waited, CASES.values()))
    assert dict(zip(CASES, found, strict=True)) == dict.fromkeys(CASES, (GOOD, 1))


def test_looks_tell_something_together_only_where_they_follow_each_other() -> None:
    signs = Signs()
    for at, sign, still in ((5, "a", 0), (10, "a", 5), (15, "a", 10), (20, "b", 0), (25, "b", 5), (36, "b", 0)):
        signs.look(at, gap=10)
        signs.saw(sign, at, at)
        assert signs.still == still
    signs.saw("silent", 36, 51)
    assert signs.still == 15


def halting(tells: Tells, seconds: float) -> Talk:
    """Its stream is silent for so long after the first event."""

    async def talk(peer: Peer) -> None:
        while (await peer.request()).startswith(b"GET"):
            told = tells()
            await (peer.answer(told) if told else peer.left())
        await peer.answer(BEGUN)
        await asyncio.sleep(seconds)
        await peer.answer(b"data: [DONE]\n\n")

    return talk


async def streamed(tells: Tells, seconds: float, **tier: Any) -> tuple[bytes, bool]:
    """What came of a stream that is silent for so long, and whether its server may be asked on."""
    async with serving(halting(tells, seconds)) as (client, origin, _):
        door, policy = Upstream(client), one_of(url(origin), **tier)
        reply = await door.send(asked(body(stream=True)), FIRST, policy)
        try:
            told = await asyncio.wait_for(collected(reply), PATIENCE)
        except Refusal as refusal:
            told = refusal.message.encode()
        up = door.states(policy)["flash"].up
        await door.close()
        return told, up[0]


QUICK = {"first_byte": "50ms"}  # a stream ends after three times that at the soonest
SILENT: dict[str, tuple[Tells, JSON]] = {
    "its engine works": (works, {}),
    "its engine has nothing to do, so this is another's work": (rests, {}),
    "its figures are no engine's": (routes, {}),
    "it has no figures": (tells_no_figures, {}),
    "its figures do not come": (tells_nothing, {}),
    "its engine is another": (hangs, {"engine": "openai"}),
    "a first byte may take longer": (hangs, {"timeouts": {"first_byte": "1s"}}),
}


async def test_a_silent_stream_is_waited_for() -> None:
    found = await asyncio.gather(
        *(streamed(tells, 0.25, **{"timeouts": QUICK} | tier) for tells, tier in SILENT.values())
    )
    whole = b'data: {"choices": []}\n\ndata: [DONE]\n\n'
    assert dict(zip(SILENT, found, strict=True)) == dict.fromkeys(SILENT, (whole, True))


async def test_a_silent_stream_ends_where_its_engine_hangs_and_when_it_was_silent_for_as_long_as_it_may() -> None:
    limited = {"timeouts": QUICK | {"idle": "150ms"}}
    hung, late = await asyncio.gather(streamed(hangs, 60), streamed(works, 60, **limited))
    told = b"The model server did not answer in time (idle)."
    assert (hung, late) == ((told, False), (told, True))


async def whole(tells: Tells, seconds: float, **tier: Any) -> tuple[bytes, bool]:
    """What came of an answer in one piece, and whether its server, the only one, may be asked on."""
    async with serving(server(tells, [seconds])) as (client, origin, _):
        door, policy = Upstream(client), one_of(url(origin), **{"timeouts": QUICK} | tier)
        reply = await asyncio.wait_for(door.send(asked(body()), FIRST, policy), PATIENCE)
        told = str(reply.body).encode() if isinstance(reply.body, Refusal) else await collected(reply)
        up = door.states(policy)["flash"].up
        await door.close()
        return told, up[0]


async def test_an_answer_of_the_only_server_is_waited_for() -> None:
    found = await asyncio.gather(*(whole(tells, 0.25, **tier) for tells, tier in SILENT.values()))
    assert dict(zip(SILENT, found, strict=True)) == dict.fromkeys(SILENT, (GOOD, True))


async def test_an_answer_of_the_only_server_ends_where_its_engine_hangs() -> None:
    told = (b"The model server did not answer in time (still).", False)
    found = await asyncio.gather(*(whole(hangs, 60, on=on) for on in (["first_byte"], ["5xx"])))
    assert found == [told, told]


async def test_where_its_engine_hangs_the_next_tier_answers() -> None:
    async with (
        upstream() as door,
        serving(server(hangs, [60])) as (_, hung, _),
        serving(server(works, [0])) as (_, well, _),
    ):
        policy = policy_for(
            Sim(url(hung), "m"),
            Sim(url(well), "m"),
            tiers={"flash": {"timeouts": QUICK}},
            failover={"tiers": {"flash": ["pro"]}},
        )
        reply = await asyncio.wait_for(door.send(asked(body()), BOTH, policy), PATIENCE)
        assert (await collected(reply), reply.tier) == (GOOD, "pro")
