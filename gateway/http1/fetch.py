"""What does a server answer to a short request?"""

from collections.abc import Mapping
from typing import NamedTuple

from gateway.http1.client import Client, Origin
from gateway.http1.connection import Limits

LARGEST = 4 << 20  # bytes: looked through at once, and by then nobody else is served


class Fetched(NamedTuple):
    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


async def fetch(client: Client, origin: Origin, target: str, limits: Limits, *lines: str, body: bytes = b"") -> Fetched:
    """`target`: method and path below the origin's prefix; `lines`: headers. Raises TransportError, also for an answer
    of more than LARGEST bytes."""
    method, path = target.split(" ")
    head = [f"{method} {origin.prefix}{path} HTTP/1.1", f"host: {origin.authority}", *lines]
    head += [f"content-length: {len(body)}", "\r\n"]
    response = await client.request(origin, "\r\n".join(head).encode(), body, limits)
    try:
        return Fetched(response.status, dict(response.headers), await response.read(LARGEST))
    finally:
        response.close()
