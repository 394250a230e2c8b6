"""Does a client that leaves free its sequence at once, whatever the phase?"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

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


async def leave(url: str, sent: JSON, when: Awaitable[object], headers: JSON | None = None) -> float:
    """Send a chat and hang up when that has come; gives the wall time of hanging up."""
    async with httpx2.AsyncClient(verify=False, trust_env=False) as client:
        await client.get(f"{url}/health")  # the time counts from a connection that stands
        request = client.post(f"{url}/v1/chat/completions", json=sent, headers=headers, timeout=30)
        task = asyncio.create_task(request)
        await when
        task.cancel()
        left = time.time()
        await asyncio.gather(task, return_exceptions=True)
    return left


def come(done: Callable[[], bool]) -> Awaitable[object]:
    return asyncio.to_thread(until, done)


def seen(url: str, name: str, phase: str) -> Awaitable[object]:
    """The request is in `phase`."""
    return come(lambda: (name, phase) in ((one["id"], one["phase"]) for one in state(url)["requests"]))


def aborted(url: str, name: str, left: float, phase: str) -> None:
    """The entry ended as aborted in `phase`, within 100 ms of `left`."""
    until(lambda: entry(url, name)["state"] != "running")
    ended = entry(url, name)
    assert (ended["state"], ended["phase"]) == ("aborted", phase)
    assert ended["ended_at"] - left < 0.1
    until(lambda: state(url)["running"] == 0)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_leaving_frees_the_slot(slow: str, stream: bool, phase: str) -> None:
    name = f"{phase}-{stream}"
    left = await leave(slow, body(name, stream), seen(slow, name, phase))
    aborted(slow, name, left, phase)


async def test_leaving_the_waiting_queue_leaves_no_trace(slow: str) -> None:
    def counts() -> tuple[int, int]:
        shown = state(slow)
        return shown["running"], shown["waiting"]

    over = asyncio.Event()
    first = asyncio.create_task(leave(slow, body("holder", True), over.wait()))
    await come(lambda: counts() == (1, 0))
    left = await leave(slow, body("waiter", True), come(lambda: counts() == (1, 1)))
    await come(lambda: counts() == (1, 0))
    over.set()
    await first
    aborted(slow, "waiter", left, "waiting")


async def test_leaving_during_an_injected_stall_counts_too(slow: str) -> None:
    headers = {"x-sim-fault": "stall_first=60"}
    left = await leave(slow, body("stalled", False), seen(slow, "stalled", "received"), headers)
    aborted(slow, "stalled", left, "received")


def test_the_state_counts_and_forgets(slow: str) -> None:
    assert state(slow)["counters"]["aborted"] >= 1
    assert HTTP.delete(f"{slow}/admin/state").json()["requests"] == []
    assert state(slow)["counters"]["received"] == 0
