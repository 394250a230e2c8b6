import asyncio
import json
import time
from functools import partial
from typing import Any

from gateway.pulse import COMMENT, Pulse
from loadtest.servers import Sim
from tests.gateway.loopback import Peer, serving
from tests.gateway.serving import body, eventually, gateway
from tests.tiers import policy_for


async def test_a_stream_that_stands_still_gets_comments_between_its_events(flash: Sim, pro: Sim) -> None:
    flash.config(stall_after=3, stall=0.5)
    async with gateway(policy_for(flash, pro), keepalive=0.1) as gate:
        answer = await gate.ask(body(model="flash", stream=True))
        still = [event for event in answer.events() if event.startswith(b": ")]
        said = [event for event in answer.events() if not event.startswith(b": ")]
        assert set(still) == {b": keep-alive"}
        assert said[-1] == b"[DONE]"
        assert all(json.loads(event) for event in said[:-1])
        flash.config(stall_after=None)
        assert b"keep-alive" not in (await gate.ask(body(model="flash", stream=True))).data
        assert b"keep-alive" not in (await gate.ask(body(model="flash"))).data


async def test_a_server_whose_time_is_over_is_told_of_also_by_a_gateway_that_stood_still_then(pro: Sim) -> None:
    begun = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"choices": []}\n\n'

    async def begin(peer: Peer) -> None:
        await peer.request()
        await peer.answer(begun)
        await peer.left()

    async with serving(begin) as (_, origin, _):
        sim, tiers = Sim(f"http://{origin.authority}", "m"), {"flash": {"timeouts": {"total": "100ms"}}}
        async with gateway(policy_for(sim, pro, tiers=tiers)) as gate:
            asyncio.get_running_loop().call_later(0.05, time.sleep, 0.15)
            answer = await gate.ask(body(model="flash", stream=True))
            assert (answer.complete, b"upstream_timeout" in answer.events()[-1]) == (True, True)


class Line:
    """What a pulse asks of a wire, on which each write stays under way until `taken`."""

    def __init__(self) -> None:
        self.stood, self.taken = 0.0, asyncio.Event()
        self.written: list[bytes] = []
        self.asked = 0

    @property
    def moved(self) -> float:
        self.asked += 1
        return self.stood

    async def write(self, data: bytes, more: bool) -> None:
        assert more, "a comment is never the end"
        self.written.append(data)
        await self.taken.wait()


def beating(wire: Any, seconds: float, total: float = 60.0, told: list[bool] | None = None) -> Pulse:
    late = [] if told is None else told
    return Pulse(wire, seconds, total, partial(late.append, True))


async def test_no_comment_comes_after_the_stop_nor_while_the_stream_moves() -> None:
    wire = Line()
    pulse = beating(wire, 0.1)
    for _ in range(20):
        await asyncio.sleep(0.01)
        wire.stood = asyncio.get_running_loop().time()
    assert wire.written == []
    await eventually(lambda: wire.written == [COMMENT])
    for _ in range(2):
        pulse.stop()
    await asyncio.sleep(0.15)
    assert wire.written == [COMMENT]
    beating(wire, 0.0).stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


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
        assert wire.asked < 10, "between two comments it sleeps"
        return wire.written

    assert await late(0.0, rests=False) == []
    assert await late(0.01, rests=False) == [COMMENT], "one at a time"
    assert await late(0.01, rests=True) == []
    assert await late(60.0, rests=False) == []
