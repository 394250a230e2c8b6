"""Short questions to servers of all kinds."""

import asyncio

import pytest

from gateway.http1 import Origin, TransportError, fetch
from tests.gateway.loopback import USUAL, Peer, Run, run, serving

__all__ = ["run"]


async def echo(peer: Peer) -> None:
    head = await peer.request()
    await peer.answer(b"HTTP/1.1 201 Made\r\nx-a: 1\r\ncontent-length: %d\r\n\r\n" % len(head), head)


async def test_a_question_names_its_host_as_the_address_does_and_the_answer_is_whole(run: Run) -> None:
    async with serving(echo) as (client, origin, server):
        found = await fetch(client, origin._replace(prefix="/p"), "POST /x", USUAL, "x-b: 2", body=b"body")
        assert (found.status, found.headers[b"x-a"]) == (201, b"1")
        lines = [b"POST /p/x HTTP/1.1", b"host: 127.0.0.1:%d" % origin.port, b"x-b: 2", b"content-length: 4"]
        assert found.body.split(b"\r\n")[:4] == lines
        try:
            six = await asyncio.start_server(server.meet, "::1")
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        async with six:
            port = six.sockets[0].getsockname()[1]
            found = await fetch(client, Origin.parse(f"http://[::1]:{port}"), "GET /", USUAL)
            assert b"\r\nhost: [::1]:%d\r\n" % port in found.body


async def test_who_is_not_reached_is_named_as_the_address_does(run: Run) -> None:
    async with serving(echo) as (client, _, _):
        with pytest.raises(TransportError, match=r"^no connection to \[::1\]:1: "):
            await fetch(client, Origin.parse("http://[::1]:1"), "GET /", USUAL)


async def test_an_answer_without_an_end_is_given_up(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 40))
        while True:
            await peer.answer(bytes(1 << 20))

    async with serving(talk) as (client, origin, server):
        with pytest.raises(TransportError, match="too long"):
            await fetch(client, origin, "GET /", USUAL)
        await server.emptied()
