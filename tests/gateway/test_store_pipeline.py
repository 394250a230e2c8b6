"""One connection to a real Valkey, shared by all tasks, on both event loops, bare and in TLS."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from valkey import Valkey

from gateway.store import VALUE_LIMIT, open_store, where
from gateway.store.address import _joined, hosts
from gateway.store.circuit import Circuit, Unsent
from gateway.store.opening import TIMEOUT, Word, opening, written
from gateway.store.pipeline import FAULTS, PIECE, Pipeline
from tests.gateway.identity import CERTIFICATE, KEY, pem
from tests.gateway.loopback import Run, run  # noqa: F401  a fixture
from tests.gateway.serving import PATIENCE, eventually, watched
from tests.gateway.test_http1_limits import identity  # noqa: F401  a fixture

BIG = b"x" * VALUE_LIMIT


@contextlib.asynccontextmanager
async def pipeline(url: str, faults: list[Exception]) -> AsyncIterator[Pipeline]:
    opened = Pipeline(opening(url), faults.append, lambda error, waiting: False)
    try:
        yield opened
    finally:
        await opened.close()


@contextlib.asynccontextmanager
async def tls_before(valkey: str, tls: ssl.SSLContext) -> AsyncIterator[int]:
    """The port of a relay that speaks TLS to clients.

    All its connections have ended when the block is left: uvloop does not close as long as one of TLS is open.
    """
    meetings: dict[asyncio.Task[Any] | None, asyncio.StreamWriter] = {}

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meetings[asyncio.current_task()] = writer
        far_reader, far_writer = await asyncio.open_unix_connection(urlsplit(valkey).path)
        await asyncio.gather(relay(reader, far_writer), relay(far_reader, writer))

    listening = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for writer in meetings.values():
            writer.transport.abort()
        await asyncio.wait([meeting for meeting in meetings if meeting], timeout=PATIENCE)
        await asyncio.sleep(0.05)  # what was closed is taken down in the loop's next turns


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def set_and_get(lane: Pipeline) -> None:
    """More than any buffer takes, both ways; the replies keep the order of the commands."""
    names = [b"name%d" % n for n in range(8)]
    asked = [lane.put(*command) for name in names for command in ((b"SET", name, name + BIG), (b"GET", name))]
    asked += [lane.put(b"ECHO", n) for n in range(500)]
    expected = [answer for name in names for answer in (b"OK", name + BIG)] + [b"%d" % n for n in range(500)]
    assert await asyncio.gather(*asked) == expected


async def test_many_large_commands_at_once_are_answered_in_order(run: Run, valkey: str) -> None:  # noqa: F811
    faults: list[Exception] = []
    async with pipeline(valkey, faults) as lane:
        await set_and_get(lane)
    assert faults == []


def test_user_password_database_and_tls_are_those_of_the_address(
    run: Run,  # noqa: F811
    valkey: str,
    identity: ssl.SSLContext,  # noqa: F811
) -> None:
    async def main() -> None:
        faults: list[Exception] = []
        async with tls_before(valkey, identity) as port:
            address = f"ann:sesame@127.0.0.1:{port}/3?ssl_cert_reqs=none&ssl_check_hostname=false&socket_timeout=10"
            async with pipeline(f"rediss://{address}", faults) as lane:
                assert await lane.put(b"SET", b"name", b"value") == b"OK"
                assert await lane.put(b"ACL", b"WHOAMI") == b"ann"
            with Valkey.from_url(f"{valkey}&db=3") as client:
                assert client.get("name") == b"value"
        assert faults == []

    with Valkey.from_url(valkey) as client:
        client.acl_setuser("ann", enabled=True, passwords=["+sesame"], commands=["+@all"], keys=["*"])
        try:
            run(main())
        finally:
            client.acl_deluser("ann")


def test_where_the_database_is_not_there_nothing_is_written_into_another(run: Run, valkey: str) -> None:  # noqa: F811
    async def main() -> None:
        faults: list[Exception] = []
        async with pipeline(f"{valkey}&db=9999", faults) as lane:
            with pytest.raises(FAULTS, match="DB index"):
                await lane.put(b"SET", b"name", b"value")
        assert len(faults) == 1

    run(main())
    with Valkey.from_url(valkey) as client:
        assert not client.exists("name")


@pytest.mark.parametrize(
    ("url", "greeting", "place", "seconds"),
    [
        ("redis://h", [], ("h", 6379, ""), TIMEOUT),
        ("redis://:p%40ss@[::1]:7", [(b"AUTH", "p@ss")], ("::1", 7, ""), TIMEOUT),
        ("redis://ann:a@h/3?socket_timeout=2", [(b"AUTH", "ann", "a"), (b"SELECT", 3)], ("h", 6379, ""), 2.0),
        ("redis://h?username=ann&password=a&db=3", [(b"AUTH", "ann", "a"), (b"SELECT", 3)], ("h", 6379, ""), TIMEOUT),
        ("redis:///4", [(b"SELECT", 4)], ("localhost", 6379, ""), TIMEOUT),
        ("unix://:a@/run/a%20b?db=1", [(b"AUTH", "a"), (b"SELECT", 1)], ("localhost", 6379, "/run/a b"), TIMEOUT),
    ],
)
def test_an_address_says_where_who_and_how_long(
    url: str, greeting: list[tuple[Word, ...]], place: tuple[str, int, str], seconds: float
) -> None:
    found = opening(url)
    assert found.greeting == tuple(map(written, greeting))
    assert ((found.host, found.port, found.path), found.timeout, found.tls) == (place, seconds, None)


@pytest.mark.parametrize(
    ("options", "names_are_checked", "mode"),
    [
        ("", True, ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=none", False, ssl.CERT_NONE),
        ("?ssl_cert_reqs=optional", True, ssl.CERT_OPTIONAL),
        ("?ssl_check_hostname=False", False, ssl.CERT_REQUIRED),
        ("?ssl_check_hostname=no&ssl_cert_reqs=required", False, ssl.CERT_REQUIRED),
        ("?ssl_check_hostname=0", False, ssl.CERT_REQUIRED),
    ],
)
def test_who_answers_in_tls_is_checked_unless_the_address_says_otherwise(
    options: str, names_are_checked: bool, mode: ssl.VerifyMode
) -> None:
    tls = opening(f"rediss://h{options}").tls
    assert tls
    assert (tls.check_hostname, tls.verify_mode) == (names_are_checked, mode)


def test_a_certificate_of_our_own_has_its_key_in_the_same_file_or_another(tmp_path: Path) -> None:
    chain, key, both = (tmp_path / name for name in ("chain.pem", "key.pem", "both.pem"))
    chain.write_text(pem("CERTIFICATE", CERTIFICATE))
    key.write_text(pem("PRIVATE KEY", KEY))
    both.write_text(chain.read_text() + key.read_text())
    assert opening(f"rediss://h?ssl_certfile={both}").tls
    assert opening(f"rediss://h?ssl_certfile={chain}&ssl_keyfile={key}").tls
    with pytest.raises(ValueError, match="cannot be used"):
        opening(f"rediss://h?ssl_certfile={chain}")


def test_the_servers_of_a_cluster_are_told_by_name_or_number_with_a_port_or_without() -> None:
    told = "ann:a@[::1]:7000,h,[fe80::2],10.0.0.1:7001/?db=0"
    servers = [("::1", 7000), ("h", 6379), ("fe80::2", 6379), ("10.0.0.1", 7001)]
    assert hosts(told) == servers
    assert hosts(",".join(map(_joined, servers))) == servers


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis", "begins with one of redis://"),
        ("http://h", "begins with one of redis://"),
        ("redis+cluster://h:x", "host:port"),
        ("redis+cluster://:7000", "host:port"),
        ("redis://h?socket_timout=1", "no socket_timout; known: .*socket_timeout"),
        ("redis://h/main", "numbers"),
        *[(f"redis://h?socket_timeout={told}", told) for told in ("soon", "nan", "inf", "-1", "0", "61", "1e300")],
        ("rediss://h?ssl_ca_certs=/nowhere/ca.pem", "No such file"),
        ("rediss://h?ssl_cert_reqs=never", "none, optional, required"),
    ],
)
def test_an_address_that_cannot_be_meant_so_is_refused(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        open_store(url)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("redis://user:hunter2@h:1/0?socket_timeout=1", "h:1/0"),
        ("valkey+cluster://:hunter2@h:1,i:2", "h:1,i:2"),
        ("unix://:hunter2@/run/store.sock", "/run/store.sock"),
        ("redis+sentinel://h/main?sentinel_password=hunter2", "h/main"),
        ("redis://h?password=hunter2", "h"),
        ("redis://h?password=a@hunter2", "***"),
        ("redis://:a/hunter2@h:1", "h:1"),
        ("redis://:a#hunter2@h:1", "h:1"),
        ("redis://:hunter2?a@h:1", "***"),
    ],
)
def test_of_an_address_nothing_secret_is_shown(address: str, told: str) -> None:
    assert where(address) == told


@pytest.mark.parametrize("address", ["redis://:a/hunter2@h:1", "redis://:hunter2#a@h:1", "redis://:hunter2?a@h:1"])
def test_a_password_that_is_not_escaped_is_not_told(address: str) -> None:
    with pytest.raises(ValueError, match="numbers") as refusal:
        open_store(address)
    assert "hunter2" not in str(refusal.value)


async def test_a_server_that_was_let_go_is_asked_no_more(valkey: str) -> None:
    circuit = Circuit(opening(valkey), lambda: None)
    assert await circuit.put(b"PING") == b"PONG"
    await circuit.close()
    with pytest.raises(Unsent):
        await circuit.put(b"PING")


def test_what_was_put_is_sent_though_nobody_waits_and_the_line_is_closed(run: Run, valkey: str) -> None:  # noqa: F811
    async def main() -> None:
        async with pipeline(valkey, []) as lane:
            lane.put(b"INCR", b"count").cancel()
            lane.put(b"INCR", b"count")

    run(main())
    with Valkey.from_url(valkey) as client:
        assert client.get("count") == b"2"


async def test_a_connection_that_the_server_ends_is_heard_of_once_and_the_next_command_connects_afresh(
    run: Run,  # noqa: F811
    valkey: str,
) -> None:
    faults: list[Exception] = []
    async with pipeline(valkey, faults) as lane:
        number = await lane.put(b"CLIENT", b"ID")
        with Valkey.from_url(valkey) as client:
            client.client_kill_filter(_id=number)
        async with asyncio.timeout(PATIENCE):
            while not faults:  # noqa: ASYNC110  a pipeline tells of a fault by a call only
                await asyncio.sleep(0.005)
        assert await lane.put(b"CLIENT", b"ID") > number
    assert len(faults) == 1


async def test_a_connection_that_ends_while_it_takes_no_more_is_followed_by_one_that_does(run: Run) -> None:  # noqa: F811
    met: list[asyncio.StreamWriter] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)
        if len(met) > 1:  # the first one reads nothing
            await reader.readuntil(b"PING\r\n")
            writer.write(b"+PONG\r\n")
            writer.close()

    faults: list[Exception] = []
    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?socket_timeout=10"
        async with pipeline(url, faults) as lane:
            asked = [lane.put(b"SET", b"name", BIG) for _ in range(16)]
            await eventually(lambda: lane._paused)
            met[0].transport.abort()
            assert {type(one) for one in await asyncio.gather(*asked, return_exceptions=True)} == {type(faults[0])}
            assert await lane.put(b"PING") == b"PONG"


def test_a_server_that_takes_no_connection_is_given_up_in_time(run: Run) -> None:  # noqa: F811
    async def main() -> None:
        faults: list[Exception] = []
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}?socket_timeout=0.05"
        async with pipeline(url, faults) as lane, asyncio.timeout(PATIENCE):
            with pytest.raises(TimeoutError, match="no reply"):
                await lane.put(b"PING")
        assert len(faults) == 1

    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, contextlib.ExitStack() as queue:
        for _ in range(4):  # the kernel lets no more wait
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        run(main())


@pytest.mark.parametrize("reply", [b"+OK\r\n+OK\r\n", b"-MOVED elsewhere\r\n", b"-ASK 1 host:port\r\n", b"-MOVED\r\n"])
async def test_who_does_not_keep_to_the_protocol_is_a_server_that_fails(run: Run, reply: bytes) -> None:  # noqa: F811
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(reply)
        await reader.read()
        writer.close()

    troubles, faults = watched(), list[Exception]()
    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with pipeline(f"{url}?socket_timeout=10", faults) as lane:
            with contextlib.suppress(ConnectionError):
                assert await lane.put(b"PING") == b"OK"
            await eventually(lambda: bool(faults))
    assert [type(fault) for fault in faults] == [ConnectionError]
    assert troubles == []


@contextlib.asynccontextmanager
async def slow(pieces: Sequence[bytes], seconds: float, faults: list[Exception]) -> AsyncIterator[Pipeline]:
    """A pipeline to a server that sends these, `seconds` apart, a third of the pipeline's timeout."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            await asyncio.sleep(seconds)
            writer.write(piece)
        with contextlib.suppress(ConnectionError):
            while await reader.read(100):
                pass
        writer.close()
        over.set()

    over = asyncio.Event()
    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?socket_timeout={3 * seconds}"
        async with pipeline(url, faults) as lane:
            yield lane
            lane.drop()
        await over.wait()
    await asyncio.sleep(0)


async def test_a_reply_that_drips_is_none_in_time() -> None:
    faults: list[Exception] = []
    async with slow([b"$12\r\n", *[b"x"] * 12], 0.02, faults) as lane:
        with pytest.raises(TimeoutError):
            await lane.put(b"GET", b"name")
    assert len(faults) == 1


async def test_a_large_reply_may_take_longer_than_the_timeout() -> None:
    faults: list[Exception] = []
    whole = b"x" * 6 * PIECE
    said = b"$%d\r\n%b\r\n" % (len(whole), whole)
    async with slow([said[at : at + PIECE] for at in range(0, len(said), PIECE)], 0.04, faults) as lane:
        assert await lane.put(b"GET", b"name") == whole
    assert faults == []


async def test_many_replies_may_take_longer_together_than_the_timeout() -> None:
    faults: list[Exception] = []
    async with slow([b"+OK\r\n"] * 6, 0.04, faults) as lane:
        assert await asyncio.gather(*(lane.put(b"PING") for _ in range(6))) == [b"OK"] * 6
    assert faults == []
