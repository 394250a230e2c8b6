"""Does every stream end well when the gateway is told to leave?"""

import asyncio
import json
import signal
from contextlib import closing
from typing import NamedTuple

from gateway.http1 import Client, Origin
from loadtest.faults.backend import LIMITS, ask
from loadtest.servers import Process, policy, running, sim

ANSWER = 120  # tokens


class Drained(NamedTuple):
    """Streams that ended with [DONE], with an error event, without either; milliseconds until /ready said no."""

    whole: int
    told: int
    cut: int
    unready: float


async def stream(client: Client, url: str) -> bytes:
    """All of a streamed answer, as far as it came."""
    asked = {"model": "flash", "stream": True, "max_tokens": ANSWER, "ignore_eos": True}
    body = json.dumps({**asked, "messages": [{"role": "user", "content": "Tell me a long story."}]}).encode()
    return (await ask(client, url, "drain", body)).data


async def unready(client: Client, url: str) -> float:
    """Milliseconds until /ready says 503. Raises TimeoutError."""
    loop, origin = asyncio.get_running_loop(), Origin.parse(url)
    started = loop.time()
    async with asyncio.timeout(5):
        while True:
            response = await client.request(origin, b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n", b"", LIMITS)
            response.close()
            if response.status == 503:
                return (loop.time() - started) * 1000


async def drive(url: str, process: Process, count: int) -> Drained:
    with closing(Client()) as client:
        tasks = [asyncio.create_task(stream(client, url)) for _ in range(count)]
        await asyncio.sleep(1.0)
        if any(task.done() for task in tasks):
            raise RuntimeError("a stream ended before the drain began")
        process.send_signal(signal.SIGTERM)
        waited, answers = await unready(client, url), await asyncio.gather(*tasks)
    whole = sum(data.endswith(b"data: [DONE]\n\n") for data in answers)
    errors = sum(b'data: {"error"' in data and not data.endswith(b"data: [DONE]\n\n") for data in answers)
    return Drained(whole, errors, count - whole - errors, waited)


def measure(count: int) -> Drained:
    with sim("flash", "--speed", "0.5") as flash, sim("pro") as pro:
        settings = {"REDIS_URL": "embedded", "DRAIN_WAIT": "1"}
        with running(policy(), (flash, pro), **settings) as (url, process):
            return asyncio.run(drive(url, process, count))


def report(count: int) -> None:
    found = measure(count)
    print(f"SIGTERM with {count} streams under way")
    print(f"  ended well {found.whole}, with an error event {found.told}, cut {found.cut}")
    print(f"  /ready said no after {found.unready:.0f} ms")
