"""What becomes of callers when ten times as many ask as a tier can answer?"""

import asyncio
import contextlib
import statistics
from typing import NamedTuple

from gateway.http1 import Client
from gateway.keys import new_key
from gateway.store import open_store
from loadtest.faults.client import Outcome, ask
from loadtest.servers import MODELS, Sim, gateway, sim, valkey

PLACES = 16  # sequences that the server runs at once, and max_inflight
TOKENS = 40  # an answer's
SERVER = ("--max-num-seqs", str(PLACES), "--time-factor-under-load", "1", "--inter-token-latency", "10ms")
POLICY = """\
schema: 1
tiers:
  flash:
    model: {model}
    replicas: ["{url}"]
    limits: {{max_inflight: {places}, queue: {queue}, queue_timeout: 1s}}
rules: [{{id: all, route: flash}}]
callers:
  default: {{plan: bulk}}
  plans:
    gold: {{requests_per_minute: 1000000, concurrency: 10000, priority: 10}}
    bulk: {{requests_per_minute: 1000000, concurrency: 10000}}
"""


class Load(NamedTuple):
    """So many `times` what the tier can answer; of `gold` requests one is gold's."""

    times: float
    gold: int


LOADS = (Load(3, 10), Load(10, 20), Load(10, 10))  # the last one's gold alone asks for all that there is


class Overload(NamedTuple):
    """Answers a second at most (`peak`) and under the load (`goodput`); outcomes of gold alone and of both."""

    peak: float
    goodput: float
    idle: list[Outcome]
    gold: list[Outcome]
    bulk: list[Outcome]

    @property
    def refusals(self) -> list[float]:
        """Seconds until a caller was refused."""
        return [one.seconds for one in self.gold + self.bulk if one.status == 503]


class Callers(NamedTuple):
    """Who asks, by plan: the line of the head that says so."""

    client: Client
    url: str
    gold: str
    bulk: str

    async def ask(self, name: str) -> Outcome:
        return await ask(self.client, self.url, text=name, headers=getattr(self, name), max_tokens=TOKENS)


async def keys(store: str) -> list[str]:
    """An authorization header for each plan."""
    door, lines = open_store(store), []
    for plan in ("gold", "bulk"):
        key, record = new_key(await door.secret(), plan, plan)
        await door.put_key(record)
        lines.append(f"authorization: Bearer {key}\r\n")
    await door.close()
    return lines


async def closed(callers: Callers, workers: int, seconds: float) -> list[Outcome]:
    """Each worker asks again once it has its answer."""
    end = asyncio.get_running_loop().time() + seconds
    found: list[Outcome] = []

    async def work() -> None:
        while asyncio.get_running_loop().time() < end:
            found.append(await callers.ask("bulk"))

    await asyncio.gather(*(work() for _ in range(workers)))
    return found


async def opened(callers: Callers, rate: float, gold: int, seconds: float) -> tuple[list[Outcome], list[Outcome]]:
    """Gold's and bulk's outcomes of an open loop; of `gold` requests one is gold's."""
    loop, tasks = asyncio.get_running_loop(), []
    started = loop.time()
    for turn in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + turn / rate - loop.time()))
        tasks.append(asyncio.create_task(callers.ask("bulk" if turn % gold else "gold")))
    outcomes = await asyncio.gather(*tasks)
    return outcomes[::gold], [one for turn, one in enumerate(outcomes) if turn % gold]


async def drive(url: str, lines: list[str], load: Load, seconds: float) -> Overload:
    client = Client()
    try:
        callers = Callers(client, url, *lines)
        idle = await closed(callers, 1, min(seconds / 3, 5))
        peak = len(await closed(callers, PLACES, seconds / 3)) / (seconds / 3)
        gold, bulk = await opened(callers, load.times * peak, load.gold, seconds)
        answered = [one.started + one.seconds for one in gold + bulk if one.status == 200]
        begun = min(one.started for one in gold + bulk)
        goodput = sum(at - begun <= seconds for at in answered) / seconds
        return Overload(peak, goodput, idle, gold, bulk)
    finally:
        client.close()


def text(flash: Sim) -> str:
    return POLICY.format(model=MODELS["flash"], url=flash.url, places=PLACES, queue=2 * PLACES)


def measure(load: Load, seconds: float) -> Overload:
    with contextlib.ExitStack() as stack:
        flash = stack.enter_context(sim("flash", *SERVER))
        store = stack.enter_context(valkey())
        lines = asyncio.run(keys(store))  # before the gateway starts: without a key it would serve everyone alike
        url = stack.enter_context(gateway(text(flash), flash, flash, store))
        return asyncio.run(drive(url, lines, load, seconds))


def report(seconds: float) -> None:
    for load in LOADS:
        found = measure(load, seconds)
        print(f"{load.times:g} times the {found.peak:.0f} requests a second that a tier can answer")
        print(f"  goodput {found.goodput / found.peak:.1%} of the peak")
        gold = [one.seconds for one in found.gold if one.status == 200]
        alone = statistics.quantiles([one.seconds for one in found.idle], n=100)[-1]
        late = statistics.quantiles(gold, n=100)[-1]
        share = f"{len(gold) / len(found.gold):.1%} answered"
        print(f"  gold, one of {load.gold}: {share}, p99 {late / alone:.2f} times that of an idle tier")
        refusals = statistics.quantiles(found.refusals, n=1000)
        shown = ", ".join(f"p{at} {refusals[round(at * 10) - 1] * 1000:.0f}" for at in (50, 90, 99))
        others = sum(one.status not in (200, 503) for one in found.gold + found.bulk)
        print(f"  {len(found.refusals)} refused, after ms: {shown}; neither answered nor refused: {others}")
