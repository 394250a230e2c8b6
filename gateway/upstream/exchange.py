"""What does an open call hold, and whom does its outcome concern?"""

import asyncio

from gateway.http1 import Client, Limits, Origin, Response
from gateway.upstream.places import Places
from gateway.upstream.replicas import Replica


class Exchange:
    """A call to one replica; its holder closes it. `place`, once it is set, is given back with it."""

    __slots__ = ("_caller", "_open", "_outcome", "_replica", "_trial", "place", "response", "tier")

    response: Response

    def __init__(self, tier: str, replica: Replica, caller: str) -> None:
        self.tier, self._replica, self._caller = tier, replica, caller
        self.place: Places | None = None
        self._open, self._outcome = True, False
        self._trial = replica.breaker.asked()
        replica.inflight += 1

    @property
    def origin(self) -> Origin:
        return self._replica.origin

    async def send(self, client: Client, head: bytes, body: bytes, limits: Limits) -> Response:
        """Return with the answer's head. Raises TransportError."""
        self.response = await client.request(self._replica.origin, head, body, limits)
        return self.response

    def passed(self) -> None:
        """The replica works, whatever it thinks of the request."""
        self._outcome = True
        self._replica.passed(self._caller, self._trial)

    def failed(self, connecting: bool = False) -> None:
        self._outcome = True
        now = asyncio.get_running_loop().time()
        self._replica.failed(None if connecting else self._caller, now, self._trial)

    async def close(self) -> None:
        """Stop the server if it still answers. Safe to call twice."""
        if not self._open:
            return
        self._open = False
        self._replica.inflight -= 1
        if self._trial and not self._outcome:
            self._replica.breaker.dropped()
        if hasattr(self, "response"):
            self.response.close()
        if self.place:
            self.place.give_back()
