"""How does uvicorn send an answer that ends its connection?"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Last(RequestResponseCycle):
    """The cycle of a connection's last request; it differs from uvicorn's own in two things. HTTP/1.0 is sent no
    chunks, which it does not know: there the end of the connection is the answer's. And while the request is still
    coming the connection stays open, for its protocol to end: closed at once it would be reset, and the answer lost."""

    async def send(self, message: Any) -> None:
        if self.scope["http_version"] == "1.0":
            self.chunked_encoding, self.expected_content_length = False, len(message.get("body", b""))
        self.keep_alive = self.response_started and self.more_body
        await super().send(message)
