"""How does uvicorn send an answer that ends its connection?"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Last(RequestResponseCycle):
    """uvicorn's own cycle would send chunks to HTTP/1.0, which knows none: there the end of the connection is the
    answer's. And it would close over a request that is still coming, which takes the answer from a caller who sends on:
    in that case the connection stays open, for its protocol to end."""

    async def send(self, message: Any) -> None:
        if self.scope["http_version"] == "1.0":
            self.chunked_encoding, self.expected_content_length = False, len(message.get("body", b""))
        self.keep_alive = self.response_started and self.more_body
        await super().send(message)
