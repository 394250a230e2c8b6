"""Which pooled connection carries an exchange?"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gateway.http1.connection import KEEP_ALIVE, Connection, Kind, Limits, Sink, TransportError
from gateway.resolver import Resolver

STALE = 2.0  # seconds: a way there and back, and a loop that is held up
GONE = 30  # seconds without a packet from a host, or in which it took none of the bytes that wait for it
# By these the kernel ends such a connection; it asks a silent host for a packet.
ALIVE = (
    ("SOL_SOCKET", "SO_KEEPALIVE", 1),
    ("IPPROTO_TCP", "TCP_KEEPIDLE", GONE // 2),
    ("IPPROTO_TCP", "TCP_KEEPINTVL", GONE // 6),
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT", 1000 * GONE),
)


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

    @property
    def authority(self) -> str:
        """As the header Host has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=1024)
def _parsed(url: str) -> "Origin":
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http or https URL: {url}")
    tls = parts.scheme == "https"
    return Origin(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))


class Response:
    """An answer of a server. Its holder closes it; closing before the end stops the server."""

    __slots__ = ("_client", "_connection", "_idle", "_kept", "headers", "status")

    def __init__(self, client: "Client", kept: deque[Connection], connection: Connection, idle: float) -> None:
        self._client, self._kept, self._idle = client, kept, idle
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

    def here(self) -> bytes:
        """Body bytes that came already, b"" for none. Raises TransportError when the answer was closed."""
        return self._open().take(self._idle)

    def chunk(self) -> Coroutine[Any, Any, bytes]:
        """Body bytes as they come, b"" at the end. Raises TransportError, also when the answer was closed."""
        return self._open().read(self._idle)

    def pour(self, sink: Sink) -> Coroutine[Any, Any, None]:
        """Body bytes for `sink` as they come, until it returns False; what ends or breaks the answer, `chunk` tells."""
        return self._open().pour(sink, self._idle)

    def ended(self, sink: Sink, seconds: float) -> "asyncio.Future[None] | None":
        """A future that is done when the answer has ended or broken, in so many seconds at most; None: it has. `sink`
        gets the rest of it, and returns True. Raises TransportError when the answer was closed."""
        connection = self._open()
        connection.hurry(seconds)
        if here := connection.take(self._idle):
            sink(here)
        return connection.poured(sink, self._idle)

    def ready(self, limit: int) -> bytes | None:
        """As `read`, if all that is left of the body is there already; else None."""
        connection = self._open()
        if not connection.complete:
            return None
        data = connection.take(self._idle)
        if len(data) > limit:
            raise TransportError("closed", "the server's answer is too long", started=True)
        return data

    async def read(self, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes. Raises TransportError, also when it is longer."""
        parts = []
        while (last := self.ready(limit)) is None:
            parts.append(await self.chunk())
            limit -= len(parts[-1])
            if limit < 0:
                raise TransportError("closed", "the server's answer is too long", started=True)
        return b"".join([*parts, last])

    def _open(self) -> Connection:
        if not self._connection:
            raise TransportError("closed", "the answer was closed", started=True)
        return self._connection

    def close(self) -> None:
        """Give the connection back. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection:
            self._client.give_back(connection, self._kept)


class Client:
    """Connections to any number of origins, made when needed and kept while they are used."""

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        keep_alive: float = KEEP_ALIVE,
        names: Resolver | None = None,
        stale: float = STALE,
    ) -> None:
        """`tls`: the context for https origins, by default with the system's certificate authorities.

        `keep_alive`: seconds that a connection may lie idle; less than the servers allow. `names` looks hosts up.
        `stale`: seconds after a request by which one is told that the server had closed before.
        """
        self._tls = tls
        self._keep_alive, self._stale = keep_alive, stale
        self._names = names or Resolver()
        self._idle: dict[Origin, deque[Connection]] = {}  # the one used last at the right
        self._closed = False

    async def request(self, origin: Origin, head: bytes, body: bytes, limits: Limits) -> Response:
        """Send `head` (request line and headers, blank line included) and `body`; return with the answer's head.

        A kept connection that the server closed before a byte of the answer is replaced once, if that shows at once: a
        server that closes later was at work, and would do it twice. Raises TransportError.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        end = now + limits.total
        idle = self._idle.get(origin)
        if idle is None:
            for others in self._idle.values():  # servers come and go: of those that nobody asks any more nothing stays
                _thin(others)
            idle = self._idle[origin] = deque()
        connection = _kept(idle)
        while True:
            kept = connection is not None
            if connection is None:
                connection, now = await self._connect(origin, limits, end), loop.time()
            try:
                connection.send(head, body, now, end, limits)
                while not connection.head:
                    await connection.news()
                return Response(self, idle, connection, limits.idle)
            except BaseException as error:
                connection.abort()
                if not kept or not _closed_unheard(error) or loop.time() > now + self._stale:
                    raise
            connection = None

    def give_back(self, connection: Connection, idle: deque[Connection]) -> None:
        """Keep the connection among the `idle` ones if it can carry another exchange, else close it."""
        if self._closed or not connection.rest():
            connection.abort()
            return
        idle.append(connection)
        _thin(idle)

    def close(self) -> None:
        """Close idle connections and keep none from here on; responses that are open must be closed by their
        holders."""
        self._closed = True
        for kept in self._idle.values():
            for connection in kept:
                connection.abort()
        self._idle.clear()

    async def _connect(self, origin: Origin, limits: Limits, end: float) -> Connection:
        loop = asyncio.get_running_loop()
        seconds = min(limits.connect, end - loop.time())
        if origin.tls and not self._tls:
            self._tls = ssl.create_default_context()  # 20 ms of reading certificates, for those who need them
        tls = self._tls if origin.tls else None
        try:
            async with _patience(seconds):
                transport, connection = await self._names.connect(
                    lambda: Connection(loop, self._keep_alive), origin.host, origin.port, tls, seconds
                )
        except TimeoutError:
            kind: Kind = "connect" if limits.connect < limits.total else "total"
            raise TransportError(kind, f"no connection to {origin.authority} in time") from None
        except OSError as error:
            raise TransportError("connect", f"no connection to {origin.authority}: {error}") from None
        _kept_alive(transport.get_extra_info("socket"))
        return connection


def _closed_unheard(error: BaseException) -> bool:
    return isinstance(error, TransportError) and error.kind == "closed" and not error.started


def _kept_alive(own: socket.socket | None) -> None:
    """Has the kernel end the connection to a host that is GONE, as far as it can. None: it has ended already, which its
    exchange finds out."""
    if own is None:
        return
    for level, name, value in ALIVE:
        with suppress(AttributeError, OSError):
            own.setsockopt(getattr(socket, level), getattr(socket, name), value)


@asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    """As asyncio.timeout, in two halves: a loop that was held up for all of them sees between the two what came."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as whole:
        half = loop.call_later(seconds / 2, lambda: whole.reschedule(loop.time() + seconds / 2))
        try:
            yield
        finally:
            half.cancel()


def _thin(idle: deque[Connection]) -> None:
    """Let go of those that closed; the one used last closes last."""
    while idle and not idle[0].keep:
        idle.popleft()


def _kept(idle: deque[Connection]) -> Connection | None:
    """The connection that was used last: the others get the chance to lie idle and close."""
    while idle:
        connection = idle.pop()
        if connection.keep:
            return connection
    return None
