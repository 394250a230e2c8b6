"""What is an answer on its way out?"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol

import msgspec

from gateway.done import DONE, nothing
from gateway.errors import Refusal
from gateway.types import Decision, Headers, Route, Usage

NOBODY = "none"  # the tier, rule and reason of an answer that no model gave
WHOLE = (bytes, Refusal)  # bodies that are there at once


class Chunks(Protocol):
    """The pieces of an answer, as an async iterator. `aclose`: no more are wanted."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __anext__(self) -> Awaitable[bytes]: ...

    def aclose(self) -> Awaitable[None]: ...


class Reply(msgspec.Struct):
    """An answer on its way out, and the one object with a lifetime: its holder closes it.

    `body` is the whole answer; or a Refusal, where it failed before its first byte; or its pieces (of a stream, whole
    SSE events), which raise Refusal where it fails later. `tier` is the one that answered, "" for none. `shut` ends the
    model server's part; `closed` is called at the very end. `waited`: seconds before the first byte spent waiting for
    model servers, or in a tier's queue. `decision` is None for cached answers. `cache`: hit | miss | bypass |
    coalesced. `failure`, one of `failover.on`: another tier may be tried, and nothing is open. `limits`: further header
    lines."""

    status: int
    headers: Headers
    body: bytes | Refusal | Chunks
    stream: bool
    tier: str
    shut: Callable[[], Awaitable[None]]
    usage: Usage = msgspec.field(default_factory=Usage)
    waited: float = 0.0
    route: Route | None = None
    decision: Decision | None = None
    cache: str = "bypass"
    failure: str | None = None
    closed: Callable[[], object] = nothing
    limits: bytes = b""

    @classmethod
    def refused(cls, refusal: Refusal) -> "Reply":
        """A reply that breaks with `refusal` before its first byte."""
        return cls(refusal.status, [], refusal, False, "", nothing)

    @property
    def chunks(self) -> Chunks:
        """The answer in pieces, whatever the form of `body`."""
        return _pieces(self.body) if isinstance(self.body, WHOLE) else self.body

    def decided(self, decision: Decision, waited: float = 0.0) -> "Reply":
        """This reply with the decision that chose it; `waited` adds seconds spent waiting for a verdict."""
        self.decision, self.route, self.waited = decision, decision.route, self.waited + waited
        return self

    def close(self) -> Awaitable[None]:
        """Releases what the answer holds, and stops the model server if it is still generating. Safe to call twice."""
        return self._end() if self.shut is nothing and isinstance(self.body, WHOLE) else self._close()

    async def _close(self) -> None:
        try:
            if not isinstance(self.body, WHOLE):
                await self.body.aclose()
        finally:
            try:
                await self.shut()
            finally:
                self._end()

    def _end(self) -> Awaitable[None]:
        closed, self.closed = self.closed, nothing
        closed()
        return DONE


async def _pieces(body: bytes | Refusal) -> AsyncGenerator[bytes, None]:
    if isinstance(body, Refusal):
        raise body
    yield body
