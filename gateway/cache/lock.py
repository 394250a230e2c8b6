"""Which process answers when several are asked the same at once?   The one that holds a lock in the store."""

import asyncio
import time
from typing import Protocol, Self

from gateway.policy import Caching
from gateway.store import HELD, OVER, VALUE_LIMIT, Kept, Lock, Store, Taken

RENEWED = 0.4  # seconds between two renewals
TOLD = 1.0  # seconds for which the store keeps, for those who wait, that no answer will be remembered
POLLS = (0.02, 0.1)  # seconds between two looks at the store: the first pause, and the longest


class Hold(Protocol):
    """What the answer's making holds, an admission. `settle`: all that was used is known; it is booked, and the answer
    remembered, in one step."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def settle(self, kept: Kept, /) -> None: ...


class Locks:
    """The locks that this process holds. One timer renews them all, as long as there are any."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._held: set[Claim] = set()
        self._clock: asyncio.TimerHandle | None = None

    def hold(self, claim: "Claim") -> None:
        self._held.add(claim)
        if self._clock is None:
            self._clock = asyncio.get_running_loop().call_later(RENEWED, self._renew)

    def drop(self, claim: "Claim") -> None:
        self._held.discard(claim)

    def _renew(self) -> None:
        self._clock = asyncio.get_running_loop().call_later(RENEWED, self._renew) if self._held else None
        for claim in self._held:
            claim.renew()


class Claim:
    """This process's claim to the lock on one answer, held or waited for. The end of the block releases the lock.

    An answer that is kept in the store serves all processes that wait. Where it could not be kept, they are told so and
    ask a model themselves, at once. Where the process that held the lock gave up or died, one of them gets it.
    `ours`: we hold the lock, or may hold it, as the store did not answer.
    """

    __slots__ = ("_caller", "_locks", "_renewing", "_rules", "_store", "_token", "key", "ours")

    def __init__(self, locks: Locks, caller: str, lock: Lock, rules: Caching) -> None:
        self._locks, self._store, self._caller, self._rules = locks, locks.store, caller, rules
        self.key, self._token = lock.key, lock.token
        self._renewing: asyncio.Task[Taken] | None = None
        self.ours = lock.holder == lock.token

    async def wait(self) -> bytes | None:
        """Waits for the answer that another process is making, and returns its entry; None when this process must
        make it: it got the lock, the rules' `wait` is over, no entry will come, or the store does not answer."""
        end, pause, self.ours = time.monotonic() + self._rules.wait, POLLS[0], True
        while time.monotonic() < end:
            taken = await self._store.take_lock(self._caller, self.key, self._token, HELD)
            if taken.holder == self._token:
                self._locks.hold(self)
            if taken.holder in (None, OVER, self._token):
                self.ours = taken.holder == self._token
                return taken.entry
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, POLLS[1])
        return None

    def renew(self) -> None:
        self._renewing = asyncio.create_task(self._store.take_lock(self._caller, self.key, self._token, HELD))

    def keep(self, value: bytes, hold: Hold | None) -> None:
        """Remember the answer, which releases the lock, and settle `hold` with it; nothing happens for one above
        VALUE_LIMIT."""
        if len(value) > VALUE_LIMIT:
            return
        if hold:
            hold.settle(Kept(self.key, value, self._rules.ttl))
        else:
            self._store.remember(self._caller, self.key, value, self._rules.ttl)
        self.ours = False

    def __enter__(self) -> Self:
        if self.ours:
            self._locks.hold(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._locks.drop(self)
        if self._renewing:
            self._renewing.cancel()
        if self.ours:
            over = 0.0 if kind is asyncio.CancelledError else TOLD
            self._store.free_lock(self._caller, self.key, self._token, over)
