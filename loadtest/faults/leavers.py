"""Does a model server stop when its caller leaves?   Seconds until it has."""

import asyncio
import json
import statistics
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from loadtest.servers import Sim, gateway, policy, sim

PROMPT = "Write down what a gateway between a caller and two models has to do when the caller leaves."
PATIENCE = 5.0  # seconds until an exchange that still runs counts as never stopped
Caller = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Phase(NamedTuple):
    """A moment at which callers leave: what Flash is told to do, what is asked, how many exchanges must be open."""

    faults: dict[str, Any]
    asked: dict[str, Any]
    open: int


STALLED = {"stall_first": 60}
PHASES = {
    "triage": Phase(STALLED, {"model": "auto", "stream": True}, 2),  # the question and the draft
    "before the first byte": Phase(STALLED, {"model": "flash", "stream": True}, 1),
    "mid-stream": Phase({"stall_after": 3, "stall": 60}, {"model": "flash", "stream": True}, 1),
    "not streaming": Phase(STALLED, {"model": "flash"}, 1),
}
QUEUE = "in the queue"
PLACES = 2  # of Flash, so that two exchanges fill it
LIMITS = f"limits: {{max_inflight: {PLACES}, queue_timeout: 60s}}"


@contextmanager
def servers() -> Iterator[tuple[Sim, str]]:
    """Flash and the gateway's URL."""
    rules = policy(speculate="always").replace("    set:", f"    {LIMITS}\n    set:", 1)
    with sim("flash") as flash, sim("pro") as pro, gateway(rules, flash, pro) as url:
        yield flash, url


async def sent(url: str, name: str, asked: dict[str, Any]) -> Caller:
    """A caller whose request of that name is on its way."""
    host = urlsplit(url)
    body = json.dumps({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4000, **asked}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host.netloc}\r\nx-request-id: {name}\r\n"
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


def go(caller: Caller, reset: bool) -> float:
    """The caller leaves, by a reset or by the end of its stream; when."""
    left = time.time()
    caller[1].transport.abort() if reset else caller[1].close()
    return left


async def leave(url: str, flash: Sim, name: str, phase: Phase, reset: bool) -> float:
    """Ask, leave once Flash works on it, and return the seconds until the last of its exchanges was aborted.

    Raises TimeoutError when one runs on, RuntimeError when Flash ended one by itself.
    """
    caller = await sent(url, name, phase.asked)
    if phase.asked.get("stream") and "stall_after" in phase.faults:
        await caller[0].readuntil(b"data: ")
    seen = await until(flash, name, phase.open, "running")
    left = go(caller, reset)
    seen = await until(flash, name, phase.open, "aborted", "finished", "errored")
    if any(one["state"] != "aborted" for one in seen):
        raise RuntimeError(f"Flash ended {name} by itself: {seen}")
    return max(float(one["ended_at"]) for one in seen) - left


async def leave_queue(url: str, flash: Sim, name: str, reset: bool) -> float:
    """The same where Flash is full: the seconds until nobody waits for it. Raises TimeoutError also where it sees who
    left."""
    caller = await sent(url, name, {"model": "flash"})
    await waits(url, 1)
    left = go(caller, reset)
    await waits(url, 0)
    took = time.time() - left
    await until(flash, name, 0, "running", "aborted", "finished")
    return took


async def waits(url: str, count: int) -> None:
    """Returns when so many requests wait for Flash. Raises TimeoutError."""
    line = f'gateway_queued_requests{{tier="flash"}} {count}.0\n'.encode()
    async with asyncio.timeout(PATIENCE):
        while line not in await asyncio.to_thread(fetched, url + "/metrics"):  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        data: bytes = answer.read()
    return data


async def until(flash: Sim, name: str, count: int, *states: str) -> list[dict[str, Any]]:
    """Wait until `count` exchanges of the request are in one of `states`. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        while True:
            state = await asyncio.to_thread(flash.state)
            ours = [one for one in state["requests"] if one["id"].startswith(name + "-")]
            seen = [one for one in ours if one["state"] in states]
            if len(seen) == count:
                return seen
            await asyncio.sleep(0.005)


async def cancellations(flash: Sim, url: str, rounds: int) -> dict[str, list[float]]:
    """Seconds from a caller's leaving to the abort on Flash, by phase."""
    found: dict[str, list[float]] = {}
    for number, (name, phase) in enumerate(PHASES.items()):
        flash.reset()
        flash.config(**phase.faults)
        found[name] = [
            await leave(url, flash, f"leaver.{number}.{turn}", phase, turn % 2 > 0) for turn in range(rounds)
        ]
    found[QUEUE] = await from_queue(flash, url, rounds)
    flash.reset()
    return found


async def from_queue(flash: Sim, url: str, rounds: int) -> list[float]:
    flash.reset()
    flash.config(**STALLED)
    inside = [await sent(url, f"inside.{turn}", {"model": "flash"}) for turn in range(PLACES)]
    for turn in range(PLACES):
        await until(flash, f"inside.{turn}", 1, "running")
    try:
        return [await leave_queue(url, flash, f"waiter.{turn}", turn % 2 > 0) for turn in range(rounds)]
    finally:
        for caller in inside:
            go(caller, reset=True)


def report(rounds: int) -> None:
    with servers() as (flash, url):
        found = asyncio.run(cancellations(flash, url, rounds))
    print(f"a caller leaves: milliseconds until Flash has stopped, {rounds} callers each")
    for name, times in found.items():
        late = statistics.quantiles(times, n=100)[-1]
        print(f"  {name:<24} p50 {statistics.median(times) * 1000:6.1f}  p99 {late * 1000:6.1f}")
