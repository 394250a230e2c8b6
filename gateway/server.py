"""How does the gateway listen, and how does it shut down?"""

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from gateway.asgi import ASGI, Front
from gateway.certificate import Certificate
from gateway.closing import closing_head
from gateway.errors import Overloaded
from gateway.fast import FastConnection
from gateway.memory import allowed
from gateway.protocol import Connection
from gateway.settings import Settings

LAST_WORDS = 2.0  # seconds for answers that are cut off at the end to send their error
TICK = 0.05  # seconds
LISTENERS = 8  # for each socket: uvloop accepts one connection per listener and turn of the loop, and turns get long
AT_ONCE = 8  # handshakes begun in a turn of the loop: each takes a millisecond, for which streams wait
BREATH = 1.0  # seconds without new connections where no file or memory is left for one
PART = 3  # of the memory, a third, for connections that have shown no key
LINE, TLS_LINE = 60_000, 300_000  # bytes of one, plain (half a head behind 99 requests: 54 KB, 2026-11-23); over TLS
USUAL_FILES = 1 << 16  # open files that a process allows itself
log = logging.getLogger("gateway")


class Server(uvicorn.Server):
    """uvicorn's server with a drain of ours.

    The first SIGTERM or SIGINT: /ready says 503 at once; for `drain_wait` seconds all is served as before, but each
    connection closes after its answer; then no new connections are accepted, and open answers have `drain` seconds
    before they are ended with an error. The second signal ends them at once. A worker leaves the signals to its
    supervisor, and calls `told` once it serves. `app` is `front`, or middleware around it.
    """

    def __init__(self, front: Front, app: ASGI, told: Callable[[], None] | None = None) -> None:
        """Raises OSError when the certificate cannot be used."""
        settings = front.settings
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=connection(front, app),  # type: ignore[arg-type]  # a class or what makes its instances
                ws="none",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                log_config=None,
                log_level="warning",
            )
        )
        self._front, self._settings, self._told = front, settings, told
        self._close_at: float | None = None
        self._most = 0  # connections
        self._coming: list[bool] = []  # one for each accepted in this turn, which uvicorn does not count yet
        self._shaking: set[asyncio.Task[None]] = set()  # one for each in its TLS handshake, and a turn longer
        chain, key = settings.tls_cert, settings.tls_key
        front.certificate = self._certificate = Certificate(chain, key) if chain and key else None
        self._following: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if not self._told:
            self.leave()

    def leave(self) -> None:
        """Begin to shut down; a second call ends at once."""
        if self._close_at is not None:
            self.force_exit = self.should_exit = True
            return
        self._front.leave()
        self._close_at = time.monotonic() + self._settings.pause
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)  # of which uvicorn makes default_headers anew each second
        self.server_state.default_headers = [*self.server_state.default_headers, close]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with limits for connections and for the TLS handshake. Raises OSError."""
        await super().startup(sockets=[])
        asked, backlog, loop = self._settings.connections, self.config.backlog, asyncio.get_running_loop()
        opens = files(2 * asked if asked else USUAL_FILES)
        line = TLS_LINE if self._certificate else LINE
        self._most = asked or most_lines(opens, allowed() // self._settings.workers, line)
        bound = sockets or bind(self._settings, shared=False)
        if self._certificate:
            self._following = loop.create_task(self._certificate.watch())
            listeners: Any = [Listener(one, backlog, partial(self._take, self._certificate)) for one in bound]
            self.servers += listeners
        else:
            for one in [*bound, *(one.dup() for one in bound * (LISTENERS - 1))]:
                self.servers.append(await loop.create_server(self._meet, sock=one, backlog=backlog))
        if self._told and self.started:
            self._told()

    def _full(self) -> bool:
        """Whether one more connection would be too many; if so, it is counted as refused."""
        if len(self.server_state.connections) + len(self._coming) + len(self._shaking) < self._most:
            return False
        self._front.doors.telemetry.meters.unread.add("503")
        return True

    def _made(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class  # what `connection` gave, whatever its type says
        found = protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return cast("asyncio.Protocol", found)

    def _meet(self) -> asyncio.Protocol:
        """For a connection without TLS."""
        if self._full():
            return Crowded()
        self._coming.append(True)
        asyncio.get_running_loop().call_soon(self._coming.pop)
        return self._made()

    def _take(self, certificate: Certificate, line: socket.socket) -> None:
        """A connection over TLS: its handshake begins. One too many is closed without a word: to tell it so would take
        a handshake, which is most of the work of a short exchange."""
        if self._full():
            line.close()
            return
        task = asyncio.create_task(self._shake(certificate, line))
        self._shaking.add(task)
        task.add_done_callback(self._shaking.discard)

    async def _shake(self, certificate: Certificate, line: socket.socket) -> None:
        with suppress(OSError):  # of ssl, of a caller who leaves, and of one who takes too long
            await asyncio.get_running_loop().connect_accepted_socket(
                partial(Arrival, self._made),
                line,
                ssl=certificate.context,
                ssl_handshake_timeout=self._settings.request_timeout,
                ssl_shutdown_timeout=self._settings.stall_timeout,
            )

    async def on_tick(self, counter: int) -> bool:
        if self._close_at is not None and time.monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.server_state
        listening: list[asyncio.Server | socket.socket] = [*self.servers, *(sockets or [])]
        for one in listening:
            one.close()
        for handshake in self._shaking:
            handshake.cancel()
        if self._following:
            self._following.cancel()
        for connection in list(state.connections):
            if not connection.transport.is_closing():  # of asyncio's over TLS nothing can be asked once closed twice
                connection.shutdown()
        await self._until(self._settings.drain, self._serves)
        for task in state.tasks:
            task.cancel()
        await self._until(LAST_WORDS, lambda: bool(state.connections or state.tasks))
        for connection in list(state.connections):
            connection.transport.abort()
        await self.lifespan.shutdown()

    def _serves(self) -> bool:
        """Whether an answer is under way. Over TLS a connection that we closed stays until its caller says goodbye: one
        that keeps it for later reads nothing, and would be waited for."""
        left = [one.transport for one in self.server_state.connections]
        return bool(self.server_state.tasks) or any(not one.is_closing() or one.get_write_buffer_size() for one in left)

    async def _until(self, seconds: float, waits: Callable[[], bool]) -> None:
        """Returns when nothing `waits`, after `seconds`, or when a second signal came."""
        end = time.monotonic() + seconds
        while waits() and time.monotonic() < end:
            if self.force_exit and seconds != LAST_WORDS:
                return
            await asyncio.sleep(TICK)


class Listener:
    """Accepts connections and gives them to `take`; uvicorn takes it for one of its servers. Those of asyncio tell of
    a connection over TLS only once its handshake has ended, so that nobody could count those that never end it.
    """

    def __init__(self, listening: socket.socket, backlog: int, take: Callable[[socket.socket], None]) -> None:
        self.sockets, self._take = (listening,), take
        self._loop = asyncio.get_running_loop()
        self._pausing: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        listening.listen(backlog)
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self.sockets[0], self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                line, _ = self.sockets[0].accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("no connection can be accepted: %s", error)
                self._loop.remove_reader(self.sockets[0])
                self._pausing = self._loop.call_later(BREATH, self._listen)
                return
            line.setblocking(False)
            self._take(line)

    def close(self) -> None:
        if self._pausing:
            self._pausing.cancel()
        self._loop.remove_reader(self.sockets[0])
        self.sockets[0].close()


class Arrival(asyncio.Protocol):
    """The protocol of a connection until its TLS handshake has ended, from when on it is the one that `made` gives. One
    for HTTP takes 8 KB, and would leave them to the garbage collector where the handshake never ends.
    """

    def __init__(self, made: Callable[[], asyncio.Protocol]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = self._made()
        transport.set_protocol(made)
        made.connection_made(transport)


class Crowded(asyncio.Protocol):
    """The protocol of a connection over the limit: it gets a 503 and is closed, before it has sent a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        refusal = Overloaded("Too many connections.", retry_after=1.0)
        body = refusal.body()
        sender = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        sender.write(closing_head(refusal.status, len(body), refusal.headers()) + body)
        sender.close()


def most_lines(opens: int, memory: int, line: int) -> int:
    """The connections that a process lets in where settings do not say: half of the files that it may open, or fewer
    where each may take `line` of its `memory`, in bytes."""
    return min(opens // 2, max(1, memory // PART // line))


def files(wanted: int) -> int:
    """Raises the process's limit of open files to `wanted`, as far as the system allows; returns the limit."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    with suppress(ValueError, OSError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), most))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connection(front: Front, app: ASGI) -> Callable[..., Connection]:
    """The protocol class for connections: FastConnection, unless settings or middleware rule it out."""
    if front.settings.http == "fast" and app is front:
        return partial(FastConnection, front)
    return partial(Connection, front.settings, front.doors.telemetry.meters.unread.add)


def bind(settings: Settings, shared: bool) -> list[socket.socket]:
    """Sockets bound to every address of the host. `shared`: other processes may bind them, too (SO_REUSEPORT). Raises
    OSError."""
    found = socket.getaddrinfo(settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [_bound(family, proto, address, shared) for family, _, proto, _, address in found]


def _bound(family: int, proto: int, address: Any, shared: bool) -> socket.socket:
    # With `proto` 0, which socket.create_server leaves, asyncio does not see TCP and does not turn Nagle's delay off.
    made = socket.socket(family, socket.SOCK_STREAM, proto)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
