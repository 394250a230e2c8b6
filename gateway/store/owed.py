"""Which settlements has the server not confirmed yet?"""

import asyncio
from functools import partial
from typing import Any

from redis.exceptions import NoScriptError

from gateway.store.address import Door
from gateway.store.scripts import SETTLE, SETTLE_SHA

BATCH = 32  # settlements that are sent together after an outage


class Owed:
    """Settlements by lease: the names that SETTLE touches and what it is told. Each is sent until the server confirms
    it.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._owed: dict[str, tuple[tuple[str, ...], bytes]] = {}
        self._paying: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._owed)

    def owe(self, lease: str, names: tuple[str, ...], word: bytes) -> None:
        """To be sent when the server answers again."""
        self._owed[lease] = names, word

    def pay(self, lease: str, names: tuple[str, ...], word: bytes) -> asyncio.Future[None]:
        """Puts the settlement in the line, behind the admission it belongs to.

        Done when the server has answered or will not; who cancels it stops waiting, no more.
        """
        self.owe(lease, names, word)
        return self._put(lease)

    def pay_all(self) -> None:
        if self._owed and (self._paying is None or self._paying.done()):
            self._paying = asyncio.create_task(self._pay_all())

    async def _pay_all(self) -> None:
        """In batches, so that admissions need not wait for all that an outage has left."""
        owed = list(self._owed)
        for at in range(0, len(owed), BATCH):
            batch = [lease for lease in owed[at : at + BATCH] if lease in self._owed]
            await asyncio.gather(*(self._put(lease) for lease in batch))

    def _put(self, lease: str) -> asyncio.Future[None]:
        tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._try(lease, tried, b"EVALSHA", SETTLE_SHA)
        return tried

    def _try(self, lease: str, tried: asyncio.Future[None], *script: bytes) -> None:
        names, word = self._owed[lease]
        reply = self._door.put(*script, len(names), *names, word)
        reply.add_done_callback(partial(self._confirm, lease, tried))

    def _confirm(self, lease: str, tried: asyncio.Future[None], reply: asyncio.Future[Any]) -> None:
        error = reply.exception()
        if isinstance(error, NoScriptError) and lease in self._owed:
            self._try(lease, tried, b"EVAL", SETTLE)
            return
        if error is None or str(error).startswith("WRONGTYPE"):  # an account of another type holds nothing
            self._owed.pop(lease, None)
        if not tried.done():
            tried.set_result(None)

    async def close(self) -> None:
        if self._paying:
            await asyncio.wait([self._paying])
