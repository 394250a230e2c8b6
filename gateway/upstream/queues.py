"""How many requests wait inside the model servers?   vLLM's own figures, read once a second."""

import asyncio
from collections.abc import Mapping
from itertools import chain

from gateway.http1 import Client
from gateway.upstream.loads import load, metrics
from gateway.upstream.places import Places
from gateway.upstream.replicas import Replica, queues

EVERY = 1.0  # seconds between two readings


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
    text = await metrics(client, replica.origin)
    found = load(text) if text is not None else None
    if found is not None and found.waiting is not None:
        replica.told(found.waiting, asyncio.get_running_loop().time(), found.running)
