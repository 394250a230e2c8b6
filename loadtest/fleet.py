"""Is the store the limit of a large fleet?   The store's traffic of many gateways, against one real Valkey.

    python -m loadtest.fleet [--gateways 16] [--rates 400,800,1600,3200] [--seconds 10]

Each gateway is its own store door with its own connections, shared out over --processes of the system. A request takes
what a gateway's takes: one admission under all kinds of limits that also looks for a remembered answer, and, when its
answer is over (a second later on average), the settlement of its lease with a line of the ledger; one in five also
remembers an answer of 2 KB. Requests come at random times whether or not the last ones are done (an open loop), from
1,000 callers.

Printed for each rate: what was offered and achieved; how long an admission took; the share that a gateway decided by
itself, because the store had not answered within 0.1 s; what the server spent on a request that it saw (its whole
process, from INFO cpu); and how many requests a second would fill its core. Clients share the machine with it and with
others, so that is worked out, not reached, and the clients' own stand-stills are in the times.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import platform
import random
import time
from dataclasses import dataclass
from typing import Any

import uvloop
from valkey import Valkey

from gateway.store import Store, open_store
from loadtest.clusters import single
from loadtest.store import LOADS

LIMITS, BOUND, LINES = LOADS["all limits"]
CALLERS = 1_000
ANSWER = 1.0  # seconds, on average
REMEMBERED, SIZE, TTL = 0.2, 2_000, 60.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of the system plays. `rate`: requests a second of each gateway."""

    url: str
    gateways: int
    rate: float
    seconds: float
    seed: int


Seen = tuple[float, bool]  # milliseconds of an admission, and whether the store had answered


def play(share: Share) -> list[Seen]:
    """Every admission of the share."""
    logging.disable(logging.WARNING)  # the store comes and goes: counted, not told line by line
    return uvloop.run(_play(share))


async def _play(share: Share) -> list[Seen]:
    stores = [open_store(share.url) for _ in range(share.gateways)]
    seen: list[Seen] = []
    try:
        async with asyncio.TaskGroup() as group:
            for n, store in enumerate(stores):
                group.create_task(_gateway(store, share, random.Random(share.seed + n), seen))
        return seen
    finally:
        for store in stores:
            await store.close()


async def _gateway(store: Store, share: Share, chance: random.Random, seen: list[Seen]) -> None:
    loop = asyncio.get_running_loop()
    end, due = loop.time() + share.seconds, loop.time()
    async with asyncio.TaskGroup() as group:
        while (due := due + chance.expovariate(share.rate)) < end:
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(_request(store, chance, due, seen))


async def _request(store: Store, chance: random.Random, due: float, seen: list[Seen]) -> None:
    """Timed from when it was due: a late start is not forgiven."""
    caller, key = f"caller{chance.randrange(CALLERS)}", chance.randbytes(32)
    admitted = await store.admit(caller, LIMITS, key, BOUND)
    seen.append(((asyncio.get_running_loop().time() - due) * 1000, store.state == "ok"))
    await asyncio.sleep(chance.expovariate(1 / ANSWER))
    if chance.random() < REMEMBERED:
        await store.remember(caller, key, bytes(SIZE), TTL)
    await store.settle(caller, admitted.lease or "", LINES)


def spent(client: Valkey) -> tuple[float, int]:
    """CPU seconds of the server so far, and how many scripts it ran."""
    cpu: Any = client.info("cpu")
    commands: Any = client.info("commandstats")
    ran = sum(told["calls"] for name, told in commands.items() if "eval" in name)
    return float(cpu["used_cpu_sys"]) + float(cpu["used_cpu_user"]), ran


def measured(url: str, options: argparse.Namespace, rate: float) -> str:
    client = Valkey.from_url(url)
    each = options.gateways // options.processes
    shares = [Share(url, each, rate / options.gateways, options.seconds, n * each) for n in range(options.processes)]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        pool.map(abs, range(options.processes))  # started, and done importing
        before, began = spent(client), time.perf_counter()
        seen = [one for found in pool.map(play, shares) for one in found]
        wall = time.perf_counter() - began
    cpu, calls = (now - then for now, then in zip(spent(client), before, strict=True))
    took = sorted(milliseconds for milliseconds, _ in seen)
    local = sum(not answered for _, answered in seen) / len(seen)
    each_us = cpu / (calls / 2) * 1e6  # an admission and a settlement
    return (
        f"{rate:8.0f} {len(took) / options.seconds:9.0f} {took[len(took) // 2]:8.2f} {took[len(took) * 99 // 100]:8.2f}"
        f" {local:7.3f} {each_us:11.1f} {cpu / wall:10.2f} {1e6 / each_us:13.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rates", default="400,800,1600,3200", help="requests a second of the whole fleet")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {options.gateways} gateways, {options.seconds:.0f} s a rate")
    print(" offered  achieved   p50 ms   p99 ms   local  us/request  core used  core full at")
    with single() as url:
        for rate in map(float, options.rates.split(",")):
            print(measured(url, options, rate), flush=True)


if __name__ == "__main__":
    main()
