"""What does an open call to a replica hold, and who is told of its outcome?"""

import asyncio
import time
from collections.abc import Awaitable

from gateway.done import DONE
from gateway.http1 import Response, TransportError
from gateway.trace import Leg
from gateway.upstream.places import Places
from gateway.upstream.replicas import Replica


class OpenCall:
    """A call to one replica; its holder closes it. `place`, once it is set, is given back with it."""

    __slots__ = ("_busy", "_caller", "_open", "_outcome", "_trial", "leg", "place", "replica", "response", "tier")

    def __init__(self, tier: str, replica: Replica, caller: str) -> None:
        self.tier, self.replica, self._caller = tier, replica, caller
        self.place: Places | None = None
        self.response: Response | None = None
        self.leg: Leg | None = None
        self._open, self._outcome = True, False
        self._trial, self._busy = replica.breaker.open, replica.busy
        if self._trial:
            replica.breaker.tried(asyncio.get_running_loop().time())
        replica.inflight += 1

    def passed(self, busy: float) -> None:
        """The replica answered, be it with a 4xx: a success for its breaker. `busy`: until when it wants to be left
        alone; 0: it does not, but what it said since this call began stands."""
        self._outcome = True
        if busy or self.replica.busy == self._busy:
            self.replica.busy = busy
        if self._trial:
            self.replica.passed_trial()
        self.replica.breaker.passed(self._caller)
        if self.leg:
            self.leg.first = time.perf_counter()

    def failed(self, error: Exception) -> None:
        """The call failed by `error`."""
        self._outcome = True
        kind = error.kind if isinstance(error, TransportError) else "broken"
        now = asyncio.get_running_loop().time()
        caller = None if kind in ("connect", "still") else self._caller
        self.replica.failed(caller, now, self._trial, str(error))
        if self.leg:
            self.leg.error = kind

    def close(self) -> None:
        """Stop the server if it still answers. Safe to call twice."""
        if not self._open:
            return
        self._open = False
        self.replica.inflight -= 1
        if self._trial and not self._outcome:
            self.replica.breaker.dropped()
        if self.leg:
            self.leg.ended = time.perf_counter()
            self.leg.status = self.response.status if self.response else None
        if self.response:
            self.response.close()
        if self.place:
            self.place.give_back()

    def shut(self) -> Awaitable[None]:
        """As `close`, for a reply."""
        self.close()
        return DONE
