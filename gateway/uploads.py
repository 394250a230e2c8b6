"""Whose requests are still coming in?   Each has memory before any limit in the store is asked."""

from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager

from gateway.errors import RateLimited, TooLarge
from gateway.standing import CODES

AGAIN = 1.0  # seconds


class Uploads:
    """Bodies on their way into this process, by caller."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    @contextmanager
    def one(self, caller: str, most: int) -> Iterator[None]:
        """A body of this caller comes while the block lasts. Raises RateLimited where `most`, what it may have at the
        same time, come already."""
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


async def received(parts: AsyncIterable[bytes], limit: int) -> bytes:
    """A body, of the parts that it comes in. Raises TooLarge."""
    found = bytearray()
    async for part in parts:
        found += part
        if len(found) > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
    return bytes(found)
