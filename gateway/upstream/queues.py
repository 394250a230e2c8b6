"""How many requests wait inside the model servers?   vLLM's own figures, read once a second."""

import asyncio
from collections.abc import Mapping
from itertools import chain

from gateway.http1 import Client
from gateway.upstream.loads import load, metrics
from gateway.upstream.places import Places
from gateway.upstream.replicas import Replica, queues

EVERY = 1.0  # seconds between two readings
LAPSE = 60.0  # seconds after which nobody is interested any more: another policy has other servers


class Queues:
    """Reads the queues that were looked at in the last `lapse` seconds, until it is closed."""

    def __init__(self, client: Client, lapse: float = LAPSE) -> None:
        self._client, self._lapse = client, lapse
        self._watched: dict[Places, tuple[list[Replica], float]] = {}  # and when they were looked at
        self._reading: asyncio.Task[None] | None = None

    def look(self, watched: Mapping[Places, list[Replica]]) -> None:
        """These are of interest from here on; the places of each tier are told of its replicas."""
        now = asyncio.get_running_loop().time()
        self._watched.update({places: (replicas, now) for places, replicas in watched.items()})
        if not self._reading:
            self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            watched = {places: replicas for places, (replicas, _) in self._watched.items()}
            await asyncio.gather(*(ask(self._client, one) for one in set(chain.from_iterable(watched.values()))))
            now = loop.time()
            for places, replicas in watched.items():
                places.told(queues(replicas, now))
            await asyncio.sleep(EVERY)
            ends = loop.time() - self._lapse
            self._watched = {places: looked for places, looked in self._watched.items() if looked[1] > ends}

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
