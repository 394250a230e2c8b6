"""Which addresses does a host have?   Each name is looked up in a thread of its own, once for all who ask meanwhile."""

import asyncio
import ipaddress
import socket
import ssl
from asyncio import FIRST_COMPLETED
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any, TypeAlias, TypeVar

STEP = 0.25  # seconds for an address before the next one is tried beside it (RFC 8305, 5)

P = TypeVar("P", bound=asyncio.BaseProtocol)
Made: TypeAlias = tuple[asyncio.Transport, P]


def look_up(host: str) -> list[str]:
    """The host's addresses by the system's resolver, which takes some ten seconds where no name server answers. Raises
    OSError, or ValueError for what is no name."""
    return [str(place[0]) for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class Resolver:
    """Connects to hosts by name.

    asyncio's own look-ups share a few threads, and the end of its loop waits for them: one name that no name server
    answers for would hold up all others, and the shutdown.
    """

    def __init__(self, ask: Callable[[str], list[str]] = look_up) -> None:
        self._ask = ask
        self._asked: dict[str, asyncio.Future[list[str] | str]] = {}

    async def connect(
        self, made: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None, seconds: float
    ) -> Made[P]:
        """A connection to one of the host's addresses. Each is tried once those before it have failed, or STEP after
        the one before it, less where `seconds` are few for all. Raises OSError."""
        loop, name = asyncio.get_running_loop(), host if tls else None
        found = await self.addresses(host)
        tries = [partial(loop.create_connection, made, one, port, ssl=tls, server_hostname=name) for one in found]
        return await (_first(tries, min(STEP, seconds / len(tries))) if len(tries) > 1 else tries[0]())

    async def addresses(self, host: str) -> list[str]:
        """At least one. Raises OSError."""
        with suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        found = await asyncio.shield(self._asked.get(host) or self._begin(host))
        if isinstance(found, str):
            raise OSError(found)
        return found

    def _begin(self, host: str) -> asyncio.Future[list[str] | str]:
        loop = asyncio.get_running_loop()
        try:
            Thread(target=self._look, args=(host, loop), name="names", daemon=True).start()
        except RuntimeError as error:
            raise OSError(str(error)) from None
        asked = self._asked[host] = loop.create_future()
        return asked

    def _look(self, host: str, loop: asyncio.AbstractEventLoop) -> None:
        try:
            found: list[str] | str = self._ask(host)
        except (OSError, ValueError) as error:
            found = str(error)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._tell, host, found)

    def _tell(self, host: str, found: list[str] | str) -> None:
        self._asked.pop(host).set_result(found)


async def _first(tries: Sequence[Callable[[], Coroutine[Any, Any, Made[P]]]], step: float) -> Made[P]:
    """The connection that stands first, of tries that begin `step` seconds apart, or when all before them have failed;
    the others are dropped. Raises OSError when all failed."""
    left, tasks, waits = deque(tries), set[asyncio.Task[Made[P]]](), set[asyncio.Task[Made[P]]]()
    error = ""
    try:
        while left or waits:
            if left:
                waits.add(asyncio.create_task(left.popleft()()))
                tasks |= waits
            done, waits = await asyncio.wait(waits, timeout=step if left else None, return_when=FIRST_COMPLETED)
            if won := next((task for task in done if not task.exception()), None):
                tasks.remove(won)
                return won.result()
            error = next((str(task.exception()) for task in done), error)
        raise OSError(error)
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(_dropped)


def _dropped(task: asyncio.Task[Made[Any]]) -> None:
    if not (task.cancelled() or task.exception()):
        task.result()[0].abort()
