"""Which settlements has the server not confirmed yet?"""

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from functools import partial

from msgspec.structs import replace

from gateway.done import DONE
from gateway.store.address import Door
from gateway.store.call import Call
from gateway.store.limits import Kind, Line
from gateway.store.scripts import SETTLE, SETTLE_AND_REMEMBER
from gateway.store.words import MEASURES, Names, key_names, pushed, settled

BATCH = 32  # settlements that are sent together after an outage
Heading = tuple[str, Kind, bool]  # tier, kind, estimated


class Owed:
    """Settlements by lease. Each is sent until the server confirms it.

    What was used without a lease of the server's is pushed; while the server does not answer it is summed up by
    caller, so that an outage may last.
    """

    def __init__(self, door: Door, process: str) -> None:
        self._door = door
        self._owed: dict[str, Call] = {}
        self._paying: asyncio.Task[None] | None = None
        self._sums: dict[str, dict[Heading, Line]] = {}
        self._names = map(f"{process}p{{}}".format, itertools.count())  # of what is pushed; no lease begins so

    def __len__(self) -> int:
        return len(self._owed) + len(self._sums)

    def owe(self, lease: str, names: Names, *more: bytes) -> Call:
        """A settlement to be sent once the server answers again; `names` and `more` are the arguments of SETTLE."""
        owed = self._owed[lease] = Call(self._door, SETTLE, names, more, partial(self._confirm, lease))
        return owed

    def pay(self, lease: str, names: Names, *more: bytes) -> Call:
        """Sends the settlement, after the admission that it belongs to."""
        owed = self.owe(lease, names, *more)
        owed.send()
        return owed

    def pay_and_keep(self, lease: str, names: Names, word: bytes, entry: tuple[bytes, bytes, bytes]) -> Call:
        """As `pay`; what is remembered with it (name, value, milliseconds) is not sent again."""
        name, *rest = entry
        heard = partial(self._kept, lease, names, word)
        paid = self._owed[lease] = Call(self._door, SETTLE_AND_REMEMBER, names, (name, word, *rest), heard)
        paid.send()
        return paid

    def _kept(self, lease: str, names: Names, word: bytes, error: Exception | None) -> None:
        if error is not None:
            self.owe(lease, names, word)
        self._confirm(lease, error)

    def push(self, caller: str, lines: Sequence[Line]) -> Awaitable[None]:
        """Books lines that belong to no lease of the server's, once, when it answers."""
        sums = self._sums.setdefault(caller, {})
        for line in lines:
            heading = (line.tier, line.kind, line.estimated)
            sums[heading] = _sum(sums[heading], line) if heading in sums else line
        if self._door.is_down(key_names(caller).names.all[0]):
            return DONE
        call = self._owe_sums(caller)
        call.send()
        return call

    def _owe_sums(self, caller: str) -> Call:
        name, lines = next(self._names), list(self._sums.pop(caller).values())
        return self.owe(name, key_names(caller).names, pushed(caller, name), settled(name, lines))

    def pay_all(self) -> None:
        if (self._owed or self._sums) and (self._paying is None or self._paying.done()):
            self._paying = asyncio.create_task(self._pay_all())

    async def _pay_all(self) -> None:
        """In batches, so that admissions need not wait for all settlements of an outage."""
        for caller in [one for one in self._sums if not self._door.is_down(key_names(one).names.all[0])]:
            self._owe_sums(caller)
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


def _sum(one: Line, other: Line) -> Line:
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in MEASURES})
