"""What does a decision of the store cost this process?   CPU a request (admit and settle), one server and a cluster.

    python -m loadtest.store [--requests 20000] [--concurrency 64] [--rounds 5]

"bare" has request and concurrency limits only and books nothing; "all limits" has tokens, money and share too, and
books a line of the ledger. One run, one machine, the ways interleaved round by round. The servers' own CPU is not
counted. `spread` is the cheapest and the dearest round; a round that ends with the store down is repeated.
"""

import argparse
import asyncio
import os
import platform
import statistics
import time

import uvloop
from msgspec.structs import replace

from gateway.embedded import embedded
from gateway.store import Bound, Limits, Line, Money, Outage, Portion, Store, open_store
from gateway.store.circuit import PAUSE
from loadtest.clusters import cluster, single

Load = tuple[Limits, Bound, tuple[Line, ...]]
BARE = Limits(100_000_000, 100_000, 60.0, outage=Outage(money="local"))  # a round that meets an outage is repeated
ALL = replace(BARE, tokens_per_minute=10**9, money=Money(10**15, 86_400.0, True), share=Portion(0.5, 3_600.0))
LOADS: dict[str, Load] = {
    "bare": (BARE, Bound(), ()),
    "all limits": (
        ALL,
        Bound("pro", "flash", 1200, 800, 98_765, 9_876),
        (Line("flash", "answer", False, 1200, 0, 345, 4_321),),
    ),
}
CALLERS = [f"caller{n}" for n in range(100)]


async def ask(store: Store, load: Load, count: int, first: int) -> None:
    limits, bound, lines = load
    for n in range(count):
        caller = CALLERS[(first + n) % len(CALLERS)]
        answer = await store.admit(caller, limits, b"k" * 32, bound)
        await store.settle(caller, answer.lease or "", lines)


async def round_of(store: Store, load: Load, requests: int, concurrency: int) -> tuple[float, float]:
    """CPU microseconds of this process a request, and requests a second."""
    for _ in range(10):
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(ask(store, load, requests // concurrency, n) for n in range(concurrency)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if store.state == "ok":
            return cpu / requests * 1e6, requests / wall
        await asyncio.sleep(2 * PAUSE)
    raise TimeoutError("the store is down")


async def measure(urls: dict[str, str], options: argparse.Namespace) -> None:
    stores = {name: open_store(url) for name, url in urls.items()}
    ways = [(f"{place}, {load}", store, LOADS[load]) for load in LOADS for place, store in stores.items()]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in ways}
    for _, store, load in ways:
        await round_of(store, load, options.requests // 10, options.concurrency)
    for _ in range(options.rounds):
        for name, store, load in ways:
            found[name].append(await round_of(store, load, options.requests, options.concurrency))
    for name, rounds in found.items():
        cpu = sorted(spent for spent, _ in rounds)
        rate = statistics.median(rate for _, rate in rounds)
        told = f"{statistics.median(cpu):6.1f} us CPU a request   spread {cpu[0]:.1f}..{cpu[-1]:.1f}   {rate:6.0f}/s"
        print(f"{name:36} {told}")
    for store in stores.values():
        await store.close()


async def compare(options: argparse.Namespace) -> None:
    async with embedded() as url:
        with cluster() as nodes, single() as tcp:
            urls = {"one server, unix socket": url, "one server, TCP": tcp, "cluster, 3 primaries": nodes.url}
            await measure(urls, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    print(f"{machine}, {options.concurrency} at once")
    uvloop.run(compare(options))


if __name__ == "__main__":
    main()
