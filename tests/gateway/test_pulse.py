import asyncio
import json

from gateway.pulse import COMMENT, Pulse
from loadtest.servers import Sim
from tests.gateway.serving import body, eventually, gateway
from tests.tiers import policy_for


def test_a_stream_that_stands_still_gets_comments_between_its_events(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
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

    asyncio.run(main())


def test_no_comment_comes_after_the_stop_nor_while_the_stream_moves() -> None:
    async def main() -> None:
        written: list[bytes] = []
        stuck = asyncio.Event()

        async def write(data: bytes) -> None:
            written.append(data)
            await stuck.wait()

        pulse, now, still = Pulse(0.02, write), asyncio.get_running_loop().time, 0.0
        for _ in range(10):
            await asyncio.sleep(0.005)
            still = max(still, now() - pulse.last)
            pulse.beat()
        assert written == [] or still >= 0.02
        await eventually(lambda: written == [COMMENT])
        for _ in range(2):
            pulse.stop()
        stuck.set()
        await asyncio.sleep(0.06)
        assert written == [COMMENT]
        off = Pulse(0.0, write)
        off.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
