"""Do callers who never finish asking get in the way of those who do?"""

import asyncio
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from typing import NamedTuple
from urllib.parse import urlsplit

from gateway.http1 import Client
from loadtest.faults.backend import ask, backend, gateway, question

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
KINDS = {  # what is sent at once, and what is sent once a second
    "silent": (b"", b""),
    "dripping head": (HEAD + b"x: ", b"x"),
    "dripping body": (HEAD + b"content-length: 1000\r\n\r\n", b" "),
}
PATIENCE = 30.0  # seconds that a slow caller goes on for at most


class Many(NamedTuple):
    """So many slow connections of each kind, which begin within `spread` seconds: callers do not drip in step."""

    number: int
    spread: float = 1.0


class Slow(NamedTuple):
    """Seconds until each slow connection was closed, by kind; seconds of the others' requests before and meanwhile."""

    closed: dict[str, list[float]]
    before: list[float]
    meanwhile: list[float]


async def linger(url: str, kind: str, after: float) -> float:
    """Seconds until the gateway closed a connection that begins `after` seconds. Raises TimeoutError."""
    loop, host, (first, drop) = asyncio.get_running_loop(), urlsplit(url), KINDS[kind]
    await asyncio.sleep(after)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    started = loop.time()
    writer.write(first)
    closed = asyncio.create_task(reader.read())
    try:
        async with asyncio.timeout(PATIENCE):
            while not (await asyncio.wait({closed}, timeout=1.0))[0]:
                writer.write(drop)
        return loop.time() - started
    finally:
        closed.cancel()
        writer.transport.abort()


def lingering(url: str, many: Many) -> dict[str, list[float]]:
    """Seconds by kind."""

    async def main() -> list[float]:
        step = many.spread / max(1, len(names))
        return await asyncio.gather(*(linger(url, kind, at * step) for at, kind in enumerate(names)))

    names = [kind for _ in range(many.number) for kind in KINDS]
    times = asyncio.run(main())
    return {kind: [seconds for name, seconds in zip(names, times, strict=True) if name == kind] for kind in KINDS}


async def usual(client: Client, url: str, count: int) -> list[float]:
    """Seconds of each of so many streams, one after another."""
    loop, times = asyncio.get_running_loop(), []
    for _ in range(count):
        started = loop.time()
        heard = await ask(client, url, "usual", question())
        if heard.status != 200 or heard.broken:
            raise RuntimeError(f"a caller in good order was let down: {heard}")
        times.append(loop.time() - started)
        await asyncio.sleep(0.01)
    return times


async def main(url: str, port: int, many: Many, asked: int) -> Slow:
    """The slow callers are in a process of their own: they shall be in the gateway's way, not in the measurement's."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, get_context("spawn")) as apart, closing(Client()) as client:
        async with backend(port):
            await loop.run_in_executor(apart, lingering, url, Many(0))  # it takes a second to start
            before = await usual(client, url, asked)
            slow = loop.run_in_executor(apart, lingering, url, many)
            await asyncio.sleep(1.2 * many.spread)
            meanwhile = await usual(client, url, asked)
            return Slow(await slow, before, meanwhile)


def measure(many: Many, asked: int, **settings: str) -> Slow:
    with gateway(**settings) as (url, port, _):
        return asyncio.run(main(url, port, many, asked))


def report(count: int, asked: int) -> None:
    found = measure(Many(count), asked)
    print(f"{count} connections of each slow kind: seconds until they were closed")
    for kind, times in found.closed.items():
        print(f"  {kind:<16} first {min(times):5.2f}  last {max(times):5.2f}")
    before, meanwhile = late(found.before), late(found.meanwhile)
    print(
        f"others' requests, p99: {before:.1f} ms before, {meanwhile:.1f} ms meanwhile, {meanwhile / before:.2f} times"
    )


def late(times: Iterable[float]) -> float:
    """The 99th percentile in milliseconds."""
    return statistics.quantiles(times, n=100)[-1] * 1000
