"""Is a caller told in time that its time is over, and do the servers stop by then?"""

import asyncio
import contextlib
import statistics
from typing import Any, NamedTuple

from gateway.http1 import Client
from loadtest.faults.client import Outcome, ask
from loadtest.servers import Sim, gateway, policy, sim

DEADLINE = 1.0  # seconds
GRACE = 0.25  # seconds after it until every exchange must have stopped
TOGETHER = 50  # callers at once


class Wait(NamedTuple):
    """What Flash is told to do, and what is asked while it does. The gateway's own probe of the classifier, which asks
    as triage does, is left alone where callers do not wait for a verdict."""

    faults: dict[str, Any]
    asked: dict[str, Any]


WAITS = {
    "the first byte": Wait({"stall_first": 60, "only": "answer"}, {"model": "flash"}),
    "a slow verdict": Wait({"stall_first": 60, "only": "triage"}, {"model": "auto"}),
    "the next chunk": Wait({"stall_after": 3, "stall": 60, "only": "answer"}, {"model": "flash", "stream": True}),
    "a place": Wait({"stall_first": 60, "only": "answer"}, {"model": "flash"}),
}
FULL = "set: {chat_template"


class Callers(NamedTuple):
    """So many, who give themselves so many seconds."""

    number: int
    deadline: float


async def rounds(client: Client, url: str, flash: Sim, wait: Wait, callers: Callers) -> tuple[list[Outcome], int]:
    """Outcomes, and how many exchanges still ran on Flash GRACE after the last."""
    flash.reset()
    flash.config(**wait.faults)
    told = f"x-request-timeout: {callers.deadline}"
    found: list[Outcome] = []
    for turn in range(0, callers.number, TOGETHER):
        texts = [f"deadline {turn + one}" for one in range(min(TOGETHER, callers.number - turn))]
        found += await asyncio.gather(*(ask(client, url, text=text, headers=told, **wait.asked) for text in texts))
    await asyncio.sleep(GRACE)
    return found, sum(one["state"] == "running" for one in flash.state()["requests"])


def measure(count: int, deadline: float) -> dict[str, tuple[list[Outcome], int]]:
    async def drive(urls: dict[str, str]) -> dict[str, tuple[list[Outcome], int]]:
        with contextlib.closing(Client()) as client:
            callers = Callers(count, deadline)
            return {name: await rounds(client, urls[name], flash, wait, callers) for name, wait in WAITS.items()}

    with contextlib.ExitStack() as stack:
        flash, pro = stack.enter_context(sim("flash", "--speed", "0")), stack.enter_context(sim("pro", "--speed", "0"))
        roomy = stack.enter_context(gateway(policy(), flash, pro))
        small = policy().replace(FULL, "limits: {max_inflight: 1, queue_timeout: 30s}\n    " + FULL)
        full = stack.enter_context(gateway(small, flash, pro))
        return asyncio.run(drive({name: full if name == "a place" else roomy for name in WAITS}))


def report(rounds: int) -> None:
    print(f"callers give {DEADLINE:g} s: how much later they had their answer or its end, {rounds} callers each")
    for name, (outcomes, running) in measure(rounds, DEADLINE).items():
        late = [(one.seconds - DEADLINE) * 1000 for one in outcomes]
        statuses = ", ".join(f"{one}: {sum(o.status == one for o in outcomes)}" for one in {o.status for o in outcomes})
        print(
            f"  waiting for {name:<15} p50 {statistics.median(late):5.0f} ms  p99 "
            f"{statistics.quantiles(late, n=100)[-1]:5.0f} ms  ({statuses}); still running {running}"
        )
