"""Do callers who never finish asking get in the way of those who do?"""

import asyncio
import statistics
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from gateway.http1 import Client
from loadtest.faults.backend import ask, backend, gateway, question

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
KINDS = {  # what is sent at once, and what is sent once a second
    "silent": (b"", b""),
    "dripping head": (HEAD + b"x: ", b"x"),
    "dripping body": (HEAD + b"content-length: 1000\r\n\r\n", b" "),
}


class Slow(NamedTuple):
    """Seconds until each slow connection was closed, by kind; seconds of the others' requests before and meanwhile."""

    closed: dict[str, list[float]]
    before: list[float]
    meanwhile: list[float]


async def linger(url: str, kind: str, patience: float) -> float:
    """Seconds until the gateway closed. Raises TimeoutError after `patience` seconds."""
    loop, host, (first, drop) = asyncio.get_running_loop(), urlsplit(url), KINDS[kind]
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    started = loop.time()
    writer.write(first)
    closed = asyncio.create_task(reader.read())
    try:
        async with asyncio.timeout(patience):
            while not (await asyncio.wait({closed}, timeout=1.0))[0]:
                writer.write(drop)
        return loop.time() - started
    finally:
        closed.cancel()
        writer.transport.abort()


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


async def main(url: str, port: int, count: int, asked: int) -> Slow:
    client = Client()
    try:
        async with backend(port):
            before = await usual(client, url, asked)
            names = [kind for kind in KINDS for _ in range(count)]
            lingering = [asyncio.create_task(linger(url, kind, 30.0)) for kind in names]
            await asyncio.sleep(0.1)
            meanwhile = await usual(client, url, asked)
            times = await asyncio.gather(*lingering)
    finally:
        client.close()
    closed = {kind: [seconds for name, seconds in zip(names, times, strict=True) if name == kind] for kind in KINDS}
    return Slow(closed, before, meanwhile)


def measure(count: int, asked: int, **settings: str) -> Slow:
    with gateway(**settings) as (url, port, _):
        return asyncio.run(main(url, port, count, asked))


def report(count: int, asked: int) -> None:
    found = measure(count, asked)
    print(f"{count} connections of each slow kind: seconds until they were closed")
    for kind, times in found.closed.items():
        print(f"  {kind:<16} first {min(times):5.2f}  last {max(times):5.2f}")
    print(f"others' requests, p99: {late(found.before):.1f} ms before, {late(found.meanwhile):.1f} ms meanwhile")


def late(times: Iterable[float]) -> float:
    """The 99th percentile in milliseconds."""
    return statistics.quantiles(times, n=100)[-1] * 1000
