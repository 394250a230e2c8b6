"""What does an exchange ask of the caller's end?"""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Protocol

from gateway.types import Headers


def header_lines(headers: Headers) -> bytes:
    """Headers as they go out: a line each, its end included. Raises ValueError where one would end before its line
    does; other control characters come neither from us nor from model servers, whose parser refuses them."""
    lines = b""
    for name, value in headers:
        lines += _line(name, value)
    return lines


@lru_cache(maxsize=1024)  # most answers have the same few
def _line(name: bytes, value: bytes) -> bytes:
    line = b"%b: %b" % (name, value)
    if 13 in line or 10 in line or 0 in line:
        raise ValueError("a header holds the end of a line")
    return line + b"\r\n"


class Wire(Protocol):
    """The caller's end of one exchange: what was asked, and where the answer goes. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    moved: float  # the loop's time when a piece last went out

    @property
    def push(self) -> Callable[[bytes], bool] | None:
        """Writes a piece of the answer, never b"", at once, after its first one; False: the caller has yet to take what
        came before, so the next one is for `write`. None where that cannot be known."""
        ...

    def ready(self) -> bytes | None:
        """The request's body, if all of it is there already."""
        ...

    async def read(self, limit: int) -> bytes | None:
        """All of the request's body; None when the caller left before its end. Raises TooLarge above `limit` bytes."""
        ...

    def watch(self, left: Callable[[], None]) -> None:
        """From here on call `left`, once, if the caller leaves before the answer is complete."""
        ...

    def unwatch(self) -> None:
        """Call nobody any more."""
        ...

    def start(self, status: int, headers: bytes, length: int | None = None) -> None:
        """The answer's head, of `header_lines`; it goes out with the first write. `length` of an answer that comes in
        one piece."""
        ...

    def write(self, data: bytes, more: bool) -> Awaitable[None]:
        """A piece of the answer, the last one without `more`. Waits for the caller to take what came before."""
        ...
