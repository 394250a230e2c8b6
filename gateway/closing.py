"""How does uvicorn send the last answer on a connection, without cutting it off?"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class ClosingCycle(RequestResponseCycle):
    """uvicorn's request-response cycle, for the last request of a connection, with two differences. HTTP/1.0 does not
    know chunked encoding, so the answer ends with the connection. And while the request is still arriving, the
    connection stays open until its protocol closes it: closing at once would reset it, and the answer would be lost."""

    async def send(self, message: Any) -> None:
        if self.scope["http_version"] == "1.0":
            self.chunked_encoding, self.expected_content_length = False, len(message.get("body", b""))
        self.keep_alive = self.response_started and self.more_body
        await super().send(message)
