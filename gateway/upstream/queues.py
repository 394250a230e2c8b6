"""How many requests wait inside the model servers?   vLLM's own figure, read once a second."""

import asyncio
from collections.abc import Collection

from gateway.http1 import Client
from gateway.upstream.loads import load, metrics
from gateway.upstream.replicas import Replica

EVERY = 1.0  # seconds between two readings


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
    text = await metrics(client, replica.origin)
    waiting = load(text).waiting if text is not None else None
    if waiting is not None:
        replica.told(waiting, asyncio.get_running_loop().time())
