"""Which server do the sentinels name the primary?"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.store.opening import Address, Opening, Way
from gateway.store.pipeline import ask_once


@dataclass(frozen=True, slots=True)
class Primary:
    """A Way to the primary: each time it opens, it asks the sentinels for host and port; the rest is that of
    `server`."""

    sentinels: Sequence[Way]
    service: str
    server: Opening

    @property
    def greeting(self) -> tuple[bytes, ...]:
        return self.server.greeting

    @property
    def timeout(self) -> float:
        return self.server.timeout

    async def open(self) -> asyncio.Transport:
        host, port = await named(self.sentinels, self.service, self.timeout / 2)
        return await replace(self.server, host=host, port=port).open()


async def named(sentinels: Sequence[Way], service: str, seconds: float) -> Address:
    """The primary's address, by a majority of the sentinels or by most of those that answer within `seconds`.

    Raises ConnectionError when none of them knows the service.
    """
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
    if not votes:
        raise ConnectionError(f"no sentinel names a primary for {service}")
    return votes.most_common(1)[0][0]


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
