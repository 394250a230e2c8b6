"""When is a server of the store left alone?   A circuit breaker."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from gateway.store.opening import Way, Word
from gateway.store.pipeline import FAULTS, Pipeline, Waiting
from gateway.store.refusals import AskError, NoScriptError, ResponseError, TryAgainError

PAUSE = 1.0  # seconds between two tries of a server that failed
# A script that may write, as ADMIT does, but changes nothing: a server that runs it can decide again.
PROBE: Final = b"return redis.call('SET', KEYS[1], '', 'XX')"

log = logging.getLogger(__name__)


class Unsent(ConnectionError):
    """The server is left alone at present; the command never went out."""


class Circuit:
    """A Pipeline that is "down" once its server fails or refuses to work; commands then fail at once (Unsent).

    A task tries the server every PAUSE seconds and ends that; no command waits for it. `on_change` is called at both.
    `elsewhere` may take over commands that a cluster redirects. `name` is a key that the server holds.
    """

    def __init__(
        self,
        way: Way,
        on_change: Callable[[], None],
        where: str = "",
        elsewhere: Callable[["Circuit", ResponseError, Waiting], bool] | None = None,
    ) -> None:
        self._pipeline = Pipeline(way, self.fail, self._refused)
        self._on_change = on_change
        self._where = where
        self._elsewhere = elsewhere
        self._recovery: asyncio.Task[None] | None = None
        self.name: bytes = b"tg1:probe"
        self.down, self._why = False, "the store is closed"

    def is_down(self, name: bytes) -> bool:
        """Whether commands about the key `name` fail at once."""
        return self.down

    async def servers(self) -> list["Circuit"]:
        """All that hold keys."""
        return [self]

    def put(self, *command: Word) -> asyncio.Future[Any]:
        """As Pipeline.put."""
        if not self.down:
            return self._pipeline.put(*command)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reply.set_exception(Unsent(self._why))
        return reply

    def push(self, waiting: Waiting, name: bytes = b"") -> None:
        """As Pipeline.push; `name` is the command's first key."""
        if not self.down:
            self._pipeline.push(waiting)
        elif not waiting[1].done():
            waiting[1].set_exception(Unsent(self._why))

    def _refused(self, error: ResponseError, waiting: Waiting) -> bool:
        if isinstance(error, NoScriptError) or str(error).startswith("WRONGTYPE"):
            return False
        if self._elsewhere is not None and isinstance(error, AskError | TryAgainError):
            return self._elsewhere(self, error, waiting)
        self.fail(error)
        return False

    def fail(self, error: Exception) -> None:
        if self.down:
            return
        self.down, self._why = True, str(error).rstrip(".")
        said = "store down: %s%s; each process keeps limits as callers.on_store_failure says, the cache is skipped"
        log.warning(said, self._where, self._why)
        self._recovery = asyncio.create_task(self._recover())
        self._on_change()

    async def _recover(self) -> None:
        while self.down:
            await asyncio.sleep(PAUSE)
            await self._try_again()

    async def _try_again(self) -> None:
        try:
            await self.probe()
        except FAULTS:
            return
        self.well()

    def probe(self) -> asyncio.Future[Any]:
        """Whether the server would decide: what it refuses, or that it is away, is an error."""
        return self._pipeline.put(b"EVAL", PROBE, 1, _beside(self.name))

    def well(self) -> None:
        """The server, or the one that took over its work, answers."""
        if self.down:
            self.down = False
            log.warning("store ok: %slimits and cache are shared again", self._where)
            self._on_change()

    async def close(self) -> None:
        """What was put is still sent; what is put from here on fails."""
        self.down = True
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self._pipeline.close()


def _beside(name: bytes) -> bytes:
    """A key of ours in the same slot, where nothing is kept."""
    _, mark, rest = name.partition(b"{")
    tag, end, _ = rest.partition(b"}")
    return b"tg1:{%s}:probe" % (tag if mark and end and tag else name)
