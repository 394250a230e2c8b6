"""Which addresses does a host have?   Each name is looked up in a thread of its own, once for all who ask meanwhile."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

P = TypeVar("P", bound=asyncio.BaseProtocol)


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
        self, made: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None
    ) -> tuple[asyncio.Transport, P]:
        """A connection to the first of the host's addresses that takes it. Raises OSError."""
        loop, name = asyncio.get_running_loop(), host if tls else None
        *others, last = await self.addresses(host)
        for address in others:
            with suppress(OSError):
                return await loop.create_connection(made, address, port, ssl=tls, server_hostname=name)
        return await loop.create_connection(made, last, port, ssl=tls, server_hostname=name)

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
