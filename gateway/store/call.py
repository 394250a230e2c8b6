"""How is a script run without waiting for its result?"""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from gateway.store.address import Door
from gateway.store.opening import written
from gateway.store.refusals import NoScriptError
from gateway.store.scripts import Script
from gateway.store.words import Names, run, whole

Heard = Callable[[Exception | None], None]


class Call:
    """One run of a script: by its hash (EVALSHA), and with its text (EVAL) where the server does not know that.

    `heard` is called at its end, with the error if there was one; the call can be awaited as well.
    """

    __slots__ = ("_door", "_ended", "_heard", "_more", "_names", "_script", "_waiting")

    def __init__(
        self, door: Door, script: Script, names: Names, more: tuple[bytes, ...], heard: Heard | None = None
    ) -> None:
        self._door, self._script, self._names, self._more, self._heard = door, script, names, more, heard
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False

    def send(self) -> None:
        """Sends the command; once more after a run that failed."""
        names, more = self._names, self._more
        self._ended = False
        self._door.push((run(self._script, names, more), self, 0), (names.all or more)[0])

    def done(self) -> bool:
        """A reply is always heard."""
        return False

    def set_result(self, result: Any, /) -> None:
        self._end(None)

    def set_exception(self, exception: Exception, /) -> None:
        if not isinstance(exception, NoScriptError):
            self._end(exception)
            return
        names, more = self._names, self._more
        self._door.push((written(whole(self._script, names, more)), self, 0), (names.all or more)[0])

    def _end(self, error: Exception | None) -> None:
        self._ended = True
        if self._heard is not None:
            self._heard(error)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        if self._ended:
            return
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        yield from asyncio.shield(self._waiting)  # others may wait, too
