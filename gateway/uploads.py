"""How many bodies may a caller be sending at once?   Each takes memory before a limit in the store can refuse it."""

import gc
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager

from gateway.errors import RateLimited, TooLarge
from gateway.standing import CODES

AGAIN = 1.0  # seconds until a refused caller may try again
SWEPT = 64 << 20  # bytes of bodies between two collections


class Uploads:
    """Counts the bodies that this process is receiving, by caller."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._came = 0  # bytes since the last collection

    @contextmanager
    def one(self, caller: str, most: int) -> Iterator[None]:
        """Counts a body of this caller while the block lasts. Raises RateLimited where `most` others are counted."""
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

    def came(self, size: int) -> None:
        """A body of so many bytes came. An exchange that failed is in a cycle with its exception, and keeps its body
        until garbage is collected, which Python does by the number of objects, however large."""
        self._came += size
        if self._came >= SWEPT:
            self._came = 0
            gc.collect()


async def received(parts: AsyncIterable[bytes], limit: int) -> bytes:
    """The whole body, read from its parts. Raises TooLarge above `limit` bytes."""
    found = bytearray()
    async for part in parts:
        found += part
        if len(found) > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
    return bytes(found)
