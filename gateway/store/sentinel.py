"""Which server do the sentinels name the primary?"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.store.opening import Address, Opening, Way
from gateway.store.pipeline import ask_once

LOOK = 1.0  # seconds between two questions whether the server that we are connected to is still the one
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Primary:
    """A Way to the primary: each time it opens, it asks the sentinels for host and port; the rest is that of
    `server`.

    A connection ends once they have another one. The server that had been the primary need not know yet: for ten
    seconds of a failover that is asked for (SENTINEL FAILOVER) it takes all that it will have forgotten after them.
    """

    sentinels: Sequence[Way]
    service: str
    server: Opening
    look: float = LOOK
    _at: Address | None = None
    _following: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def greeting(self) -> tuple[bytes, ...]:
        return self.server.greeting

    @property
    def timeout(self) -> float:
        return self.server.timeout

    async def open(self) -> asyncio.Transport:
        address = await named(self.sentinels, self.service, self.timeout / 2)
        transport = await self._way(address).open()
        if self._at not in {None, address}:
            log.warning("store: the sentinels name %s:%d the primary of %s", *address, self.service)
        if self._following:
            self._following.cancel()
        self._at, self._following = address, asyncio.create_task(self._follow(transport, address))
        return transport

    def _way(self, address: Address) -> Opening:
        host, port = address
        return replace(self.server, host=host, port=port)

    async def _follow(self, transport: asyncio.Transport, address: Address) -> None:
        """Ends the connection when most of all sentinels name another server, which says that it is a primary: some
        may know of nothing since they were cut off."""
        while not transport.is_closing():
            await asyncio.sleep(self.look)
            votes = await asked(self.sentinels, self.service, LOOK)
            other = next((one for one, count in votes.items() if count * 2 > len(self.sentinels)), address)
            role = await ask_once(self._way(other), b"ROLE") if other != address else None
            if role and role[0] == b"master":
                transport.abort()


async def named(sentinels: Sequence[Way], service: str, seconds: float) -> Address:
    """The primary's address, by a majority of the sentinels or by most of those that answer within `seconds`.

    Raises ConnectionError when none of them knows the service.
    """
    votes = await asked(sentinels, service, seconds)
    if not votes:
        raise ConnectionError(f"no sentinel names a primary for {service}")
    return votes.most_common(1)[0][0]


async def asked(sentinels: Sequence[Way], service: str, seconds: float) -> Counter[Address]:
    """How many of the sentinels name each address, until most of all agree or `seconds` have passed."""
    asking = [asyncio.create_task(ask_once(way, b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)) for way in sentinels]
    votes: Counter[Address] = Counter()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _count(asking, votes)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    return votes


async def _count(asking: list[asyncio.Task[Any]], votes: Counter[Address]) -> None:
    """Until most of them agree, or all have answered."""
    for coming in asyncio.as_completed(asking):
        answer = await coming
        if not answer:
            continue
        host, port = answer
        address = (host.decode(), int(port))
        votes[address] += 1
        if votes[address] * 2 > len(asking):
            return
