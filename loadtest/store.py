"""What does a decision of the store cost this process?   CPU a request (admit and release), one server and a cluster.

    python -m loadtest.store [--requests 20000] [--concurrency 64] [--rounds 5]

One run, one machine, the ways interleaved round by round. The servers' own CPU is not counted. `spread` is the cheapest
and the dearest round.
"""

import argparse
import asyncio
import os
import platform
import statistics
import time

import uvloop

from gateway.embedded import embedded
from gateway.store import Limits, Store, open_store
from loadtest.clusters import cluster, single

PLENTY = Limits(100_000_000, 100_000, 60.0)
CALLERS = [f"caller{n}" for n in range(100)]


async def ask(store: Store, count: int, first: int) -> None:
    for n in range(count):
        caller = CALLERS[(first + n) % len(CALLERS)]
        answer = await store.admit(caller, PLENTY, b"k" * 32)
        await store.settle(caller, answer.lease or "")


async def round_of(store: Store, requests: int, concurrency: int) -> tuple[float, float]:
    """CPU microseconds of this process a request, and requests a second."""
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask(store, requests // concurrency, n) for n in range(concurrency)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert store.state == "ok"
    return cpu / requests * 1e6, requests / wall


async def measure(urls: dict[str, str], options: argparse.Namespace) -> None:
    stores = {name: open_store(url) for name, url in urls.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
    for store in stores.values():
        await round_of(store, options.requests // 10, options.concurrency)
    for _ in range(options.rounds):
        for name, store in stores.items():
            found[name].append(await round_of(store, options.requests, options.concurrency))
    for name, rounds in found.items():
        cpu = sorted(spent for spent, _ in rounds)
        rate = statistics.median(rate for _, rate in rounds)
        told = f"{statistics.median(cpu):6.1f} us CPU a request   spread {cpu[0]:.1f}..{cpu[-1]:.1f}   {rate:6.0f}/s"
        print(f"{name:24} {told}")
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
