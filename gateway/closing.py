"""How is the last answer on a connection sent, without cutting it off?"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def closing_head(status: int, length: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of an answer in JSON of so many bytes that ends the connection, whether `headers` say so or not."""
    lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0] != b"connection"]
    first = b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
    last = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % length
    return b"".join([first, *lines, last])


class ClosingCycle(RequestResponseCycle):
    """uvicorn's request-response cycle, for the last request of a connection, with two differences. HTTP/1.0 does not
    know chunked encoding, so the answer ends with the connection. And while the request is still arriving, the
    connection stays open until its protocol closes it: closing at once would reset it, and the answer would be lost."""

    async def send(self, message: Any) -> None:
        if self.scope["http_version"] == "1.0":
            self.chunked_encoding, self.expected_content_length = False, len(message.get("body", b""))
        self.keep_alive = self.response_started and self.more_body
        await super().send(message)
