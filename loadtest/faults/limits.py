"""Do several gateways on one store admit what the limit says, and no more, whatever their clocks say?"""

import asyncio
import contextlib
import math

from gateway.http1 import Client
from loadtest.faults.client import Outcome, ask
from loadtest.faults.clock import shifted, wrong_clock
from loadtest.servers import gateway, policy, sim, valkey

CLOCKS = (3600, -3600)  # seconds by which each gateway's clock is wrong
WORKERS = 2  # processes of each


async def burst(urls: list[str], requests: int) -> list[Outcome]:
    """All requests at once, spread over the gateways."""
    with contextlib.closing(Client()) as client:
        return await asyncio.gather(*(ask(client, urls[turn % len(urls)]) for turn in range(requests)))


def measure(requests: int, limit: int) -> tuple[int, int, int, float]:
    """Admitted, refused, failed, and how many the limit allows from the first request to the last answer."""
    with contextlib.ExitStack() as stack:
        flash, pro = stack.enter_context(sim("flash", "--speed", "0")), stack.enter_context(sim("pro", "--speed", "0"))
        store, text = stack.enter_context(valkey()), policy(requests_per_minute=limit)
        library = stack.enter_context(wrong_clock())
        clocks = [shifted(library, seconds) for seconds in CLOCKS]
        urls = [stack.enter_context(gateway(text, flash, pro, store, workers=WORKERS, **clock)) for clock in clocks]
        seen = asyncio.run(burst(urls, requests))
    took = max(one.started + one.seconds for one in seen) - min(one.started for one in seen)
    counts = [sum(one.status == status for one in seen) for status in (200, 429)]
    return counts[0], counts[1], requests - sum(counts), limit + math.floor(limit * took / 60)


def report(requests: int, limit: int) -> None:
    admitted, refused, failed, allowed = measure(requests, limit)
    told = f"{len(CLOCKS)} x {WORKERS} processes on one store, clocks wrong by {CLOCKS} s"
    print(f"{requests} requests at once over {told}, {limit} a minute")
    print(
        f"  admitted {admitted} (the limit and its refill in that time: {allowed}), refused {refused}, failed {failed}"
    )
