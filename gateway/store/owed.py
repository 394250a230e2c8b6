"""Which settlements has the server not confirmed yet?"""

import asyncio
from functools import partial

from gateway.store.address import Door
from gateway.store.call import Call
from gateway.store.scripts import SETTLE
from gateway.store.words import Names

BATCH = 32  # settlements that are sent together after an outage


class Owed:
    """Settlements by lease. Each is sent until the server confirms it."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._owed: dict[str, Call] = {}
        self._paying: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._owed)

    def owe(self, lease: str, names: Names, *more: bytes) -> Call:
        """A settlement to be sent once the server answers again; `names` and `more` are the arguments of SETTLE."""
        owed = self._owed[lease] = Call(self._door, SETTLE, names, more, partial(self._confirm, lease))
        return owed

    def pay(self, lease: str, names: Names, *more: bytes) -> Call:
        """Sends the settlement, after the admission that it belongs to."""
        owed = self.owe(lease, names, *more)
        owed.send()
        return owed

    def pay_all(self) -> None:
        if self._owed and (self._paying is None or self._paying.done()):
            self._paying = asyncio.create_task(self._pay_all())

    async def _pay_all(self) -> None:
        """In batches, so that admissions need not wait for all settlements of an outage."""
        owed = list(self._owed)
        for at in range(0, len(owed), BATCH):
            batch = [self._owed[lease] for lease in owed[at : at + BATCH] if lease in self._owed]
            for one in batch:
                one.send()
            for one in batch:
                await one

    def _confirm(self, lease: str, error: Exception | None) -> None:
        if error is None or str(error).startswith("WRONGTYPE"):  # an account of another type holds nothing
            self._owed.pop(lease, None)

    async def close(self) -> None:
        if self._paying:
            await asyncio.wait([self._paying])
