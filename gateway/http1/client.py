"""Which connection carries an exchange?"""

import asyncio
import ssl
from collections import deque
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gateway.http1.connection import KEEP_ALIVE, Connection, Kind, Limits, Sink, TransportError


class Origin(NamedTuple):
    """Where a server listens. `prefix` goes before every path."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def parse(cls, url: str) -> "Origin":
        """From "http://host:port/prefix". Raises ValueError on another scheme or no host."""
        return _parsed(url)


@lru_cache(maxsize=1024)
def _parsed(url: str) -> "Origin":
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http or https URL: {url}")
    tls = parts.scheme == "https"
    return Origin(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))


class Response:
    """An answer of a server. Its holder closes it; closing before the end stops the server."""

    __slots__ = ("_client", "_connection", "_idle", "_origin", "headers", "status")

    def __init__(self, client: "Client", origin: Origin, connection: Connection, idle: float) -> None:
        self._client, self._origin, self._idle = client, origin, idle
        self._connection: Connection | None = connection
        self.status = connection.status
        self.headers = connection.headers

    def header(self, name: bytes) -> bytes:
        """The header's first value, b"" when absent. `name` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""

    @property
    def complete(self) -> bool:
        """Nothing more will come; what came may not be read yet."""
        return self._connection is None or self._connection.complete

    def chunk(self) -> Coroutine[Any, Any, bytes]:
        """Body bytes as they come, b"" at the end. Raises TransportError, also when the answer was closed."""
        return self._open().read(self._idle)

    def pour(self, sink: Sink) -> Coroutine[Any, Any, None]:
        """Body bytes for `sink` as they come, until it returns False; what ends or breaks the answer, `chunk` tells."""
        return self._open().pour(sink, self._idle)

    async def read(self, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes. Raises TransportError, also when it is longer."""
        connection, parts, size = self._open(), [], 0
        while not connection.complete:
            parts.append(await connection.read(self._idle))
            size += len(parts[-1])
            if size > limit:
                break
        parts.append(connection.take(self._idle))
        if size + len(parts[-1]) > limit:
            raise TransportError("closed", f"the server's answer is over {limit} bytes", started=True)
        return b"".join(parts)

    def _open(self) -> Connection:
        if not self._connection:
            raise TransportError("closed", "the answer was closed", started=True)
        return self._connection

    def close(self) -> None:
        """Give the connection back. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection:
            self._client.give_back(self._origin, connection)


class Client:
    """Connections to any number of origins, made when needed and kept while they are used."""

    def __init__(self, tls: ssl.SSLContext | None = None, keep_alive: float = KEEP_ALIVE) -> None:
        """`tls` says whose word an https origin needs, by default that of the system's authorities.

        `keep_alive`: seconds that a connection may lie idle; less than the servers allow.
        """
        self._tls = tls
        self._keep_alive = keep_alive
        self._idle: dict[Origin, deque[Connection]] = {}
        self._closed = False

    async def request(self, origin: Origin, head: bytes, body: bytes, limits: Limits) -> Response:
        """Send `head` (request line and headers, blank line included) and `body`; return with the answer's head.

        A kept connection that the server closed before a byte of the answer is replaced once. Raises TransportError.
        """
        data, end = head + body, asyncio.get_running_loop().time() + limits.total
        connection = self._kept(origin)
        if connection:
            try:
                await connection.exchange(data, limits.first_byte, end)
                return Response(self, origin, connection, limits.idle)
            except TransportError as error:
                if error.kind != "closed" or error.started:
                    raise
        connection = await self._connect(origin, limits, end)
        await connection.exchange(data, limits.first_byte, end)
        return Response(self, origin, connection, limits.idle)

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Keep the connection if it can carry another exchange, else close it."""
        if self._closed or not connection.reusable:
            connection.abort()
            return
        connection.rest()
        kept = self._idle.setdefault(origin, deque())
        kept.append(connection)
        while not kept[0].reusable:
            kept.popleft()

    def close(self) -> None:
        """Close what lies idle and keep nothing more; exchanges in flight are their holders' to close."""
        self._closed = True
        for kept in self._idle.values():
            for connection in kept:
                connection.abort()
        self._idle.clear()

    def _kept(self, origin: Origin) -> Connection | None:
        """The connection that was used last: the others get the chance to lie idle and close."""
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if connection.reusable:
                return connection
        return None

    async def _connect(self, origin: Origin, limits: Limits, end: float) -> Connection:
        loop = asyncio.get_running_loop()
        seconds = min(limits.connect, end - loop.time())
        if origin.tls and not self._tls:
            self._tls = ssl.create_default_context()  # 20 ms of reading certificates, for those who need them
        tls = self._tls if origin.tls else None
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, self._keep_alive), origin.host, origin.port, ssl=tls
                )
        except TimeoutError:
            kind: Kind = "connect" if limits.connect < limits.total else "total"
            raise TransportError(kind, f"no connection to {origin.host}:{origin.port} in time") from None
        except (OSError, UnicodeError) as error:
            raise TransportError("connect", f"no connection to {origin.host}:{origin.port}: {error}") from None
        return connection
