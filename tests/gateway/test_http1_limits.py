"""The client against servers that are silent, slow or too fast, callers who leave, and strangers."""

import asyncio
import os
import socket
import ssl
import tempfile
import time
from pathlib import Path

import pytest

from gateway.http1 import Client, Limits, Origin, TransportError
from tests.gateway.identity import CERTIFICATE, KEY, pem
from tests.gateway.loopback import (
    CHUNKED,
    MIB,
    OK,
    POST,
    Peer,
    Run,
    Talk,
    ask,
    broken,
    run,
    saying,
    serving,
    silence,
    told,
)
from tests.gateway.serving import eventually

__all__ = ["run"]
ROUNDS = 500 if os.environ.get("FAULTS") == "full" else 25  # 15,000 calls: `make faults`


async def dripping(peer: Peer) -> None:
    await peer.request()
    await peer.answer(CHUNKED)
    while True:
        await peer.answer(b"1\r\nx\r\n")
        await asyncio.sleep(0.02)


async def hinting(peer: Peer) -> None:
    await peer.request()
    while True:
        await peer.answer(b"HTTP/1.1 103 Early\r\n\r\n")
        await asyncio.sleep(0.02)


async def halting(peer: Peer) -> None:
    await peer.request()
    await peer.answer(CHUNKED + b"1\r\nx\r\n")
    await peer.left()


@pytest.mark.parametrize(
    ("talk", "limits", "kind"),
    [
        (silence, Limits(60, 0.1, 60, 60), "first_byte"),
        (hinting, Limits(60, 0.1, 60, 60), "first_byte"),
        (halting, Limits(60, 60, 0.1, 60), "idle"),
        (silence, Limits(60, 60, 60, 0.1), "total"),
        (dripping, Limits(60, 60, 60, 0.1), "total"),
        (silence, Limits(60, 0.05, 60, 60, lambda over: 0.05 * (over < 0.04)), "still"),
        (hinting, Limits(60, 0.02, 60, 0.1, lambda _: 0.02), "total"),
    ],
)
async def test_each_limit_holds(run: Run, talk: Talk, limits: Limits, kind: str) -> None:
    async with serving(talk) as (client, origin, server):
        started = time.monotonic()
        assert (await broken(client, origin, limits)).kind == kind
        assert 0.09 < time.monotonic() - started < 30
        await server.emptied()


async def test_the_kernel_ends_connections_to_a_host_that_is_gone(run: Run) -> None:
    async with serving(halting) as (client, origin, _):
        response = await ask(client, origin)
        own = response._open()._transport.get_extra_info("socket")
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert [own.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [15, 5, 30_000]
        response.close()


async def test_an_exchange_on_a_kept_connection_has_limits_of_its_own(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(OK)
        await peer.left()

    async with serving(talk, client=Client(keep_alive=60)) as (client, origin, server):
        await told(client, origin, Limits(60, 60, 60, 60))
        assert (await broken(client, origin, Limits(60, 0.1, 60, 60))).kind == "first_byte"
        assert server.connections == 1


async def test_the_rest_of_an_answer_may_be_given_less_time_but_never_more(run: Run) -> None:
    async with serving(dripping) as (client, origin, server):
        for total, hurries in ((60.0, (0.2,)), (0.2, (60.0,)), (60.0, (0.2, 60.0))):
            response = await ask(client, origin, Limits(60, 60, 60, total))
            for seconds in hurries:
                ended = response.ended(bool, seconds)
            assert ended
            await asyncio.wait_for(ended, 20)
            with pytest.raises(TransportError) as error:
                await response.chunk()
            assert error.value.kind == "total"
            response.close()
        await server.emptied()


async def test_the_idle_limit_starts_anew_with_each_chunk(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(CHUNKED)
        for _ in range(12):
            await peer.answer(b"1\r\nx\r\n")
            await asyncio.sleep(0.05)
        await peer.left()

    async with serving(talk) as (client, origin, _):
        response = await ask(client, origin, Limits(60, 60, 0.5, 60))
        started = time.monotonic()
        with pytest.raises(TransportError) as error:
            await response.read(99)
        response.close()
        assert error.value.kind == "idle"
        assert time.monotonic() - started > 0.9


@pytest.mark.parametrize("size", [2, MIB])
async def test_a_reader_that_is_slow_is_no_idle_server_but_has_a_total_too(run: Run, size: int) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(CHUNKED + b"%x\r\n%s\r\n" % (size, b"x" * size))
        await peer.left()

    async with serving(talk) as (client, origin, server):
        started = time.monotonic()
        response = await ask(client, origin, Limits(60, 0.05, 0.05, 0.25))
        await server.emptied()
        assert time.monotonic() - started > 0.2
        assert set(await response.chunk()) == set(b"x")
        with pytest.raises(TransportError) as error:
            await response.chunk()
        assert error.value.kind == "total"
        response.close()


async def test_a_slow_reader_slows_the_server(run: Run) -> None:
    sent = 0

    async def talk(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (48 * MIB))
        for _ in range(48):
            await peer.answer(b"x" * MIB)
            sent += 1

    async with serving(talk) as (client, origin, _):
        response = await ask(client, origin)
        size = len(await response.chunk())
        await asyncio.sleep(0.2)
        assert sent < 16  # what fits into the sockets' own buffers
        while data := await response.chunk():
            assert len(data) < 2 * MIB
            size += len(data)
        response.close()
        assert (sent, size) == (48, 48 * MIB)


async def test_an_answer_longer_than_asked_for_is_refused(run: Run) -> None:
    async with serving(saying(OK, end=False)) as (client, origin, server):
        response = await ask(client, origin)
        with pytest.raises(TransportError, match="too long"):
            await response.read(1)
        response.close()
        assert server.connections == 1


@pytest.mark.parametrize("talk", [silence, hinting, dripping, saying(OK[:-1] + b"", end=False)])
async def test_a_cancelled_call_closes_its_connection_at_once(run: Run, talk: Talk) -> None:
    async with serving(talk) as (client, origin, server):
        task = asyncio.create_task(told(client, origin))
        await eventually(lambda: server.open == 1)
        await asyncio.sleep(0.05)  # it is in the midst of its answer
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await server.emptied()  # no limit ends it so early


async def test_after_a_storm_of_cancelled_calls_every_call_works(run: Run) -> None:
    async def talk(peer: Peer) -> None:
        while True:
            head = await peer.request()
            await asyncio.sleep(0 if b"quick" in head else 0.02)
            await peer.answer(OK[:-1])
            await asyncio.sleep(0 if b"quick" in head else 0.005)
            await peer.answer(b"k")

    async with serving(talk) as (client, origin, server):

        async def impatient(seed: int) -> int:
            late = 0
            for i in range(ROUNDS):
                try:
                    async with asyncio.timeout(((seed * 31 + i * 7) % 30) / 1000):
                        await told(client, origin)
                except TimeoutError:
                    late += 1
            return late

        assert sum(await asyncio.gather(*map(impatient, range(30)))) > 20 * ROUNDS
        quick = POST.replace(b"/x", b"/quick")
        for _ in range(5):
            answers = await asyncio.gather(*(told(client, origin, head=quick) for _ in range(20)))
            assert answers == [(200, b"ok")] * 20
        client.close()
        await server.emptied()


async def test_connections_that_closed_are_let_go_when_another_server_is_asked(run: Run) -> None:
    talk = saying(OK, end=False)
    mine = Client(keep_alive=0.05)
    async with serving(talk, client=mine) as (client, gone, _), serving(talk, client=mine) as (_, other, _):
        answers = await asyncio.gather(*(ask(client, gone) for _ in range(9)))
        for answer in answers:
            await answer.read(9)
            answer.close()
        kept = client._idle[gone]
        assert len(kept) == 9
        await eventually(lambda: not any(connection.keep for connection in kept))
        assert await told(client, other) == (200, b"ok")
        assert not kept


async def test_what_cannot_be_reached_is_a_connect_error(run: Run) -> None:
    client = Client()
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    for host in ("127.0.0.1", "a" * 70 + ".invalid", "b..invalid"):
        assert (await broken(client, Origin(host, port, False, ""))).kind == "connect"


@pytest.fixture(scope="module")
def identity() -> ssl.SSLContext:
    """A server that says it is localhost and vouches for itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem("PRIVATE KEY", KEY) + pem("CERTIFICATE", CERTIFICATE))
        file.flush()
        context.load_cert_chain(file.name)
    return context


async def test_tls_trusts_whom_it_was_told_to(run: Run, identity: ssl.SSLContext) -> None:
    trusting = ssl.create_default_context(cadata=pem("CERTIFICATE", CERTIFICATE))
    async with serving(saying(OK, end=False), identity, Client(trusting)) as (client, origin, server):
        assert [await told(client, origin) for _ in range(2)] == [(200, b"ok")] * 2
        assert server.connections == 1
        assert (await broken(client, origin._replace(host="127.0.0.2"))).kind == "connect"
    async with serving(saying(OK), identity) as (client, origin, server):
        error = await broken(client, origin)
        assert (error.kind, server.requests) == ("connect", 0)
        assert "certificate" in str(error).lower()


async def test_tls_believes_the_authorities_of_the_environment_and_names_the_host(
    run: Run, identity: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(pem("CERTIFICATE", CERTIFICATE))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    named: list[str | None] = []
    identity.sni_callback = lambda _, name, __: named.append(name)
    async with serving(saying(OK), identity) as (client, origin, _):
        assert await told(client, origin._replace(host="localhost")) == (200, b"ok")
        assert named == ["localhost"]


async def test_a_handshake_that_does_not_come_is_given_up(run: Run) -> None:
    async with serving(silence) as (client, origin, server):
        secure = origin._replace(tls=True)
        for limits, kind in ((Limits(0.1, 60, 60, 60), "connect"), (Limits(60, 60, 60, 0.1), "total")):
            assert (await asyncio.wait_for(broken(client, secure, limits), 30)).kind == kind
            await server.emptied()
        task = asyncio.create_task(told(client, secure))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        await server.emptied()
