"""What is the interface between an exchange and the caller's connection?"""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

from gateway.types import Headers

_PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"")) for status in range(200, 600)}


def header_lines(headers: Headers) -> bytes:
    """Headers as lines with CR LF. Raises ValueError for a CR, LF or NUL in one (header injection); other control
    characters come neither from us nor from model servers, whose parser refuses them."""
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
        """Writes a piece of the answer (not b"", and not the first one) without waiting. It returns False when the
        buffer is full, so that the next piece must go through `write`. None where the buffer's state cannot be
        known."""

    def ready(self) -> bytes | None:
        """The request's body, if all of it is there already."""

    async def read(self, limit: int) -> bytes | None:
        """All of the request's body; None when the caller left before its end. Raises TooLarge above `limit` bytes."""

    def watch(self, left: Callable[[], None]) -> None:
        """From here on call `left`, once, if the caller leaves before the answer is complete."""

    def unwatch(self) -> None:
        """Call nobody any more."""

    def start(self, status: int, headers: bytes, length: int | None = None) -> None:
        """Sets the answer's head, which goes out with the first write. `headers` are lines as of `header_lines`;
        `length` in bytes where the answer comes in one piece."""

    def write(self, data: bytes, more: bool) -> Awaitable[None]:
        """A piece of the answer, the last one without `more`. Waits for the caller to take what came before."""
