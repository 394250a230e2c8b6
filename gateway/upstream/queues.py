"""How many requests wait inside the model servers?   vLLM's own figure, read once a second."""

import asyncio
import re
from collections.abc import Collection

from gateway.http1 import Client, Limits, TransportError
from gateway.upstream.replicas import Replica

EVERY = 1.0  # seconds between two readings
LIMITS = Limits(connect=0.5, first_byte=1.0, idle=1.0, total=1.0)
LARGEST = 4 << 20  # bytes; vLLM's metrics are some 100 KB
# One series for each engine of a data-parallel server. Names that only begin so (..._by_reason) are others.
_WAITING = re.compile(rb"^vllm:num_requests_waiting(?:\{[^\n]*\})?[ \t]+([0-9.eE+]+)", re.MULTILINE)


class Queues:
    """Reads the queues that were last looked at, from the first look until it is closed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._replicas: Collection[Replica] = ()
        self._reading: asyncio.Task[None] | None = None

    def look(self, replicas: Collection[Replica]) -> None:
        """These are of interest from here on."""
        self._replicas = replicas
        if not self._reading:
            self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            await asyncio.gather(*(ask(self._client, replica) for replica in self._replicas))
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
            found = waiting(await response.read(LARGEST)) if response.status == 200 else None
        finally:
            response.close()
    except TransportError:
        return
    if found is not None:
        replica.told(found, asyncio.get_running_loop().time())


def waiting(metrics: bytes) -> int | None:
    """The queue's length, summed over engines; None when the metrics do not tell."""
    values = _WAITING.findall(metrics)
    try:
        return int(sum(map(float, values))) if values else None
    except (ValueError, OverflowError):
        return None
