"""What becomes of callers when ten times as many ask as a tier can answer?"""

import asyncio
import contextlib
import random
import statistics
from typing import NamedTuple

from gateway.http1 import Client
from loadtest.faults.client import Outcome, ask, closed_loop, new_keys, open_loop
from loadtest.servers import MODELS, gateway, sim, valkey

PLACES = 16  # sequences that the server runs at once, and max_inflight
TOKENS = 40  # an answer's
SERVER = ("--max-num-seqs", str(PLACES), "--time-factor-under-load", "1", "--inter-token-latency", "10ms")
POLICY = """\
schema: 1
tiers:
  flash:
    model: {model}
    replicas: ["{url}"]
    {ways}
rules: [{{id: all, route: flash}}]
callers:
  default: {{plan: bulk}}
  plans:
    gold: {{requests_per_minute: 1000000, concurrency: 10000, priority: 10}}
    bulk: {{requests_per_minute: 1000000, concurrency: 10000}}
"""


WAYS = {  # what the policy says of the tier's places
    "told": f"limits: {{max_inflight: {PLACES}, queue: {2 * PLACES}, queue_timeout: 1s}}",
    "wrong": "limits: {max_inflight: 256}",
    "by the queue": "limits: {adaptive: true}",
    "by first bytes": "limits: {adaptive: true}\n    engine: openai",
}


class Load(NamedTuple):
    """So many `times` what the tier can answer; of `gold` requests one is gold's; one of WAYS. Answers are up to
    `spread` tokens shorter or longer than TOKENS: where all are alike, a full server ends them all at once.
    """

    times: float
    gold: int
    way: str = "told"
    spread: int = TOKENS // 2

    def plan(self, turn: int) -> str:
        """Whose request it is."""
        return "bulk" if turn % self.gold else "gold"

    def split(self, found: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
        """Gold's and bulk's of all outcomes in the order of their requests."""
        return found[:: self.gold], [one for turn, one in enumerate(found) if turn % self.gold]


# The third one's gold alone asks for all that there is.
LOADS = (
    Load(3, 10),
    Load(10, 20),
    Load(10, 20, spread=0),
    Load(10, 10),
    Load(10, 20, "wrong"),
    Load(3, 10, "by the queue"),
    Load(10, 20, "by the queue"),
    Load(3, 10, "by first bytes"),
    Load(10, 20, "by first bytes"),
)
CALM = PLACES // 4  # callers at once who find a calm tier
LEARNED = 10.0  # seconds of an overload after which a gateway should know the tier's places


class Overload(NamedTuple):
    """Answers a second at most (`peak`) and under the load (`goodput`); outcomes before it (`calm`) and under it."""

    peak: float
    goodput: float
    calm: list[Outcome]
    gold: list[Outcome]
    bulk: list[Outcome]

    @property
    def refusals(self) -> list[float]:
        """Seconds until a caller was refused."""
        return [one.seconds for one in self.gold + self.bulk if one.status == 503]


class Callers(NamedTuple):
    """Who asks; `lines` of the head say so, by plan."""

    client: Client
    url: str
    lines: dict[str, str]
    load: Load
    draw: random.Random

    async def ask(self, plan: str) -> Outcome:
        length = TOKENS + self.draw.randint(-self.load.spread, self.load.spread)
        told = {"stream": True} if self.load.way == "by first bytes" else {}
        return await ask(self.client, self.url, plan, self.lines[plan], max_tokens=length, **told)


async def drive(url: str, lines: dict[str, str], load: Load, seconds: float) -> Overload:
    with contextlib.closing(Client()) as client:
        callers = Callers(client, url, lines, load, random.Random(4))
        calm = await closed_loop(CALM, min(seconds / 3, 5), lambda: callers.ask("bulk"))
        peak = most(await closed_loop(PLACES, seconds / 3, lambda: callers.ask("bulk")))
        gold, bulk = load.split(await open_loop(load.times * peak, seconds, lambda turn: callers.ask(load.plan(turn))))
        answered = [one.started + one.seconds for one in gold + bulk if one.status == 200]
        begun = min(one.started for one in gold + bulk)
        goodput = sum(at - begun <= seconds for at in answered) / seconds
        return Overload(peak, goodput, calm, gold, bulk)


def most(full: list[Outcome]) -> float:
    """Answers a second of a tier whose places are all taken: to count them would take half an answer of each place for
    more or less than there is."""
    return PLACES / statistics.fmean(one.seconds for one in full)


def measure(load: Load, seconds: float) -> Overload:
    with contextlib.ExitStack() as stack:
        flash = stack.enter_context(sim("flash", *SERVER))
        store = stack.enter_context(valkey())
        # Before the gateway starts: without a key it would serve everyone alike.
        lines = asyncio.run(new_keys(store, {"gold": "gold", "bulk": "bulk"}))
        text = POLICY.format(model=MODELS["flash"], url=flash.url, ways=WAYS[load.way])
        url = stack.enter_context(gateway(text, flash, flash, store))
        return asyncio.run(drive(url, lines, load, seconds))


def report(seconds: float) -> None:
    for load in LOADS:
        told(load, measure(load, seconds))


def told(load: Load, found: Overload) -> None:
    alike = "" if load.spread else ", all answers alike"
    print(f"{load.times:g} times the {found.peak:.0f} a second that a tier can answer, places {load.way}{alike}")
    print(f"  goodput {found.goodput / found.peak:.1%} of the peak")
    alone, begun = late(found.calm), min(one.started for one in found.gold)
    then = late([one for one in found.gold if one.started > begun + LEARNED])
    share = f"{sum(one.status == 200 for one in found.gold) / len(found.gold):.1%} answered"
    print(
        f"  gold, one of {load.gold}: {share}, p99 {late(found.gold) / alone:.2f} times a calm tier's, "
        f"{then / alone:.2f} after {LEARNED:.0f} s"
    )
    refusals = statistics.quantiles(found.refusals, n=1000)
    shown = ", ".join(f"p{at} {refusals[round(at * 10) - 1] * 1000:.0f}" for at in (50, 90, 99))
    others = sum(one.status not in (200, 503) for one in found.gold + found.bulk)
    print(f"  {len(found.refusals)} refused, after ms: {shown}; neither answered nor refused: {others}")


def late(outcomes: list[Outcome]) -> float:
    """The 99th percentile of the answers' seconds."""
    return statistics.quantiles([one.seconds for one in outcomes if one.status == 200], n=100, method="inclusive")[-1]
