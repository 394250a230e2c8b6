"""Servers on loopback that say what a test tells them to, and a client for them; on asyncio's loop and on uvloop."""

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from gateway.http1 import Client, Limits, Origin, Response, TransportError

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\n"
USUAL = Limits(60, 60, 60, 60)  # more than any test waits for
MIB = 1 << 20
Run = Callable[[Coroutine[Any, Any, None]], None]


class Peer:
    """One connection as the server sees it."""

    def __init__(self, server: "Server", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer

    async def request(self) -> bytes:
        """The head of the next request, its body read."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next((line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), b": 0")
        await self.reader.readexactly(int(length.split(b": ")[1]))
        self.server.requests += 1
        return head

    async def answer(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def left(self) -> None:
        """Returns when the client has closed."""
        while await self.reader.read(MIB):
            pass


Talk = Callable[[Peer], Awaitable[None]]


class Server:
    """Speaks as `talk` says on each connection; a talk that returns closes its connection."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = self.open = self.requests = 0

    def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(Peer(self, reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: Peer) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self._talk(peer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except RuntimeError:
            if not peer.writer.is_closing():  # what uvloop says to those who write to a closed connection
                raise
        finally:
            self.open -= 1
            peer.writer.transport.abort() if peer.reader.at_eof() else peer.writer.close()

    async def emptied(self, seconds: float = 20.0) -> None:
        """Returns when no connection is open; fails when that takes longer."""
        async with asyncio.timeout(seconds):
            while self.open:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def serving(
    talk: Talk, tls: ssl.SSLContext | None = None, client: Client | None = None
) -> AsyncIterator[tuple[Client, Origin, Server]]:
    """A client, and a server for it."""
    server, client = Server(talk), client or Client()
    listening = await asyncio.start_server(server.meet, "127.0.0.1", 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield client, Origin.parse(f"http{'s' if tls else ''}://127.0.0.1:{port}"), server
    finally:
        client.close()
        await server.stop()
        listening.close()
        for _ in range(3):  # what was closed is taken down in the loop's next turns
            await asyncio.sleep(0)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test in a loop that may not complain of anything."""

    def runs(main: Coroutine[Any, Any, None]) -> None:
        troubles: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.get_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
            runner.run(main)
            gc.collect(1)  # what this test made is young
            runner.run(asyncio.sleep(0))
        assert troubles == []

    return runs


async def ask(client: Client, origin: Origin, limits: Limits = USUAL, head: bytes = POST) -> Response:
    return await client.request(origin, head, b"" if head.startswith(b"HEAD") else b"body", limits)


async def told(client: Client, origin: Origin, limits: Limits = USUAL, head: bytes = POST) -> tuple[int, bytes]:
    """Status and body; the answer is closed."""
    response = await ask(client, origin, limits, head)
    try:
        return response.status, await response.read(64 * MIB)
    finally:
        response.close()


async def broken(client: Client, origin: Origin, limits: Limits = USUAL) -> TransportError:
    with pytest.raises(TransportError) as error:
        await told(client, origin, limits)
    return error.value


def saying(*parts: bytes, end: bool = True) -> Talk:
    """A talk that gives this answer to each request, then closes (`end`) or waits for the next."""

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(*parts)
        while not end:
            await peer.request()
            await peer.answer(*parts)

    return talk


async def silence(peer: Peer) -> None:
    await peer.left()
