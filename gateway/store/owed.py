"""Which settlements has the server not confirmed yet?"""

import asyncio
from typing import Any

from redis.exceptions import NoScriptError

from gateway.store.address import Door
from gateway.store.line import Word
from gateway.store.scripts import SETTLE, SETTLE_SHA

BATCH = 32  # settlements that are sent together after an outage


class Owed:
    """Settlements by lease, with the names that SETTLE touches; each is sent until the server confirms it."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._owed: dict[str, tuple[tuple[str, ...], tuple[Word, ...]]] = {}
        self._resent: dict[str, asyncio.Future[Any]] = {}
        self._paying: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._owed)

    def owe(self, lease: str, names: tuple[str, ...], words: tuple[Word, ...]) -> None:
        """To be sent when the server answers again."""
        self._owed[lease] = names, words

    def pay(self, lease: str, names: tuple[str, ...], words: tuple[Word, ...]) -> asyncio.Future[Any]:
        """Puts the settlement in the line, behind the admission it belongs to."""
        self.owe(lease, names, words)
        return self._put(b"EVALSHA", SETTLE_SHA, lease)

    async def paid(self, lease: str, names: tuple[str, ...], words: tuple[Word, ...]) -> None:
        """As `pay`, and waits for what comes of it. It is sent even if the awaiting task is cancelled."""
        await asyncio.wait([self.pay(lease, names, words)])
        if again := self._resent.pop(lease, None):
            await asyncio.wait([again])

    def pay_all(self) -> None:
        if self._owed and (self._paying is None or self._paying.done()):
            self._paying = asyncio.create_task(self._pay_all())

    async def _pay_all(self) -> None:
        """In batches, so that admissions need not wait for all that an outage has left."""
        owed = list(self._owed)
        for at in range(0, len(owed), BATCH):
            batch = [lease for lease in owed[at : at + BATCH] if lease in self._owed]
            paid = [self._put(b"EVALSHA", SETTLE_SHA, lease) for lease in batch]
            if paid:
                await asyncio.wait(paid)

    def _put(self, command: bytes, script: bytes, lease: str) -> asyncio.Future[Any]:
        names, words = self._owed[lease]
        paid = self._door.put(command, script, len(names), *names, lease, *words)
        paid.add_done_callback(lambda reply: self._confirm(lease, reply))
        return paid

    def _confirm(self, lease: str, reply: asyncio.Future[Any]) -> None:
        if reply.cancelled() or lease not in self._owed:
            return
        error = reply.exception()
        if isinstance(error, NoScriptError):
            self._resent[lease] = self._put(b"EVAL", SETTLE, lease)
        elif error is None or str(error).startswith("WRONGTYPE"):  # an account of another type holds nothing
            del self._owed[lease]
            self._resent.pop(lease, None)

    async def close(self) -> None:
        if self._paying:
            await asyncio.wait([self._paying])
