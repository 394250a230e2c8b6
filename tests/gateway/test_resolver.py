"""Names are looked up in threads; here by a book that says nothing of some of them until it is closed."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Event
from typing import Any

import pytest

from gateway.http1 import Client, Limits, Origin
from gateway.resolver import STEP, Resolver, _first
from gateway.store.opening import Opening
from tests.gateway.loopback import OK, Peer, Run, broken, run, saying, serving, silence, told
from tests.gateway.serving import PATIENCE, eventually

__all__ = ["run"]

HERE = {
    "here.test": ["127.0.0.1"],
    "moved.test": ["127.0.0.2", "127.0.0.1"],
    "none.test": ["127.0.0.2", "127.0.0.3"],
}


class Book(Resolver):
    """`mute`: nobody answers for these names; `asked`: the names that were looked up; `told`: those of which it said
    something."""

    def __init__(self, *mute: str) -> None:
        super().__init__(self._find)
        self.mute, self.asked, self.told, self.closed = mute, list[str](), list[str](), Event()

    def _find(self, host: str) -> list[str]:
        self.asked.append(host)
        if host in self.mute:
            self.closed.wait(PATIENCE)
        self.told.append(host)
        if host not in HERE:
            raise OSError(f"nobody knows {host}")
        return HERE[host]


@contextmanager
def book(*mute: str) -> Iterator[Book]:
    found = Book(*mute)
    try:
        yield found
    finally:
        found.closed.set()


def at(host: str, origin: Origin) -> Origin:
    return origin._replace(host=host)


async def test_names_that_nobody_answers_for_hold_up_no_other(run: Run) -> None:
    mute = [f"{number}.test" for number in range(40)]
    with book(*mute) as names:
        async with serving(saying(OK), client=Client(names=names)) as (client, origin, _):
            waiting = [asyncio.create_task(broken(client, at(name, origin))) for name in mute]
            await eventually(lambda: len(names.asked) == len(mute))
            assert await told(client, at("here.test", origin)) == (200, b"ok")
            names.closed.set()
            assert {str(await one).partition(": ")[2] for one in waiting} == {f"nobody knows {name}" for name in mute}


async def test_a_name_is_looked_up_once_for_all_who_ask_and_anew_for_who_asks_later(run: Run) -> None:
    with book("here.test") as names:
        first, *others = [asyncio.create_task(names.addresses("here.test")) for _ in range(5)]
        await eventually(lambda: bool(names.asked))
        first.cancel()
        names.closed.set()
        assert await asyncio.gather(*others) == [HERE["here.test"]] * 4
        assert first.cancelled()
        assert names.asked == ["here.test"]
        await names.addresses("here.test")
        assert names.asked == ["here.test"] * 2


@pytest.mark.parametrize("host", ["b..test", "a" * 70 + ".test", "a\0b"])
async def test_what_is_no_name_is_nobodys(host: str) -> None:
    with pytest.raises(OSError, match=r"\w"):
        await asyncio.wait_for(Resolver().addresses(host), PATIENCE)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_not_looked_up(host: str) -> None:
    with book() as names:
        assert await names.addresses(host) == [host]
        assert names.asked == []


async def test_of_several_addresses_the_first_that_takes_the_connection_is_used(run: Run) -> None:
    with book() as names:
        async with serving(saying(OK), client=Client(names=names)) as (client, origin, _):
            assert await told(client, at("moved.test", origin)) == (200, b"ok")


class Slow(Resolver):
    """Hands a connection over when its server has closed it."""

    async def connect(self, *given: Any, **named: Any) -> Any:
        made: tuple[Any, Any] = await super().connect(*given, **named)
        await eventually(lambda: made[1]._lost)
        return made


async def test_a_call_on_a_connection_that_closed_before_it_was_handed_over_has_failed(run: Run) -> None:
    async def hangs_up(_: Peer) -> None: ...

    async with serving(hangs_up, client=Client(names=Slow())) as (client, origin, _):
        assert (await broken(client, origin)).kind == "closed"


@contextmanager
def hole(port: int) -> Iterator[None]:
    """The first address of moved.test takes no connection at this port, nor refuses one: its queue is full."""
    with ExitStack() as held:
        listening, *others = [held.enter_context(socket.socket()) for _ in range(4)]
        listening.bind(("127.0.0.2", port))
        listening.listen(0)
        for other in others:
            other.setblocking(False)
            other.connect_ex(("127.0.0.2", port))
        yield


async def test_an_address_that_says_nothing_takes_the_time_of_no_other(run: Run) -> None:
    with book() as names:
        async with serving(saying(OK), client=Client(names=names)) as (client, origin, server):
            with hole(origin.port):
                assert await told(client, at("moved.test", origin), Limits(4 * STEP, 5, 5, PATIENCE)) == (200, b"ok")
                assert server.connections == 1


async def test_where_time_is_short_every_address_gets_a_part_of_it() -> None:
    with book() as names:
        async with serving(saying(OK)) as (_, origin, _):
            with hole(origin.port):
                opened = await asyncio.wait_for(
                    Opening((), STEP / 5, "moved.test", origin.port, names=names).open(), STEP
                )
                opened.abort()


async def test_a_connection_that_comes_second_is_closed(run: Run) -> None:
    with book() as names:
        async with serving(silence) as (_, origin, server):
            two = [partial(names.connect, asyncio.Protocol, "127.0.0.1", origin.port, None, 1.0)] * 2
            kept, _ = await _first(two, 0.0)
            await eventually(lambda: server.connections == 2 and server.open == 1)
            kept.abort()


async def test_who_gives_up_in_the_moment_of_connecting_leaves_no_connection_behind(run: Run) -> None:
    with book() as names:
        async with serving(silence) as (_, origin, server):

            async def late() -> tuple[asyncio.Transport, asyncio.Protocol]:
                found = await names.connect(asyncio.Protocol, "127.0.0.1", origin.port, None, 1.0)
                waiting.cancel()
                return found

            waiting = asyncio.create_task(_first([late], 1.0))
            await eventually(lambda: waiting.cancelled() and server.connections == 1 and not server.open)


async def test_of_addresses_that_all_refuse_the_reason_is_told(run: Run) -> None:
    with book() as names:
        async with serving(saying(OK), client=Client(names=names)) as (client, origin, _):
            error = await broken(client, at("none.test", origin))
            assert (error.kind, "onnect" in str(error).partition(": ")[2]) == ("connect", True)


async def test_the_store_is_found_by_its_name() -> None:
    with book() as names:
        async with serving(saying(OK)) as (_, origin, _):
            opened = await Opening((), 1.0, "here.test", origin.port, names=names).open()
            opened.abort()
            assert names.asked == ["here.test"]


def test_the_end_of_the_process_waits_for_no_name() -> None:
    async def leave(names: Book) -> None:
        asking: asyncio.Task[Any] = asyncio.create_task(names.addresses("mute.test"))
        await eventually(lambda: bool(names.asked))
        asking.cancel()

    with book("mute.test") as names:
        asyncio.run(leave(names))
        assert (names.asked, names.told) == (["mute.test"], [])
