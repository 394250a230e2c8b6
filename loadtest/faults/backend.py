"""A model server that says to each request what a test laid down for it, byte by byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.http1 import Client, Limits, Origin, TransportError
from loadtest.servers import HOST, Process, free_port, running

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
POLICY = """\
schema: 1
tiers:
  flash: {{model: model-of-flash, engine: openai, replicas: ["http://{host}:{port}"],
          timeouts: {{first_byte: 1s, idle: 500ms}}}}
triage: {{tier: flash, cache: null}}
rules: [{{id: all, route: flash}}]
callers: {{default: {{plan: free}}, plans: {{free: {{requests_per_minute: 1000000, concurrency: 10000, may: []}}}}}}
"""
LIMITS = Limits(connect=10.0, first_byte=30.0, idle=30.0, total=60.0)
End = Literal["whole", "reset", "stall"]


class Script(NamedTuple):
    """Pieces of a stream, each a write of its own, and how the message ends: as HTTP says it must, or not."""

    pieces: Sequence[bytes]
    end: End = "whole"


NOTHING = Script([b"data: [DONE]\n\n"])


class Heard(NamedTuple):
    """What a caller got. `broken`: the connection ended before the message did."""

    status: int
    data: bytes
    broken: bool = False


@dataclass
class Backend:
    """`scripts` by request id; `bodies`: what came for each."""

    port: int
    scripts: dict[str, Script] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(fields[b"content-length"]))
                name = fields[b"x-request-id"].rsplit(b"-", 2)[0].decode()
                self.bodies[name] = body
                script = self.scripts.get(name, NOTHING)
                await play(script, writer)
                if script.end == "stall":
                    await reader.read()
                if script.end in {"stall", "reset"}:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


async def play(script: Script, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    for piece in script.pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(0)
    if script.end == "whole":
        writer.write(b"0\r\n\r\n")


@contextmanager
def gateway(**settings: str) -> Iterator[tuple[str, int, Process]]:
    """The gateway's URL, the port on which it looks for its only tier, and its process."""
    port = free_port()
    with running(POLICY.format(host=HOST, port=port), **settings) as (url, process):
        yield url, port, process


@asynccontextmanager
async def backend(port: int) -> AsyncIterator[Backend]:
    made = Backend(port)
    async with await asyncio.start_server(made.serve, HOST, port, limit=1 << 26):
        yield made


async def ask(client: Client, url: str, name: str, body: bytes) -> Heard:
    origin = Origin.parse(url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {origin.host}\r\nx-request-id: {name}\r\n"
    data = b""
    try:
        response = await client.request(origin, f"{head}content-length: {len(body)}\r\n\r\n".encode(), body, LIMITS)
        try:
            while chunk := await response.chunk():
                data += chunk
        except TransportError:
            return Heard(response.status, data, broken=True)
        finally:
            response.close()
    except TransportError:
        return Heard(0, data, broken=True)
    return Heard(response.status, data)


async def each(count: int, one: Callable[[int], Coroutine[None, None, None]], at_once: int = 16) -> None:
    """`one(i)` for every i, a few at a time."""
    turn = asyncio.Semaphore(at_once)

    async def limited(number: int) -> None:
        async with turn:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(limited(number))


def question(stream: bool = True) -> bytes:
    asked = {"model": "flash", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps(asked).encode()
