"""What becomes of a script's run that nobody needs to wait for?"""

import asyncio
from collections.abc import Generator
from typing import Any

from redis.exceptions import NoScriptError

from gateway.store.address import Door
from gateway.store.line import packed
from gateway.store.scripts import Script
from gateway.store.words import Names, run, whole


class Call:
    """One run of a script. It goes out by the script's name, and as a whole where the server does not know that.

    Its end, a reply or that there will be none, is heard at once; who awaits the call hears of it too.
    """

    __slots__ = ("_door", "_ended", "_more", "_names", "_script", "_waiting")

    def __init__(self, door: Door, script: Script, names: Names, *more: bytes) -> None:
        self._door, self._script, self._names, self._more = door, script, names, more
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False

    def send(self) -> None:
        """Puts it in the line; again after an end that was no success."""
        self._ended = False
        self._put(run(self._script, self._names, *self._more))

    def _put(self, command: bytes) -> None:
        self._door.push((command, self, 0), (self._names.all or self._more)[0])

    def done(self) -> bool:
        """A reply is always heard."""
        return False

    def set_result(self, result: Any, /) -> None:
        self._end(None)

    def set_exception(self, exception: Exception, /) -> None:
        if not isinstance(exception, NoScriptError):
            self._end(exception)
            return
        self._put(packed(whole(self._script, self._names, *self._more)))

    def _end(self, error: Exception | None) -> None:
        self._ended = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        if self._ended:
            return
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        yield from asyncio.shield(self._waiting)  # others may wait, too
