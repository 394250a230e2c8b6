"""Which server do the sentinels name the primary?"""

import asyncio
import contextlib
from collections import Counter
from typing import Any

from redis.asyncio import Connection, SSLConnection

from gateway.store.line import TIMEOUT, ask_once

Address = tuple[str, int]


class Primary(Connection):
    """A connection that asks the sentinels where to, each time it connects."""

    def __init__(self, *, sentinels: tuple[str, ...], service: str, **options: Any) -> None:
        super().__init__(**options)
        self._sentinels = sentinels
        self._service = service

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await named(self._sentinels, self._service, (self.socket_timeout or TIMEOUT) / 2)
        await super().connect()  # type: ignore[no-untyped-call]


class SecurePrimary(Primary, SSLConnection):
    """A Primary that is spoken to over TLS."""


async def named(sentinels: tuple[str, ...], service: str, seconds: float) -> Address:
    """What most of the sentinels (URLs) say that answer within `seconds`.

    Raises ConnectionError when none knows the service.
    """
    asking = [asyncio.create_task(ask_once(url, b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)) for url in sentinels]
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
