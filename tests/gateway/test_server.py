import asyncio
import gc
import json
import os
import resource
import secrets
import signal
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.app import across_origins, create_app
from gateway.cli.serve import addressed
from gateway.fast import FastConnection
from gateway.keys import Keys
from gateway.server import LINE, TLS_LINE, Listener, Server, bind, files, most_lines
from gateway.settings import Settings
from gateway.store import MemoryStore
from loadtest.servers import POLICY, Process, Sim, free_port, running, until
from tests.gateway.identity import CERTIFICATE, KEY, NEXT_CERTIFICATE, NEXT_KEY, ending, pem
from tests.gateway.serving import PATIENCE, Answer, Line, Port, body, eventually, gateway, parsed
from tests.tiers import JSON, policy_for

STREAM = body(model="flash", stream=True, max_tokens=40)
PLACES = 4


@contextmanager
def serving(flash: Sim, pro: Sim, **settings: str) -> Iterator[tuple[Port, Process]]:
    """A gateway in a process of its own, which has ended well when the block has. Faults are set in the block: a start
    waits for tiers that stall.
    """
    policy = POLICY.format(triage="", limit=100_000, flash=flash.model, pro=pro.model)
    with running(policy, (flash, pro), **settings) as (url, process):
        yield Port(int(url.rpartition(":")[2])), process
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def small(flash_server: Sim, pro_server: Sim) -> Iterator[Port]:
    """A gateway with places for four callers."""
    with serving(flash_server, pro_server, CONNECTIONS=str(PLACES)) as (gate, process):
        yield gate
        process.terminate()


def ready(port: int) -> int:
    """What /ready says; 0 when nobody is let in."""
    return told(port)[0]


def told(port: int) -> tuple[int, JSON]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


async def streams(gate: Port, count: int, sim: Sim) -> "list[asyncio.Task[Answer]]":
    """That many streams under way."""
    tasks = [asyncio.create_task(gate.ask(STREAM)) for _ in range(count)]
    await eventually(lambda: len(sim.seen()) == count)
    return tasks


async def test_on_sigterm_readiness_goes_first_then_the_door_and_every_stream_ends_well(flash: Sim, pro: Sim) -> None:
    with serving(flash, pro, DRAIN_WAIT="2") as (gate, process):
        flash.config(drip=0.004, drip_bytes=64)
        tasks = await streams(gate, 20, flash)
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: ready(gate.port) != 200)
        (status, said), late, kept, wrong = await asyncio.gather(
            asyncio.to_thread(told, gate.port),
            gate.ask(body(model="pro")),
            gate.get("/v1/models", connection="keep-alive"),
            gate.get("/v1/models", host="a b"),
        )
        assert (status, said["status"]) == (503, "leaving")
        assert (late.status, late.headers["connection"]) == (200, "close"), "still let in"
        assert (kept.status, kept.headers["connection"]) == (200, "close"), "and not for long"
        assert (wrong.status, wrong.headers["connection"], wrong.repeated) == (400, "close", [])
        answers = await asyncio.gather(*tasks)
        assert [(one.status, one.events()[-1]) for one in answers] == [(200, b"[DONE]")] * 20
        await eventually(lambda: ready(gate.port) == 0)


async def test_what_takes_longer_than_the_drain_ends_in_an_error_event(flash: Sim, pro: Sim) -> None:
    with serving(flash, pro, DRAIN="0.3") as (gate, process):
        flash.config(stall_after=3)
        (stream,) = await streams(gate, 1, flash)
        flash.config(stall_first=60.0)
        whole = asyncio.create_task(gate.ask(body(model="flash")))
        await eventually(lambda: len(flash.seen()) == 2)
        process.send_signal(signal.SIGTERM)
        cut, refused = await stream, await whole
        assert (cut.complete, json.loads(cut.events()[-1])["error"]["code"]) == (True, "gateway_leaving")
        assert (refused.status, refused.json()["error"]["code"]) == (503, "gateway_leaving")
        assert b"[DONE]" not in cut.data
        until(lambda: all(one["state"] == "aborted" for one in flash.seen()))


async def test_a_second_sigterm_ends_at_once(flash: Sim, pro: Sim) -> None:
    with serving(flash, pro, DRAIN_WAIT="60") as (gate, process):
        flash.config(stall_after=3)
        (stream,) = await streams(gate, 1, flash)
        process.send_signal(signal.SIGTERM)
        until(lambda: ready(gate.port) == 503)
        process.send_signal(signal.SIGTERM)
        cut = await stream
        assert json.loads(cut.events()[-1])["error"]["code"] == "gateway_leaving"
        await asyncio.to_thread(process.wait, 60)  # the drain would have been 600 s


async def test_where_no_key_is_asked_for_only_names_of_this_machine_are_served(small: Port) -> None:
    for host in ("localhost", f"127.0.0.1:{small.port}", "[::1]"):
        assert (await small.get("/health", host=host)).status == 200
    for host in ("evil.example", "localhost.evil.example", "10.0.0.1"):
        assert (await small.ask(body(), host=host)).status == 421, "a page of that site asks"


def test_a_key_or_a_list_of_hosts_decides_otherwise() -> None:
    open_, closed = Keys(MemoryStore(), everyone=True), Keys(MemoryStore(), "k" * 24)
    assert addressed(Settings(), closed).hosts == ()
    assert addressed(Settings(hosts=("a.example",)), open_).hosts == ("a.example",)
    assert "[::1]" in addressed(Settings(host="::1"), open_).hosts


async def test_callers_who_only_hold_connections_leave_files_for_the_servers(small: Port) -> None:
    await asyncio.sleep(0.2)  # until the connection that asked whether it is ready has gone
    lines = [Line(*await asyncio.open_connection("127.0.0.1", small.port)) for _ in range(PLACES + 1)]
    first, *held, last = lines
    crowded = await last.answer()
    assert (crowded.status, crowded.headers["retry-after"]) == (503, "1")
    assert crowded.json()["error"]["code"] == "overloaded"
    first.writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert (await first.answer()).status == 200, "who is in stays in"
    shown = (await small.get("/metrics")).data
    assert b'gateway_protocol_refusals_total{status="503"} 1.0' in shown
    for line in held:
        await line.leave()


@pytest.mark.parametrize("most", [1000, 20])
def test_callers_who_come_at_once_are_let_in_within_a_few_turns_and_no_more_than_may(
    flash: Sim, pro: Sim, most: int
) -> None:
    async def main() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
        settings = Settings(connections=most)
        front = create_app(settings, policy_for(flash, pro), MemoryStore(), Keys(MemoryStore(), everyone=True))
        server, turns = Server(front, front), 0
        serving = asyncio.create_task(server.serve(bind(Settings(port=0), shared=False)))
        await eventually(lambda: server.started)
        opens, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        address = server.servers[0].sockets[0].getsockname()
        lines = [socket.create_connection(address) for _ in range(64)]
        inside = server.server_state.connections
        while len(inside) < min(most, 64):
            await asyncio.sleep(0)
            turns += 1
        assert turns < 64 / 2, "uvloop lets in one a turn by each listener"
        await asyncio.sleep(0.01)
        assert len(inside) == min(most, 64)
        for line in lines:
            line.close()
        server.leave()
        await serving
        assert opens >= 2 * most, "each may take another one, to a model server"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_a_peer_is_who_connected_whatever_it_says_of_others(
    flash: Sim, pro: Sim, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(port=free_port(), admin_key=secrets.token_hex(32))
    front = create_app(settings, policy_for(flash, pro), MemoryStore(), Keys(MemoryStore(), everyone=True))
    server = Server(front, front)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    assert (await Port(settings.port).get("/admin/keys", x_forwarded_for="6.6.6.6")).status == 401
    server.leave()
    await serving
    assert [message for message in caplog.messages if "right key" in message] == [
        "admin: a request without the right key from '127.0.0.1'"
    ]


def test_connections_are_no_more_than_memory_has_room_for() -> None:
    assert [most_lines(1 << 16, size << 30, LINE) for size in (1, 2, 64)] == [5965, 11930, 1 << 15]
    assert [most_lines(1 << 16, size << 30, TLS_LINE) for size in (1, 2, 64)] == [1193, 2386, 1 << 15]
    assert most_lines(1 << 16, 1 << 16, LINE) == 1


def test_a_process_may_open_the_files_that_it_wants_and_never_fewer() -> None:
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = min(soft + 1, most)
    assert (files(more), files(8)) == (more, more)


@pytest.mark.parametrize(("host", "pause"), [("127.0.0.1", 0.0), ("0.0.0.0", 5.0)])
def test_only_who_may_be_balanced_waits_before_it_closes(host: str, pause: float) -> None:
    assert Settings(host=host).pause == pause
    assert Settings(host=host, drain_wait=2.0).pause == 2.0


def test_sockets_for_several_processes_are_seen_to_be_tcp_and_share_with_their_like_only() -> None:
    (one,) = bind(Settings(port=0), shared=True)
    same = Settings(port=one.getsockname()[1])
    with one, bind(same, shared=True)[0]:
        one.listen()
        assert one.proto == socket.IPPROTO_TCP, "else asyncio leaves Nagle's delay on: 40 ms an answer"
        with pytest.raises(OSError, match="in use"):
            bind(same, shared=False)


def test_no_host_is_every_address_of_both_kinds() -> None:
    with ExitStack() as stack:
        found = [stack.enter_context(one) for one in bind(Settings(host="", port=free_port()), shared=False)]
        for one in found:
            one.listen()
        assert len({one.family for one in found}) == len(found) == 1 + socket.has_dualstack_ipv6()


def test_a_port_whose_connections_have_just_been_closed_is_free() -> None:
    (one,) = bind(Settings(port=0), shared=False)
    with one:
        one.listen()
        with socket.create_connection(one.getsockname()) as caller:
            one.accept()[0].close()
            assert caller.recv(1) == b"", "the kernel waits for what may still come of it"
        port = one.getsockname()[1]
    bind(Settings(port=port), shared=False)[0].close()


@asynccontextmanager
async def over_tls(flash: Sim, pro: Sim, folder: Path, **settings: Any) -> AsyncIterator[int]:
    """The port of a gateway with a certificate; it has left when the block has."""
    known = Settings(port=free_port(), tls_cert=folder / "tls.crt", tls_key=folder / "tls.key", **settings)
    front = create_app(known, policy_for(flash, pro), MemoryStore(), Keys(MemoryStore(), everyone=True))
    server = Server(front, across_origins(front, known), lambda: None)
    running = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    try:
        yield known.port
    finally:
        server.leave()
        await asyncio.wait_for(running, PATIENCE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """That of a certificate and its key."""
    renew(tmp_path, CERTIFICATE, KEY)
    return tmp_path


def renew(folder: Path, certificate: str, key: str) -> ssl.SSLContext:
    """Puts the pair there; returns what trusts it."""
    (folder / "tls.crt").write_text(pem("CERTIFICATE", certificate))
    (folder / "tls.key").write_text(pem("PRIVATE KEY", key))
    return ssl.create_default_context(cafile=str(folder / "tls.crt"))


def secured(port: int, trusting: ssl.SSLContext) -> ssl.SSLSocket:
    return trusting.wrap_socket(socket.create_connection(("localhost", port), PATIENCE), server_hostname="localhost")


def healthy(line: ssl.SSLSocket) -> bool:
    line.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    return line.recv(4096).startswith(b"HTTP/1.1 200 ")


async def test_with_a_certificate_the_listener_speaks_tls_only(flash: Sim, pro: Sim, folder: Path) -> None:
    trusting = renew(folder, CERTIFICATE, KEY)
    async with over_tls(flash, pro, folder, request_timeout=0.3) as port:
        reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert parsed(await reader.read()).json() == {"status": "ok"}
        heard, plain = await asyncio.open_connection("localhost", port)
        plain.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"HTTP" not in await heard.read(), "not reached"
        unheard, silent = await asyncio.open_connection("localhost", port)
        assert await asyncio.wait_for(unheard.read(), PATIENCE) == b"", "a handshake has as long as a request"
        for line in (writer, plain, silent):
            line.close()
            with suppress(ConnectionError):
                await line.wait_closed()
        kept = await asyncio.to_thread(secured, port, trusting)  # as a pool of connections does
        assert await asyncio.to_thread(healthy, kept)
    kept.close()  # it said no goodbye, for which TLS would have waited half a minute


@pytest.mark.parametrize("loops", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_the_end_does_not_wait_for_who_keeps_a_connection_that_was_closed(
    flash: Sim, pro: Sim, folder: Path, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    trusting = renew(folder, CERTIFICATE, KEY)

    async def main() -> None:
        async with over_tls(flash, pro, folder, drain=60.0) as port:
            kept = await asyncio.to_thread(secured, port, trusting)
            kept.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert (await asyncio.to_thread(kept.recv, 4096)).startswith(b"HTTP/1.1 200 ")
        kept.close()

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main())


def let_in(port: int, trusting: ssl.SSLContext) -> bool:
    try:
        with secured(port, trusting) as line:
            return healthy(line)
    except OSError:
        return False


@pytest.mark.parametrize("loops", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_handshake_that_does_not_end_is_one_of_the_connections(
    flash: Sim, pro: Sim, folder: Path, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    trusting = renew(folder, CERTIFICATE, KEY)

    async def main() -> None:
        async with over_tls(flash, pro, folder, connections=PLACES, request_timeout=60) as port:
            first = await asyncio.to_thread(secured, port, trusting)
            lines = [await asyncio.open_connection("localhost", port) for _ in range(PLACES)]
            with suppress(ConnectionError):
                assert await asyncio.wait_for(lines[-1][0].read(), PATIENCE) == b"", "no place is left"
            assert await asyncio.to_thread(healthy, first), "who is in stays in"
            gc.collect()
            assert sum(type(one) is FastConnection for one in gc.get_objects()) == 1, "the others cost little"
            assert not await asyncio.to_thread(let_in, port, trusting)
            lines[0][1].close()
            await asyncio.to_thread(until, lambda: let_in(port, trusting))
        with suppress(ConnectionError):
            assert await asyncio.wait_for(lines[1][0].read(), PATIENCE) == b"", "the end does not wait for it"
        first.close()
        for _, writer in lines:
            writer.close()

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main())


async def test_a_renewed_certificate_is_shown_to_who_comes_and_who_is_in_stays(
    flash: Sim, pro: Sim, folder: Path
) -> None:
    before = renew(folder, CERTIFICATE, KEY)
    async with over_tls(flash, pro, folder) as port:
        kept = await asyncio.to_thread(secured, port, before)
        after = renew(folder, NEXT_CERTIFICATE, NEXT_KEY)
        await asyncio.to_thread(until, lambda: let_in(port, after))
        assert not await asyncio.to_thread(let_in, port, before)
        assert await asyncio.to_thread(healthy, kept)
    kept.close()


def test_where_no_file_is_left_callers_wait_and_nothing_spins(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[socket.socket] = []

    async def main() -> None:
        (listening,) = bind(Settings(port=0), shared=False)
        listener = Listener(listening, 8, taken.append)
        caller = socket.create_connection(listening.getsockname())
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (caller.fileno() + 1, most[1]))
        spare: list[int] = []
        with suppress(OSError):
            while True:
                spare.append(os.dup(caller.fileno()))
        for _ in range(100):
            await asyncio.sleep(0)
        assert (taken, len(caplog.messages)) == ([], 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
        for one in spare:
            os.close(one)
        await eventually(lambda: bool(taken))
        listener.close()
        for line in (caller, *taken):
            line.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_metrics_tell_when_the_certificate_ends_and_ready_when_it_has(flash: Sim, pro: Sim, folder: Path) -> None:
    files, name = (folder / "tls.crt", folder / "tls.key"), "gateway_certificate_{}_timestamp_seconds".format
    files[0].write_text(ending(1e9, days=8))
    async with gateway(policy_for(flash, pro), tls_cert=files[0], tls_key=files[1]) as gate:
        Server(gate.front, gate.front)
        assert (await gate.get("/ready")).json()["certificate"] == "expired"
        told = (await gate.get("/metrics")).data.decode()
        assert f"\n{name('expiration')} 1000000000.0\n" in told
        assert f"\n{name('due')} 999827200.0\n" in told
    async with gateway(policy_for(flash, pro)) as gate:
        assert "gateway_certificate" not in (await gate.get("/metrics")).data.decode()


async def test_ready_tells_of_a_certificate_that_cannot_be_renewed(flash: Sim, pro: Sim, folder: Path) -> None:
    files = folder / "tls.crt", folder / "tls.key"
    async with gateway(policy_for(flash, pro), tls_cert=files[0], tls_key=files[1]) as gate:
        Server(gate.front, gate.front)
        shown = gate.front.certificate
        assert shown
        assert (await gate.get("/ready")).json()["certificate"] == "ok"
        files[1].write_text("half a k")
        for _ in range(2):
            shown.look()
        assert (await gate.get("/ready")).json()["certificate"] == "broken"
        assert 'gateway_file_broken{file="certificate"} 1.0' in (await gate.get("/metrics")).data.decode()
