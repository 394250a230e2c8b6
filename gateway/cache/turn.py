"""Which process answers, when several are asked the same at once?"""

import asyncio
import time
from typing import Self

from gateway.store import HELD, OVER, Store, Taken, Turn

RENEWED = 0.4  # seconds between two renewals
TOLD = 1.0  # seconds in which others hear that an answer will not be remembered
POLLS = (0.02, 0.1)  # seconds between two looks, at first and at last


class Place:
    """One process's place in the queue for an answer. At the end of the block the next one is let in.

    An answer that is kept is everyone's. One that could not be kept is waited for by nobody: the others then ask for
    themselves, at once. Of those who wait for a process that left or died, one takes its place.
    """

    __slots__ = ("_asked", "_caller", "_renewal", "_renewing", "_store", "_token", "key")

    def __init__(self, store: Store, caller: str, turn: Turn) -> None:
        self._store, self._caller = store, caller
        self.key, self._token = turn.key, turn.token
        self._renewal: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[Taken] | None = None
        self._asked = turn.holder == turn.token

    async def come(self, wait: float) -> bytes | None:
        """The entry, once another process made it; None when this one shall answer: it is its turn, it has waited for
        `wait` seconds, no entry will come, or the store does not answer."""
        if self._asked:
            self._renew_later()
            return None
        end, pause, self._asked = time.monotonic() + wait, POLLS[0], True
        while time.monotonic() < end:
            taken = await self._store.take_turn(self._caller, self.key, self._token, HELD)
            if taken.holder == self._token:
                self._renew_later()
            if taken.holder in (None, OVER, self._token):
                self._asked = taken.holder == self._token
                return taken.entry
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, POLLS[1])
        return None

    def _renew_later(self) -> None:
        self._renewal = asyncio.get_running_loop().call_later(RENEWED, self._renew)

    def _renew(self) -> None:
        self._renewing = asyncio.create_task(self._store.take_turn(self._caller, self.key, self._token, HELD))
        self._renew_later()

    def keep(self, value: bytes, ttl: float) -> None:
        """Remember the answer, which ends the turn."""
        self._store.remember(self._caller, self.key, value, ttl, self._token if self._asked else b"")
        self._asked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Also for a turn that was asked for and not heard of: it may have been granted."""
        if self._renewal:
            self._renewal.cancel()
        if self._renewing:
            self._renewing.cancel()
        if self._asked:
            over = 0.0 if kind is asyncio.CancelledError else TOLD
            self._store.end_turn(self._caller, self.key, self._token, over)
