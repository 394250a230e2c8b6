"""The client against servers that frame well and badly, keep connections and break them."""

import asyncio
import contextlib
import gc
import time

import pytest

from gateway.http1 import Client, Limits, Origin, TransportError
from gateway.http1.connection import HIGH_WATER, Connection
from tests.gateway.loopback import CHUNKED, MIB, OK, POST, USUAL, Peer, Run, ask, broken, run, saying, serving, told
from tests.gateway.serving import eventually

__all__ = ["run"]

WHOLE = {
    "a length": (OK, b"ok"),
    "no body": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
    "chunks": (CHUNKED + b"2;x=y\r\nok\r\nA\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n", b"ok0123456789"),
    "the end": (b"HTTP/1.1 200 OK\r\n\r\nok", b"ok"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nserver: x\r\n\r\nok", b"ok"),
    "early hints": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\ncontent-length: 9\r\n\r\n" + OK, b"ok"),
    "hints, then the end": (
        b"HTTP/1.1 103 Early\r\nx-sum: 9\r\ncontent-length: 9\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok",
        b"ok",
    ),
    "a close": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok"),
}


@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_an_answer_is_whole_however_it_is_framed_and_cut(run: Run, form: str, size: int) -> None:
    wire, body = WHOLE[form]
    parts = [wire[at : at + size] for at in range(0, len(wire), size)]
    async with serving(saying(*parts)) as (client, origin, server):
        response = await ask(client, origin)
        assert (response.status, response.header(b"x-sum")) == (200, b"")
        assert await response.read(64) == body
        assert await response.chunk() == b""
        response.close()
        await server.emptied()


BROKEN = {
    "nothing": b"",
    "half a head": OK[:20],
    "half a body": OK[:-1],
    "half a chunk": CHUNKED + b"5\r\nabc",
    "no last chunk": CHUNKED + b"2\r\nok\r\n",
    "both framings": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "both, turned": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
    "an unknown coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a bad chunk size": CHUNKED + b"zz\r\nok\r\n0\r\n\r\n",
    "a control character in a header": b"HTTP/1.1 200 OK\r\nx: a\x01b\r\ncontent-length: 2\r\n\r\nok",
    "NUL in a header": b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 2\r\n\r\nok",
    "CR alone in a header": b"HTTP/1.1 200 OK\r\nx: a\rb: c\r\ncontent-length: 2\r\n\r\nok",
    "LF alone in a header": b"HTTP/1.1 200 OK\r\nx: a\nb: c\r\ncontent-length: 2\r\n\r\nok",
    "a folded header": b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\nok",
    "another protocol": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nok",
    "hints for ever": b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * 4000,
    "no HTTP": b"<html>hello</html>",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000,
    "a header without end": b"HTTP/1.1 200 OK\r\nx: " + b"y" * MIB,
    "trailers without end": CHUNKED + b"2\r\nok\r\n0\r\nx: " + b"y" * MIB,
}


@pytest.mark.parametrize("form", BROKEN)
async def test_an_answer_that_is_not_whole_or_not_http_is_refused(run: Run, form: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(BROKEN[form])
        if len(BROKEN[form]) > MIB:
            await peer.left()

    async with serving(talk) as (client, origin, server):
        error = await broken(client, origin)
        assert (error.kind, error.started) == ("closed", form != "nothing")
        assert (server.requests, server.connections) == (1, 1)
        await server.emptied()


async def test_an_answer_by_the_connections_end_is_not_ended_by_us(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await peer.left()

    async with serving(talk) as (client, origin, _):
        assert (await broken(client, origin, Limits(60, 60, 0.05, 60))).kind == "idle"


async def test_an_answer_that_broke_unseen_is_told_of_by_reading_not_by_pouring(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(CHUNKED + b"2\r\nok\r\n")

    async with serving(talk) as (client, origin, server):
        response = await ask(client, origin)
        assert await response.chunk() == b"ok"
        await server.emptied()
        await asyncio.sleep(0.02)
        await response.pour(lambda data: pytest.fail(f"poured {data!r}"))
        with pytest.raises(TransportError) as error:
            await response.chunk()
        assert error.value.kind == "closed"
        response.close()


@pytest.mark.usefixtures("uncollected")
async def test_an_exchange_that_broke_leaves_nothing_for_the_collector(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.left()

    async with serving(talk) as (client, origin, _):
        before = sum(isinstance(one, Connection) for one in gc.get_objects())
        with contextlib.suppress(TransportError):
            await ask(client, origin, Limits(1, 0.01, 1, 5))
        await eventually(lambda: sum(isinstance(one, Connection) for one in gc.get_objects()) == before)


async def test_a_loop_that_was_held_up_does_not_take_a_connection_for_one_that_failed(run: Run) -> None:
    async with serving(saying(OK)) as (client, origin, _):
        asyncio.get_running_loop().call_soon(time.sleep, 0.2)
        response = await ask(client, origin, Limits(0.1, 2, 2, 5))
        assert await response.read(64) == b"ok"
        response.close()


async def test_a_connection_that_closed_before_it_was_used_says_so(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        pass

    loop = asyncio.get_running_loop()
    async with serving(talk) as (_, origin, server):
        _, connection = await loop.create_connection(lambda: Connection(loop), origin.host, origin.port)
        await asyncio.sleep(0.02)
        connection.send(POST, b"", loop.time(), loop.time() + 60, USUAL)
        with pytest.raises(TransportError) as error:
            await connection.news()
        assert (error.value.kind, error.value.started, server.connections) == ("closed", False, 1)


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (OK, 1),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 1),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", 1),
        (OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), 3),
        (OK.replace(b"1.1", b"1.0"), 3),
    ],
)
async def test_a_connection_carries_exchange_after_exchange_unless_the_server_objects(
    run: Run, answer: bytes, connections: int
) -> None:
    async with serving(saying(answer, end=False)) as (client, origin, server):
        for _ in range(3):
            await told(client, origin)
        assert (server.requests, server.connections) == (3, connections)


async def test_a_connection_carries_one_exchange_at_a_time(run: Run) -> None:
    busy = 0

    async def talk(peer: Peer) -> None:
        nonlocal busy
        while True:
            head = await peer.request()
            busy = max(busy, peer.server.open)
            await asyncio.sleep(0.01)
            assert peer.reader.at_eof() or not getattr(peer.reader, "_buffer", b""), "pipelined"
            await peer.answer(OK.replace(b"ok", head.split()[1][-2:]))

    async with serving(talk) as (client, origin, server):
        for _ in range(2):
            heads = [POST.replace(b"/x", b"/%02d" % i) for i in range(20)]
            answers = await asyncio.gather(*(told(client, origin, head=head) for head in heads))
            assert answers == [(200, b"%02d" % i) for i in range(20)]
        assert (busy, server.connections, server.requests) == (20, 20, 40)


async def test_an_answer_that_came_before_it_was_asked_for_is_nobodys(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.answer(OK.replace(b"ok", b"no"))
        await peer.request()
        await peer.answer(OK)
        await peer.left()

    loop = asyncio.get_running_loop()
    async with serving(talk) as (_, origin, _):
        _, connection = await loop.create_connection(lambda: Connection(loop), origin.host, origin.port)
        await eventually(lambda: connection.started)
        connection.send(POST, b"", loop.time(), loop.time() + 60, USUAL)
        with pytest.raises(TransportError) as error:
            await connection.news()
        assert (error.value.kind, connection.keep) == ("closed", False)


@pytest.mark.parametrize("extra", [b"HTTP/1.1 500 No\r\ncontent-length: 3\r\nx: y\r\n\r\nbad", b"bad", b"\x00" * 9])
@pytest.mark.parametrize("together", [True, False])
async def test_bytes_after_the_end_are_nobodys_answer(run: Run, extra: bytes, together: bool) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(*([OK + extra] if together else [OK, extra]))
        await peer.left()

    async with serving(talk) as (client, origin, server):
        for _ in range(3):
            response = await ask(client, origin)
            assert (response.status, response.headers) == (200, [(b"content-length", b"2")])
            assert await response.read(99) == b"ok"
            response.close()
            await server.emptied()
        assert server.connections == 3


async def test_a_kept_connection_that_the_server_closed_is_replaced_once(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(OK)
        if peer.server.connections < 3:
            await peer.request()  # and closes without a word

    async with serving(talk) as (client, origin, server):
        first, second = await asyncio.gather(ask(client, origin), ask(client, origin))
        for response in (first, second):
            await response.read(9)
            response.close()
        assert await told(client, origin) == (200, b"ok")
        assert (server.connections, server.requests) == (3, 4)


async def test_a_request_is_not_repeated_when_a_byte_of_its_answer_came(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(OK)
        await peer.request()
        await peer.answer(OK[:9])

    async with serving(talk) as (client, origin, server):
        await told(client, origin)
        error = await broken(client, origin)
        assert (error.kind, error.started, server.requests, server.connections) == ("closed", True, 2, 1)


async def test_a_request_on_which_its_server_was_at_work_is_not_repeated(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(OK)
        await peer.request()
        await asyncio.sleep(0.1)  # at work, until it dies

    async with serving(talk, client=Client(stale=0.05)) as (client, origin, server):
        await told(client, origin)
        error = await broken(client, origin)
        assert (error.kind, error.started, server.requests, server.connections) == ("closed", False, 2, 1)


async def test_a_connection_whose_request_is_still_under_way_is_not_used_again(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.answer(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await peer.left()

    async with serving(talk) as (client, origin, server):
        for _ in range(2):
            response = await client.request(origin, POST, b"x" * 32 * MIB, USUAL)
            assert (response.status, await response.read(9)) == (413, b"no")
            response.close()
        assert server.connections == 2


async def test_an_answer_that_nobody_read_does_not_stop_the_next_one(run: Run) -> None:
    """It is as long as makes the client read no more before it is taken."""
    size = HIGH_WATER + 10
    headed = asyncio.Event()

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            await headed.wait()
            await peer.answer(bytes(size))

    async with serving(talk) as (client, origin, _):
        response = await ask(client, origin)
        headed.set()
        await eventually(lambda: response.complete)
        response.close()
        assert await told(client, origin) == (200, bytes(size))


async def test_idle_connections_close_in_time_and_with_the_client(run: Run) -> None:
    async with serving(saying(OK, end=False), client=Client(keep_alive=0.1)) as (client, origin, server):
        await told(client, origin, Limits(60, 60, 60, 60))
        assert server.open == 1
        started = time.monotonic()
        await server.emptied()
        assert time.monotonic() - started > 0.05
    async with serving(saying(OK, end=False), client=Client(keep_alive=60)) as (client, origin, server):
        await told(client, origin)
        open_one = await ask(client, origin)
        await told(client, origin)
        assert server.open == 2
        client.close()
        assert await open_one.read(9) == b"ok"
        open_one.close()
        await server.emptied()
        with pytest.raises(TransportError):
            await open_one.chunk()


def test_an_origin_is_read_from_a_url() -> None:
    assert Origin.parse("http://h:8000/prefix/") == ("h", 8000, False, "/prefix")
    assert Origin.parse("https://[::1]") == ("::1", 443, True, "")
    assert Origin.parse("http://H") == ("h", 80, False, "")
    for url in ("ftp://h", "h:80", "http://", "http://h:99999", "/v1"):
        with pytest.raises(ValueError):  # noqa: PT011
            Origin.parse(url)
