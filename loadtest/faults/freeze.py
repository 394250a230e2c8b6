"""What do callers notice when the store stands still?"""

import asyncio
import contextlib
import os
import signal
import statistics
from typing import NamedTuple

from valkey import Valkey

from gateway.http1 import Client
from loadtest.faults.client import Outcome, ask, open_loop
from loadtest.servers import gateway, policy, sim, valkey


class Freeze(NamedTuple):
    """Outcomes before, while and after the store was stopped by SIGSTOP."""

    before: list[Outcome]
    frozen: list[Outcome]
    after: list[Outcome]


async def load(client: Client, url: str, rate: int, seconds: float) -> list[Outcome]:
    """An open loop of different questions."""
    return await open_loop(rate, seconds, lambda turn: ask(client, url, text=f"hi {turn}"))


async def drive(url: str, server: int, rate: int, seconds: float) -> Freeze:
    with contextlib.closing(Client()) as client:
        before = await load(client, url, rate, min(seconds, 5))
        os.kill(server, signal.SIGSTOP)
        try:
            frozen = await load(client, url, rate, seconds)
        finally:
            os.kill(server, signal.SIGCONT)
        return Freeze(before, frozen, await load(client, url, rate, min(seconds, 5)))


def measure(seconds: float, rate: int) -> Freeze:
    with contextlib.ExitStack() as stack:
        flash, pro = stack.enter_context(sim("flash", "--speed", "0")), stack.enter_context(sim("pro", "--speed", "0"))
        store = stack.enter_context(valkey())
        url = stack.enter_context(gateway(policy(), flash, pro, store))
        with Valkey.from_url(store) as client:
            server = int(client.info("server")["process_id"])
        return asyncio.run(drive(url, server, rate, seconds))


def report(seconds: float, rate: int) -> None:
    found = measure(seconds, rate)
    print(f"the store stands still for {seconds:.0f} s under {rate} requests a second")
    print(f"  first three while frozen, ms: {[round(one.seconds * 1000) for one in found.frozen[:3]]}")
    parts = {"before": found.before, "frozen, from the fourth": found.frozen[3:], "after": found.after}
    for name, outcomes in parts.items():
        times = [one.seconds * 1000 for one in outcomes]
        middle, late = statistics.median(times), statistics.quantiles(times, n=100)[-1]
        failed = sum(one.status != 200 for one in outcomes)
        print(f"  {name:<24} p50 {middle:6.1f} ms  p99 {late:6.1f} ms  failed {failed} of {len(times)}")
