"""What do callers notice of a replica that fails, and how many calls does a tier get in which all fail?"""

import asyncio
import contextlib
import os
import signal
import statistics
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gateway.http1 import Client
from loadtest.faults.client import Outcome
from loadtest.faults.freeze import load
from loadtest.servers import MODELS, Sim, gateway, pid_of, sim

POLICY = """\
schema: 1
tiers:
  flash: {{model: {model}, replicas: [{urls}], balance: least_inflight, timeouts: {{first_byte: 500ms, total: 1s}}}}
rules: [{{id: all, route: flash}}]
callers: {{default: {{plan: p}}, plans: {{p: {{requests_per_minute: 1000000, concurrency: 10000}}}}}}
"""
FROZEN = "is frozen"
FAULTS = {"answers 500": {"status": 500}, "stalls": {"stall_first": 60}, "answers 503": {"status": 503}, FROZEN: {}}


class Failure(NamedTuple):
    """What became of the requests while one of three replicas failed in a way, how often it was asked meanwhile, and
    the seconds from its recovery until it answered again."""

    outcomes: list[Outcome]
    asked: int
    back: float


class Span(NamedTuple):
    """So many seconds of so many requests a second."""

    seconds: float
    rate: int


@contextlib.contextmanager
def frozen(server: int) -> Iterator[None]:
    """The process stands still; its kernel takes connections and bytes for it."""
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server, signal.SIGCONT)


async def one_of_three(client: Client, url: str, bad: Sim, name: str, span: Span) -> Failure:
    bad.config(**FAULTS[name])
    with frozen(pid_of(bad.url)) if name == FROZEN else contextlib.nullcontext():
        outcomes = await load(client, url, span.rate, span.seconds)
    asked = bad.state()["counters"]["received"]
    bad.reset()
    started = asyncio.get_running_loop().time()
    while not bad.state()["counters"]["finished"]:
        await load(client, url, span.rate, 0.2)
    back = asyncio.get_running_loop().time() - started
    bad.reset()
    return Failure(outcomes, asked, back)


async def all_fail(client: Client, url: str, sims: list[Sim], span: Span) -> float:
    """Calls to servers for each request, while every one is answered by a 503."""
    for one in sims:
        one.reset()
        one.config(status=503)
    outcomes = await load(client, url, span.rate, span.seconds)
    return sum(int(one.state()["counters"]["received"]) for one in sims) / len(outcomes)


def measure(seconds: float, rate: int, faults: Iterable[str] = FAULTS) -> tuple[dict[str, Failure], float]:
    async def drive(url: str) -> tuple[dict[str, Failure], float]:
        with contextlib.closing(Client()) as client:
            span = Span(seconds, rate)
            found = {name: await one_of_three(client, url, sims[0], name, span) for name in faults}
            return found, await all_fail(client, url, sims, Span(3 * seconds, rate))

    with contextlib.ExitStack() as stack:
        sims = [stack.enter_context(sim("flash", "--speed", "0")) for _ in range(3)]
        text = POLICY.format(model=MODELS["flash"], urls=", ".join(f'"{one.url}"' for one in sims))
        return asyncio.run(drive(stack.enter_context(gateway(text, sims[0], sims[0]))))


def report(seconds: float, rate: int) -> None:
    failures, calls = measure(seconds, rate)
    print(f"one of three replicas fails for {seconds:.0f} s under {rate} requests a second")
    for name, found in failures.items():
        failed = sum(one.status != 200 for one in found.outcomes)
        late = statistics.quantiles([one.seconds * 1000 for one in found.outcomes], n=100)[-1]
        print(
            f"  {name:<12} failed {failed} of {len(found.outcomes)}, p99 {late:.0f} ms; "
            f"asked {found.asked} times; answers again {found.back:.1f} s after it is well"
        )
    print(f"every replica answers 503 for {3 * seconds:.0f} s: {calls:.3f} calls a request")
