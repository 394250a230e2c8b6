"""A sentinel names another primary; the store asks and follows."""

import asyncio
import itertools
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.store import Limits, Store, open_store
from gateway.store.opening import Opening, opening
from gateway.store.sentinel import Primary, named
from loadtest.clusters import Node, free_ports
from loadtest.servers import until
from tests.gateway.identity import CERTIFICATE, KEY, pem
from tests.gateway.serving import eventually

ONE = Limits(1, 100, 60.0)
PLENTY = Limits(1_000_000, 100_000, 60.0)
PATIENT = "?socket_timeout=60"  # what waits for a server that is gone is seen to
WAIT = 20.0  # seconds
OPTIONS = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
WATCH = """
bind 127.0.0.1
port {port}
dir {place}
sentinel monitor main 127.0.0.1 {primary} 1
sentinel down-after-milliseconds main 300
sentinel failover-timeout main 2000
"""


@contextmanager
def watched() -> Iterator[tuple[Node, Node, Node]]:
    """A primary, its replica, and the sentinel that watches them."""
    with tempfile.TemporaryDirectory(prefix="tiergate-") as name:
        place = Path(name)
        one, other, eye = free_ports(3)
        nodes = (Node(one, place, OPTIONS), Node(other, place, OPTIONS), Node(eye, place, []))
        conf = place / "sentinel.conf"
        conf.write_text(WATCH.format(port=eye, place=place, primary=one))
        nodes[2].command = [nodes[0].command[0], str(conf), "--sentinel"]
        try:
            nodes[0].start()
            nodes[1].start()
            nodes[1].ask("REPLICAOF", "127.0.0.1", one)
            until(lambda: bool(nodes[0].ask("ROLE")[2]))
            nodes[2].start()
            until(lambda: len(nodes[2].ask("SENTINEL", "REPLICAS", "main")) == 1)
            yield nodes
        finally:
            for node in nodes:
                node.close()


def url(eye: Node) -> str:
    """The first of the sentinels is gone."""
    return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{eye.port}/main/0{PATIENT}"


async def spend(store: Store) -> bool:
    return (await store.admit("ann", ONE, None)).allowed


async def reached(address: str) -> bool:
    """Whether a store at this address answers."""
    store = open_store(address)
    try:
        return await store.ping()
    finally:
        await store.close()


async def shared_again(store: Store) -> float:
    """Seconds until the servers decide. Raises AssertionError after twenty."""
    started = time.monotonic()
    while store.state != "ok" or not await store.ping():
        await store.admit("bob", PLENTY, None)
        assert time.monotonic() - started < WAIT
        await asyncio.sleep(0.02)
    return time.monotonic() - started


def test_a_killed_primary_is_followed_by_the_one_that_the_sentinel_promotes() -> None:
    async def main(primary: Node, replica: Node, eye: Node) -> None:
        store = open_store(url(eye))
        await shared_again(store)
        assert [await spend(store), await spend(store)] == [True, False]
        assert await asyncio.to_thread(primary.replicated)
        primary.kill()
        assert (await asyncio.wait_for(store.admit("bob", PLENTY, None), WAIT)).allowed
        assert store.state == "down"
        print(f"decided locally for {await shared_again(store):.2f} s")
        assert not await spend(store)
        assert replica.ask("ROLE")[0] == b"master"
        await store.close()

    with watched() as (primary, replica, eye):
        asyncio.run(main(primary, replica, eye))


def test_a_primary_that_answers_as_a_replica_makes_the_store_ask_again() -> None:
    async def main(primary: Node, replica: Node, eye: Node) -> None:
        store = open_store(url(eye))
        await shared_again(store)
        eye.ask("SENTINEL", "REMOVE", "main")
        replica.ask("REPLICAOF", "NO", "ONE")
        primary.ask("REPLICAOF", "127.0.0.1", replica.port)
        eye.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", replica.port, 1)
        assert (await store.admit("bob", PLENTY, None)).allowed
        assert store.state == "down"
        await shared_again(store)
        await store.remember("ann", b"key", b"there", 60.0)
        assert replica.ask("DBSIZE") >= 1
        assert await store.recall("ann", b"key") == b"there"
        await store.close()

    with watched() as (primary, replica, eye):
        asyncio.run(main(primary, replica, eye))


@contextmanager
def behind() -> Iterator[tuple[Node, Callable[[int], Node]]]:
    """A server, and what starts a sentinel that names a port as the primary's."""
    with tempfile.TemporaryDirectory(prefix="tiergate-") as name:
        place = Path(name)
        one, eye = free_ports(2)
        server, sentinel = Node(one, place, OPTIONS), Node(eye, place, [])

        def watching(primary: int) -> Node:
            conf = place / "sentinel.conf"
            conf.write_text(WATCH.format(port=eye, place=place, primary=primary))
            sentinel.command = [server.command[0], str(conf), "--sentinel"]
            sentinel.start()
            return sentinel

        try:
            server.start()
            yield server, watching
        finally:
            server.close()
            sentinel.close()


@asynccontextmanager
async def tls(port: int) -> AsyncIterator[int]:
    """A port that speaks TLS for one that does not; it vouches for itself."""
    identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem("PRIVATE KEY", KEY) + pem("CERTIFICATE", CERTIFICATE))
        file.flush()
        identity.load_cert_chain(file.name)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):  # also where the loop ends first: else another test hears of it
            while data := await reader.read(65536):
                writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, outer), carry(inner, writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=identity) as server:
        yield server.sockets[0].getsockname()[1]


def test_sentinels_and_the_primary_are_asked_over_tls() -> None:
    async def main(server: Node, watching: Callable[[int], Node]) -> list[bool]:
        async with tls(server.port) as secure, tls(watching(secure).port) as eye:
            address = f"rediss+sentinel://127.0.0.1:{eye}/main{PATIENT}"
            return [await reached(address + options) for options in ("&ssl_cert_reqs=none", "")]

    with behind() as (server, watching):
        assert asyncio.run(main(server, watching)) == [True, False]


def test_sentinels_are_asked_with_a_password_of_their_own() -> None:
    async def main(eye: Node) -> list[bool]:
        address = f"redis+sentinel://127.0.0.1:{eye.port}/main{PATIENT}"
        given = ("&sentinel_password=open%20sesame", "&sentinel_password=wrong", "")
        return [await reached(address + password) for password in given]

    with behind() as (server, watching):
        eye = watching(server.port)
        eye.ask("ACL", "SETUSER", "default", ">open sesame")
        assert asyncio.run(main(eye)) == [True, False, False]


class Saying(asyncio.Protocol):
    """A server that replies so to all that it is asked."""

    def __init__(self, words: Callable[[], bytes]) -> None:
        self._words = words

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, _: bytes) -> None:
        self._transport.write(self._words())


@asynccontextmanager
async def saying(words: Callable[[], bytes]) -> AsyncIterator[Opening]:
    """The way to such a server."""
    async with await asyncio.get_running_loop().create_server(lambda: Saying(words), "127.0.0.1", 0) as server:
        yield opening(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATIENT}")


async def test_a_primary_is_left_when_most_sentinels_name_another_one_whether_it_knows_or_not() -> None:
    roles, looks = [b"slave"] * 3, itertools.count()

    def role() -> bytes:
        return b"*1\r\n+%b\r\n" % (roles.pop() if roles else b"master")

    def name() -> bytes:
        next(looks)
        return b"*2\r\n+127.0.0.1\r\n+%d\r\n" % at

    async with saying(role) as before, saying(role) as after, saying(name) as eye:
        at, gone = before.port, replace(eye, port=1)
        sure, doubted = (Primary(eyes, "main", before, 0.01) for eyes in ([eye, eye, gone], [eye, gone, gone]))
        one, other = await sure.open(), await doubted.open()
        await eventually(lambda: next(looks) > 20)
        assert not one.is_closing()
        at = after.port
        await eventually(one.is_closing)
        assert roles == [], "a replica is no primary, whoever names it"
        assert not other.is_closing()
        other.abort()


async def primary_of(ports: Sequence[int | None], seconds: float) -> int:
    """The port of the primary by sentinels that each name one, 0: know none, None: say nothing. The first one is heard
    first."""
    heard = asyncio.Event()

    async def told(port: int | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"main\r\n")
        if port is not ports[0]:
            await heard.wait()
        if port == 0:
            writer.write(b"*-1\r\n")
        elif port is not None:
            writer.write(b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n%d\r\n" % port)
        await reader.read()
        heard.set()
        writer.close()

    async with AsyncExitStack() as stack:
        ways = []
        for port in ports:
            server = await stack.enter_async_context(await asyncio.start_server(partial(told, port), "127.0.0.1", 0))
            ways.append(opening(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATIENT}"))
        return (await asyncio.wait_for(named(ways, "main", seconds), WAIT))[1]


@pytest.mark.parametrize(
    ("ports", "seconds", "primary"),
    [
        ((7001, 7002, 7002), 60.0, 7002),
        ((7001, 7001, None), 60.0, 7001),
        ((7001, None, None), 0.1, 7001),
        ((0, 7001, 7001), 60.0, 7001),
    ],
)
def test_a_majority_of_the_sentinels_says_or_most_of_those_that_answer_in_time(
    ports: Sequence[int | None], seconds: float, primary: int
) -> None:
    assert asyncio.run(primary_of(ports, seconds)) == primary


def test_where_no_sentinel_answers_in_time_there_is_no_primary() -> None:
    with pytest.raises(ConnectionError, match="no sentinel names a primary for main"):
        asyncio.run(primary_of((None, None), 0.05))


async def test_sentinels_that_are_gone_cost_no_request() -> None:
    store = open_store(f"redis+sentinel://127.0.0.1:1,127.0.0.1:2/main{PATIENT}")
    assert (await asyncio.wait_for(store.admit("ann", PLENTY, None), WAIT)).allowed
    assert store.state == "down"
    await store.close()


@pytest.mark.parametrize("rest", ["127.0.0.1:1", "127.0.0.1:1/", "127.0.0.1:1//0"])
def test_an_address_without_a_service_is_refused(rest: str) -> None:
    with pytest.raises(ValueError, match="service"):
        open_store(f"redis+sentinel://{rest}")
