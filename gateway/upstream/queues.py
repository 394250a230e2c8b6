"""How many requests wait inside the model servers?   vLLM's own figures, read once a second."""

import asyncio
import re
from collections.abc import Mapping
from itertools import chain

from gateway.http1 import Client, Limits, TransportError
from gateway.upstream.places import Places
from gateway.upstream.replicas import Replica, queues

EVERY = 1.0  # seconds between two readings
LIMITS = Limits(connect=0.5, first_byte=1.0, idle=1.0, total=1.0)
LARGEST = 4 << 20  # bytes; vLLM's metrics are some 100 KB
# One series for each engine of a data-parallel server. Names that only begin so (..._by_reason) are others.
_SERIES = rb"^vllm:num_requests_%b(?:\{[^\n]*\})?[ \t]+([0-9.eE+]+)"
_WAITING, _RUNNING = (re.compile(_SERIES % name, re.MULTILINE) for name in (b"waiting", b"running"))


class Queues:
    """Reads the queues that were last looked at, from the first look until it is closed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._watched: Mapping[Places, list[Replica]] = {}
        self._reading: asyncio.Task[None] | None = None

    def look(self, watched: Mapping[Places, list[Replica]]) -> None:
        """These are of interest from here on; the places of each tier are told of its replicas."""
        self._watched = watched
        if not self._reading:
            self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            watched = self._watched
            await asyncio.gather(*(ask(self._client, one) for one in set(chain.from_iterable(watched.values()))))
            now = asyncio.get_running_loop().time()
            for places, replicas in watched.items():
                places.told(queues(replicas, now))
            await asyncio.sleep(EVERY)

    async def close(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.wait([self._reading])


async def ask(client: Client, replica: Replica) -> None:
    """Read the length of the replica's queue; what cannot be read or is not there stays unknown."""
    origin = replica.origin
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    head = f"GET {origin.prefix}/metrics HTTP/1.1\r\nhost: {host}:{origin.port}\r\naccept: text/plain\r\n\r\n".encode()
    try:
        response = await client.request(origin, head, b"", LIMITS)
        try:
            text = await response.read(LARGEST) if response.status == 200 else b""
        finally:
            response.close()
    except TransportError:
        return
    found = waiting(text)
    if found is not None:
        replica.told(found, asyncio.get_running_loop().time(), _sum(_RUNNING, text))


def waiting(metrics: bytes) -> int | None:
    """The queue's length, summed over engines; None when the metrics do not tell."""
    return _sum(_WAITING, metrics)


def _sum(series: re.Pattern[bytes], metrics: bytes) -> int | None:
    values = series.findall(metrics)
    try:
        return int(sum(map(float, values))) if values else None
    except (ValueError, OverflowError):
        return None
