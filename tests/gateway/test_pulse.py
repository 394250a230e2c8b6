import asyncio
import json
import time
from functools import partial
from typing import Any

from gateway.http1 import Origin
from gateway.policy import Policy
from gateway.pulse import COMMENT, Pulse
from loadtest.servers import Sim
from tests.gateway.loopback import Peer, serving
from tests.gateway.serving import PATIENCE, body, eventually, gateway, parsed
from tests.tiers import policy_for

BEGUN = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"choices": []}\n\n'


async def test_a_stream_that_stands_still_gets_comments_between_its_events(pro: Sim) -> None:
    goes_on = asyncio.Event()

    async def stand(peer: Peer) -> None:
        await peer.request()
        await peer.answer(BEGUN)
        await goes_on.wait()
        await peer.answer(b'data: {"choices": []}\n\ndata: [DONE]\n\n')

    async with serving(stand) as (_, origin, _), gateway(policy_at(origin, pro), keepalive=0.05) as gate:
        line = await gate.open(body(model="flash", stream=True))
        seen = b""
        while seen.count(COMMENT) < 2:
            seen += await line.some()
        goes_on.set()
        events = parsed(seen + await line.reader.read()).events()
        line.writer.close()
        assert {event + b"\n\n" for event in events if event.startswith(b":")} == {COMMENT}
        *said, last = [event for event in events if not event.startswith(b":")]
        assert ([json.loads(event)["choices"] for event in said], last) == ([[], []], b"[DONE]")


async def test_an_answer_that_does_not_stand_still_gets_none(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), keepalive=PATIENCE) as gate:
        for stream in (True, False):
            answer = await gate.ask(body(model="flash", stream=stream))
            assert (answer.status, b"keep-alive" in answer.data) == (200, False)


async def test_a_server_whose_time_is_over_is_told_of_also_by_a_gateway_that_stood_still_then(pro: Sim) -> None:
    async def begin(peer: Peer) -> None:
        await peer.request()
        await peer.answer(BEGUN)
        await peer.left()

    async with serving(begin) as (_, origin, _):
        policy = policy_at(origin, pro, tiers={"flash": {"timeouts": {"total": "100ms"}}})
        async with gateway(policy) as gate:
            asyncio.get_running_loop().call_later(0.05, time.sleep, 0.15)
            answer = await gate.ask(body(model="flash", stream=True))
            assert (answer.complete, b"upstream_timeout" in answer.events()[-1]) == (True, True)


def policy_at(origin: Origin, pro: Sim, **changes: Any) -> Policy:
    """A policy whose Flash is there."""
    return policy_for(Sim(f"http://{origin.authority}", "m"), pro, **changes)


class Line:
    """What a pulse asks of a wire, which always moves or stands still; a write stays under way until `taken`."""

    def __init__(self, moves: bool = False) -> None:
        self.moves, self.taken = moves, asyncio.Event()
        self.asked = 0
        self.written: list[bytes] = []

    @property
    def moved(self) -> float:
        self.asked += 1
        return asyncio.get_running_loop().time() if self.moves else 0.0

    async def write(self, data: bytes, more: bool) -> None:
        assert more, "a comment is never the end"
        self.written.append(data)
        await self.taken.wait()


def beating(wire: Any, seconds: float, total: float = 60.0, told: list[bool] | None = None) -> Pulse:
    late = [] if told is None else told
    return Pulse(wire, seconds, total, partial(late.append, True))


async def test_no_comment_comes_after_the_stop_nor_while_the_stream_moves() -> None:
    wire = Line(moves=True)
    pulse = beating(wire, 0.02)
    await eventually(lambda: wire.asked >= 5)
    assert wire.written == []
    wire.moves = False
    await eventually(lambda: wire.written == [COMMENT])
    for end in (pulse.rest, pulse.stop, pulse.stop):
        end()
    wire.taken.set()
    await asyncio.sleep(0.05)
    assert wire.written == [COMMENT]
    beating(wire, 0.0).stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_comment_comes_while_the_one_before_is_still_under_way() -> None:
    wire = Line()
    pulse = beating(wire, 0.01)
    await eventually(lambda: wire.asked >= 5)
    assert wire.written == [COMMENT]
    wire.taken.set()
    await eventually(lambda: len(wire.written) >= 2)
    pulse.stop()


async def test_a_stream_that_takes_too_long_is_late_once_whether_it_moves_or_not() -> None:
    async def late(seconds: float, rests: bool) -> list[bytes]:
        """What was written when a stream that nobody takes is late."""
        told: list[bool] = []
        began, wire = asyncio.get_running_loop().time(), Line()
        pulse = beating(wire, seconds, 0.05, told)
        if rests:
            pulse.rest()
        await eventually(lambda: told == [True])
        assert asyncio.get_running_loop().time() >= began + 0.05
        pulse.stop()
        beating(wire, seconds, 0.01, told).stop()
        await asyncio.sleep(0.03)
        assert told == [True]
        return wire.written

    assert await late(0.0, rests=False) == []
    assert await late(0.01, rests=False) in ([], [COMMENT]), "none where all its time went by at once"
    assert await late(0.01, rests=True) == []
