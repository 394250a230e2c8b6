"""The client as httpx2 sees it."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway.transport import Transport
from tests.gateway.loopback import CHUNKED, OK, Peer, Run, Talk, run, saying, serving, silence

__all__ = ["run"]


async def echo(peer: Peer) -> None:
    while True:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        body = head + await peer.reader.readexactly(length)
        await peer.answer(b"HTTP/1.1 201 Made\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: %d\r\n\r\n" % len(body), body)


def test_requests_and_answers_pass_whole_over_one_kept_connection(run: Run) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def main() -> None:
        async with serving(echo) as (client, origin, server):
            base = f"http://127.0.0.1:{origin.port}/v1"
            async with httpx2.AsyncClient(transport=Transport(client), base_url=base) as http:
                answer = await http.post("/chat?a=b%20c", json={"é": 1}, headers={"x-b": "3"})
                assert (answer.status_code, answer.headers.get_list("x-a")) == (201, ["1", "2"])
                head, body = answer.content.split(b"\r\n\r\n")
                assert head.startswith(b"POST /v1/chat?a=b%20c HTTP/1.1\r\n")
                assert f"host: 127.0.0.1:{origin.port}".encode() in head.lower()
                assert head.lower().count(b"content-length") == 1
                assert json.loads(body) == {"é": 1}
                assert (await http.get("/models")).content.startswith(b"GET /v1/models HTTP/1.1\r\n")
                streamed = (await http.post("/x", content=pieces())).content
                assert streamed.endswith(b"\r\n\r\nonetwo")
                assert b"transfer-encoding" not in streamed.lower()
            assert server.connections == 1

    run(main())


def test_a_stream_comes_as_it_is_sent_and_leaving_it_closes_the_connection(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(CHUNKED, b"1\r\na\r\n")
        await peer.left()

    async def main() -> None:
        async with serving(talk) as (client, origin, server):
            url = f"http://127.0.0.1:{origin.port}/"
            async with (
                httpx2.AsyncClient(transport=Transport(client), timeout=None) as http,
                http.stream("GET", url) as answer,
            ):
                assert await anext(answer.aiter_raw()) == b"a"
                assert server.open == 1
            await server.emptied(0.2)

    run(main())


@pytest.mark.parametrize(
    ("talk", "error"),
    [
        (silence, httpx2.ReadTimeout),
        (saying(CHUNKED + b"1\r\na\r\n"), httpx2.RemoteProtocolError),
        (saying(b"<html>"), httpx2.RemoteProtocolError),
    ],
)
def test_failures_have_httpx2s_names(run: Run, talk: Talk, error: type[httpx2.TransportError]) -> None:
    async def main() -> None:
        async with (
            serving(talk) as (client, origin, _),
            httpx2.AsyncClient(transport=Transport(client), timeout=0.1) as http,
        ):
            with pytest.raises(error) as found:
                await http.get(f"http://127.0.0.1:{origin.port}/")
            assert found.value.request.method == "GET"

    run(main())


def test_a_refused_connection_is_a_connect_error() -> None:
    async def main() -> None:
        async with serving(saying(OK)) as (client, origin, _):
            pass
        async with httpx2.AsyncClient(transport=Transport(client)) as http:
            with pytest.raises(httpx2.ConnectError):
                await http.get(f"http://127.0.0.1:{origin.port}/")

    asyncio.run(main())
