"""Does a client that leaves free its sequence at once, whatever the phase?"""

import asyncio
import time
from collections.abc import Iterator

import httpx2
import pytest

from loadtest.servers import until
from tests.backends.sim.servers import HTTP, JSON, OFF, entry, served, state


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    """A server with one slot, where each phase lasts."""
    flags = ("--max-num-seqs", "1", "--prefill-overhead", "300ms", "--inter-token-latency", "20ms")
    with served(*flags) as base:
        yield base


def body(name: str, stream: bool) -> JSON:
    """A long answer."""
    messages = [{"role": "user", "content": "Explain tides"}]
    fields: JSON = {"max_tokens": 500, "ignore_eos": True, "chat_template_kwargs": OFF}
    return {"messages": messages, "request_id": name, "stream": stream, **fields}


async def leave(url: str, sent: JSON, after: float, headers: JSON | None = None) -> float:
    """Send a chat and hang up `after` seconds later; gives the wall time of hanging up."""
    async with httpx2.AsyncClient(verify=False, trust_env=False) as client:
        await client.get(f"{url}/health")  # the time counts from a connection that stands
        request = client.post(f"{url}/v1/chat/completions", json=sent, headers=headers, timeout=30)
        task = asyncio.create_task(request)
        await asyncio.sleep(after)
        task.cancel()
        left = time.time()
        await asyncio.gather(task, return_exceptions=True)
    return left


def aborted(url: str, name: str, left: float, phase: str) -> None:
    """The entry ended as aborted in `phase`, within 100 ms of `left`."""
    until(lambda: entry(url, name)["state"] != "running")
    ended = entry(url, name)
    assert (ended["state"], ended["phase"]) == ("aborted", phase)
    assert ended["ended_at"] - left < 0.1
    until(lambda: state(url)["running"] == 0)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("phase", "after"), [("prefill", 0.15), ("decode", 0.5)])
def test_leaving_frees_the_slot(slow: str, stream: bool, phase: str, after: float) -> None:
    name = f"{phase}-{stream}"
    left = asyncio.run(leave(slow, body(name, stream), after))
    aborted(slow, name, left, phase)


async def test_leaving_the_waiting_queue_leaves_no_trace(slow: str) -> None:
    first = asyncio.create_task(leave(slow, body("holder", True), 0.6))
    await asyncio.sleep(0.1)
    waiter = asyncio.create_task(leave(slow, body("waiter", True), 0.2))
    await asyncio.sleep(0.1)
    assert (await asyncio.to_thread(state, slow))["waiting"] == 1
    left = await waiter
    await asyncio.sleep(0.05)
    assert (await asyncio.to_thread(state, slow))["waiting"] == 0
    await first
    aborted(slow, "waiter", left, "waiting")


def test_leaving_during_an_injected_stall_counts_too(slow: str) -> None:
    left = asyncio.run(leave(slow, body("stalled", False), 0.2, {"x-sim-fault": "stall_first=60"}))
    aborted(slow, "stalled", left, "received")


def test_the_state_counts_and_forgets(slow: str) -> None:
    assert state(slow)["counters"]["aborted"] >= 1
    assert HTTP.delete(f"{slow}/admin/state").json()["requests"] == []
    assert state(slow)["counters"]["received"] == 0
