"""How many bodies may be here at once?   Each takes memory before a limit in the store can refuse it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, Iterator, Mapping
from contextlib import contextmanager

from gateway.errors import Overloaded, RateLimited, TooLarge
from gateway.standing import CODES

AGAIN = 1.0  # seconds until a refused caller may try again
PATIENCE = 5.0  # seconds; less than a caller has to send a request
SMALL = 64 * 1024  # bytes for which no room is needed: a connection reads as many before it asks


class Uploads:
    """Limits the bodies that this process holds: how many each caller is sending, and the bytes of all."""

    def __init__(self, room: int, patience: float = PATIENCE) -> None:
        """`room`: bytes of all bodies; `patience`: seconds that one may wait for it."""
        self._open: dict[str, int] = {}
        self._room, self._patience = room, patience
        self._held = Counter[str]()  # bytes, by caller
        self._waiting: dict[asyncio.Future[None], int] = {}

    @contextmanager
    def one(self, caller: str, most: int) -> Iterator[None]:
        """Counts a body of this caller for the length of the block. Raises RateLimited where it has `most` already."""
        count = self._open.get(caller, 0)
        if count >= most:
            told = f"Too many requests at the same time: limit {most}."
            raise RateLimited(told, code=CODES["concurrency"], retry_after=AGAIN)
        self._open[caller] = count + 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    async def take(self, caller: str, size: int) -> int:
        """Takes room for a body of `size` bytes, smaller bodies first; returns how many bytes are held. Raises
        Overloaded if there is no room within the patience."""
        if size <= SMALL:
            return 0
        try:
            async with asyncio.timeout(self._patience):
                while not self._fits(caller, size):
                    await self._change(size)
        except TimeoutError:
            raise Overloaded("Too many large requests at the same time.", retry_after=AGAIN) from None
        self._held[caller] += size
        return size

    def shrink(self, caller: str, size: int, held: int) -> int:
        """Gives back what is held beyond `size` bytes; returns what is still held."""
        if size >= held:
            return held
        self._held[caller] -= held - size
        if not self._held[caller]:
            del self._held[caller]
        for waiting in sorted(self._waiting, key=self._waiting.__getitem__):
            if not waiting.done():
                waiting.set_result(None)
        return size

    def _fits(self, caller: str, size: int) -> bool:
        """Whether the caller would hold no more than it leaves to others. A body that is alone fits, whatever its
        size."""
        held = self._held.total()
        return not held or self._held[caller] + size <= self._room - held - size

    async def _change(self, size: int) -> None:
        """Returns when room was given back."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = size
        try:
            await waiting
        finally:
            del self._waiting[waiting]


def announced(headers: Mapping[str, str], limit: int) -> int:
    """The bytes that a request's body will have at most. Raises TooLarge above `limit`."""
    length = headers.get("content-length", "")
    size = int(length[:20]) if length.isascii() and length.isdigit() else limit
    if size > limit:
        raise TooLarge(f"The request body is over {limit} bytes.")
    return size


async def received(parts: AsyncIterable[bytes], limit: int) -> bytes:
    """The whole body, read from its parts. Raises TooLarge above `limit` bytes."""
    found = bytearray()
    async for part in parts:
        found += part
        if len(found) > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
    return bytes(found)
