"""A gateway in the test's own loop, on a real socket, and callers who may leave."""

import asyncio
import gc
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from gateway.app import across_origins, create_app
from gateway.asgi import Front
from gateway.fields import read
from gateway.http1 import Client
from gateway.key_records import new_key
from gateway.keyfile import KeyFile
from gateway.keys import Keys
from gateway.policy import Policy
from gateway.reply import Reply
from gateway.server import connection
from gateway.settings import Settings
from gateway.store import MemoryStore, Store
from gateway.types import Caller, ChatRequest
from gateway.upstream import Upstream
from tests.tiers import JSON

SIMPLE = "What is the capital of Australia, if I may ask?"
COMPLEX = "Prove step by step that there are infinitely many primes of the form 4k+3, and analyse the case 4k+1."
CHAT = "/v1/chat/completions"
PATIENCE = 20.0  # seconds until what must happen has not; less than any server stalls in the tests
ANN = Caller("ann", "ann", "usual", "salt-of-ann")


def body(text: str = SIMPLE, **fields: Any) -> JSON:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}


def asked(
    fields: JSON, path: str = CHAT, caller: Caller = ANN, headers: Mapping[str, str] | None = None
) -> ChatRequest:
    """The request that the edge makes of a body."""
    whole, known = read(json.dumps(fields).encode())
    return ChatRequest(f"t{time.monotonic_ns()}", caller, path, whole, known, headers or {}, time.perf_counter())


async def collected(reply: Reply) -> bytes:
    """All of an answer; it is closed."""
    try:
        return b"".join([chunk async for chunk in reply.chunks])
    finally:
        await reply.close()


async def eventually(true: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Seconds until `true()`; fails when that takes longer."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "waited in vain"
        await asyncio.sleep(0.01)
    return time.monotonic() - started


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """The door to the model servers; at the end nothing may be in flight and no task left over."""
    client, troubles = Client(), watched()
    door = Upstream(client)
    yield door
    await door.close()
    client.close()
    await quiet(door, troubles)


def watched() -> list[JSON]:
    """What the loop complains of from here on."""
    gc.freeze()  # what is there already need not be looked through again: a collection takes 1 ms in place of 60
    troubles: list[JSON] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    return troubles


async def quiet(door: Upstream, troubles: list[JSON], others: Collection[Any] = ()) -> None:
    """Nothing is in flight, and no task is left but this one and `others`."""
    await eventually(lambda: not any(door.load().values()))
    left = {asyncio.current_task(), *others}
    await eventually(lambda: asyncio.all_tasks() <= left)
    gc.collect()
    await asyncio.sleep(0)
    assert troubles == [], troubles


@dataclass
class Answer:
    """What came back, chunked framing removed. `complete`: the message ended as HTTP says it must."""

    status: int
    headers: dict[str, str]
    data: bytes
    complete: bool = True
    repeated: list[str] = field(default_factory=list)

    def json(self) -> JSON:
        found: JSON = json.loads(self.data)
        return found

    def events(self) -> list[bytes]:
        """The data of each event."""
        return [event.removeprefix(b"data: ") for event in self.data.split(b"\n\n") if event]


@dataclass
class Line:
    """One caller's connection with a request under way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def leave(self, *, reset: bool = False) -> None:
        if reset:
            self.writer.transport.abort()
        else:
            self.writer.close()
        await asyncio.sleep(0)

    async def answer(self) -> Answer:
        """All of the answer; the server ends the connection."""
        raw = await self.reader.read()
        self.writer.close()
        return parsed(raw)

    async def some(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(65536), PATIENCE)


def parsed(raw: bytes) -> Answer:
    head, _, data = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
    headers = dict(pairs)
    repeated = [name for name in headers if sum(name == other for other, _ in pairs) > 1]
    complete = True
    if headers.get("transfer-encoding") == "chunked":
        data, complete = dechunked(data)
    return Answer(int(first.split()[1]), headers, data, complete, repeated)


def dechunked(data: bytes) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    while data:
        size, _, data = data.partition(b"\r\n")
        if size == b"0":
            return b"".join(parts), True
        parts.append(data[: int(size, 16)])
        data = data[int(size, 16) + 2 :]
    return b"".join(parts), False


@dataclass
class Port:
    """Where a gateway listens."""

    port: int

    async def open(self, fields: JSON | bytes | None, path: str = CHAT, method: str = "POST", **headers: str) -> Line:
        """Send a request on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = fields if isinstance(fields, bytes) else json.dumps(fields).encode() if fields is not None else b""
        sent = {"host": "localhost", "connection": "close", "content-length": str(len(data))}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        return Line(reader, writer)

    async def ask(self, fields: JSON | bytes | None, path: str = CHAT, method: str = "POST", **headers: str) -> Answer:
        line = await self.open(fields, path, method, **headers)
        return await asyncio.wait_for(line.answer(), PATIENCE)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return await self.ask(None, path, method, **headers)


@dataclass
class Gateway(Port):
    """A running gateway."""

    front: Front
    upstream: Upstream


async def callers(store: Store, *names: str) -> list[dict[str, str]]:
    """Of new callers with these names the header that shows each one's key."""
    found = []
    for name in names:
        key, record = new_key(await store.secret(), name)
        await store.put_key(record)
        found.append({"authorization": f"Bearer {key}"})
    return found


@asynccontextmanager
async def gateway(
    policy: Policy, /, store: Store | None = None, everyone: bool = True, file: KeyFile | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    """Serve `policy` by our protocol; at the end nothing may be in flight, no task left over, nothing gone wrong
    unseen. (A uvicorn.Server would take 0.3 s to start and stop.)
    """
    troubles, others = watched(), asyncio.all_tasks()
    known, store = Settings(**{"log_exchanges": False, **settings}), store or MemoryStore()
    front = create_app(known, policy, store, Keys(store, known.api_key, everyone, file))
    app = across_origins(front, known)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none")
    config.load()
    made = connection(front, app)
    state, door = ServerState(), front.doors.upstream
    async with front.running():
        server = await asyncio.get_running_loop().create_server(
            lambda: made(config=config, server_state=state, app_state={}), "127.0.0.1", 0, backlog=1024
        )
        async with server:
            with escapes(troubles):
                yield Gateway(server.sockets[0].getsockname()[1], front, door)
                await eventually(lambda: not any(door.load().values()) and not state.tasks)
    await quiet(door, troubles, others)


@contextmanager
def escapes(troubles: list[JSON]) -> Iterator[None]:
    """A cancellation that comes out of the app is trouble, too; uvicorn only logs it."""

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
                troubles.append({"message": "a cancellation escaped"})

    watch, logger = Watch(), logging.getLogger("uvicorn.error")
    logger.addHandler(watch)
    try:
        yield
    finally:
        logger.removeHandler(watch)


async def head_of(reader: asyncio.StreamReader) -> bytes:
    """The head of a request; b"" from who connected, and left before it was sent."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


@asynccontextmanager
async def scripted(
    *answers: bytes, close: bool = True, go: asyncio.Event | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers with these bytes, one request after another, once it may `go`; its URL, and the requests
    that it saw. It does not say which models it has."""
    seen: list[bytes] = []
    left = list(answers)
    held: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        if not head or head.startswith(b"GET /v1/models "):
            writer.close()
            return
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        seen.append(head + await reader.readexactly(size))
        if go:
            await go.wait()
        writer.write(left.pop(0))
        if close:
            writer.close()
        else:
            held.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
        for writer in held:
            writer.close()


def plain(data: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """An HTTP answer."""
    sent = {"content-type": "application/json", "content-length": str(len(data))}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return "\r\n".join([f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in sent.items())]).encode() + b"\r\n\r\n" + data
