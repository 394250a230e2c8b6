"""What becomes of `overload`'s callers where nothing takes time but the servers?   In virtual time, the same each run.

The gateway's own line (`gateway.upstream.places`) before a server in arithmetic. What is amiss here is the line's
doing; what is amiss in `overload` alone is the machine's.
"""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.errors import Overloaded
from gateway.policy import TierLimits
from gateway.upstream.places import Places
from loadtest.faults.client import Outcome, closed_loop, open_loop
from loadtest.faults.overload import CALM, LOADS, PLACES, TOKENS, Load, Overload, most, told

TOKEN = 0.01  # seconds
PREFILL = 0.02
POLL = 1.0  # seconds between two looks at the server's queue
WARM = 5.0  # seconds of a calm tier, and of a full one
FOREVER = 600.0
PRIORITY = {"gold": 10, "bulk": 0}
WAYS = {
    "told": TierLimits(max_inflight=PLACES, queue=2 * PLACES, queue_timeout=1.0),
    "wrong": TierLimits(),
    "by the queue": TierLimits(adaptive=True),
    "by first bytes": TierLimits(adaptive=True),
}


class Clock(selectors.SelectSelector):
    """Nothing is waited for: the time is over at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(0.0, timeout or 0.0)
        return []


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class Server:
    """Works on PLACES requests at once; the others wait in it, whoever they are."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def answer(self, tokens: int, begun: Callable[[], None]) -> None:
        if self.running < PLACES:
            self.running += 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            await turn
        await asyncio.sleep(PREFILL)
        begun()
        await asyncio.sleep(TOKEN * tokens)
        if self.waiting:
            self.waiting.popleft().set_result(None)
        else:
            self.running -= 1


class Tier:
    """A server behind the gateway's line."""

    def __init__(self, load: Load) -> None:
        self.load, self.limits, self.draw = load, WAYS[load.way], random.Random(4)
        self.places, self.server, self.now = Places("flash"), Server(), asyncio.get_running_loop().time

    async def ask(self, plan: str) -> Outcome:
        started, tokens = self.now(), TOKENS + self.draw.randint(-self.load.spread, self.load.spread)
        try:
            if not self.places.free(self.limits):
                await self.places.take(self.limits, PRIORITY[plan], FOREVER)
        except Overloaded:
            return Outcome(503, started, self.now() - started)
        sent = self.now()

        def begun() -> None:
            if self.load.way == "by first bytes":
                self.places.heard(self.now() - sent)

        await self.server.answer(tokens, begun)
        self.places.give_back()
        return Outcome(200, started, self.now() - started)

    async def look(self) -> None:
        """At the server's queue, where it is told."""
        while self.load.way == "by the queue":
            await asyncio.sleep(POLL)
            self.places.told((self.server.running, len(self.server.waiting)))


async def drive(load: Load, seconds: float) -> Overload:
    tier = Tier(load)
    looking = asyncio.create_task(tier.look())
    calm = await closed_loop(CALM, WARM, lambda: tier.ask("bulk"))
    peak = most(await closed_loop(PLACES, WARM, lambda: tier.ask("bulk")))
    begun = tier.now()
    found = await open_loop(load.times * peak, seconds, lambda turn: tier.ask(load.plan(turn)))
    looking.cancel()
    goodput = sum(one.status == 200 and one.started + one.seconds <= begun + seconds for one in found) / seconds
    return Overload(peak, goodput, calm, *load.split(found))


def measure(load: Load, seconds: float) -> Overload:
    return virtual(drive(load, seconds))


def virtual(main: Coroutine[Any, Any, Overload]) -> Overload:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)


def report(seconds: float) -> None:
    print("in virtual time:")
    for load in LOADS:
        told(load, measure(load, seconds))
