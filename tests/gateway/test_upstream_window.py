"""Does a tier find its places by itself?   Against servers in arithmetic, and once against a real one."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.types import Route
from gateway.upstream.window import ENOUGH, FIRST, Window
from loadtest.servers import Sim
from tests.gateway.serving import asked, body, eventually, upstream
from tests.tiers import policy_for

MOST = 256
ANSWER = 1.0  # seconds that a server works on a request
PREFILL = 0.05  # of them until its first byte
Look = Callable[["Servers", bool], None]


@dataclass
class Servers:
    """Work on `places` requests at once, the others wait: as many as the window has places, and `others` of strangers.
    Each look is two seconds later."""

    places: int
    window: Window
    others: int = 0
    longer: float = 1.0  # prompts, by this
    now: float = 100.0

    def figures(self) -> tuple[int, int, float]:
        """Requests worked on and waiting, seconds to the first byte."""
        asked = self.window.size + self.others
        running = min(asked, self.places)
        return running, asked - running, PREFILL * self.longer + ANSWER * (asked - running) / self.places

    def step(self, missed: bool) -> int:
        taken = self.window.size
        self.now += 2.0
        if missed:
            self.window.missed(taken, MOST, self.now)
        return taken


def by_queue(servers: Servers, missed: bool = True) -> None:
    taken, (running, waiting, _) = servers.step(missed), servers.figures()
    servers.window.told(running, waiting, taken, servers.now)


def by_first_bytes(servers: Servers, missed: bool = True) -> None:
    taken, (_, _, seconds) = servers.step(missed), servers.figures()
    servers.now += seconds
    for _ in range(ENOUGH):
        servers.window.heard(seconds, taken, servers.now)


each_look = pytest.mark.parametrize("look", [by_queue, by_first_bytes])


def sizes(servers: Servers, look: Look, looks: int) -> Iterator[int]:
    for _ in range(looks):
        look(servers, True)
        yield servers.window.size


@given(st.integers(1, 200))
def test_the_queue_of_servers_brings_a_window_to_what_they_work_on_at_once(places: int) -> None:
    *_, last = found = list(sizes(Servers(places, Window()), by_queue, 40))
    assert all(places * 0.9 <= size <= places * 1.2 + 2 for size in found[20:])
    assert last >= 1


@given(st.integers(20, 200))
def test_times_to_the_first_byte_bring_it_about_there_when_they_were_seen_without_a_queue(places: int) -> None:
    servers = Servers(places, Window())
    servers.window.size = 10
    found = list(sizes(servers, by_first_bytes, 40))[20:]
    assert sum(min(size, places) for size in found) >= 0.9 * places * len(found), "hardly a place stays idle"
    assert max(found) <= 1.6 * places


@each_look
def test_servers_without_a_queue_get_all_that_there_may_be(look: Look) -> None:
    assert list(sizes(Servers(10_000, Window()), look, 3))[-1] == MOST


@each_look
def test_places_that_nobody_misses_change_nothing(look: Look) -> None:
    for places in (4, 10_000):
        servers = Servers(places, Window())
        for _ in range(10):
            look(servers, False)
        assert servers.window.size == FIRST


@each_look
def test_servers_that_others_fill_take_no_places_from_us_for_long(look: Look) -> None:
    servers = Servers(100, Window())
    *_, before = sizes(servers, look, 5)
    servers.others = 100_000
    assert max(sizes(servers, look, 4)) >= before


def test_longer_prompts_take_no_places_for_long() -> None:
    servers = Servers(10_000, Window())
    assert list(sizes(servers, by_first_bytes, 3))[-1] == MOST
    servers.longer = 20.0
    assert list(sizes(servers, by_first_bytes, 4))[-1] == MOST
    servers.longer = 1.0
    assert min(sizes(servers, by_first_bytes, 10)) == MOST


def test_first_bytes_of_what_was_sent_before_the_servers_were_full_say_nothing_of_that_many_places() -> None:
    servers = Servers(16, Window())
    window = servers.window
    for at in range(31):  # calm
        window.heard(PREFILL, 4, 100.0 + at / 10)
    window.missed(FIRST, MOST, 103.3)
    for before in range(FIRST):  # all were sent just before; each waits for those before it
        seconds = PREFILL + max(0, before - 15) / 16 * ANSWER
        window.heard(seconds, FIRST, 103.2 + seconds)
    assert window.size == FIRST
    servers.now = 106.5
    assert max(list(sizes(servers, by_first_bytes, 30))[10:]) <= 1.6 * servers.places


def test_a_stand_still_is_forgotten_though_the_load_goes_on() -> None:
    servers = Servers(16, Window())
    servers.window.size = 10
    *_, before = sizes(servers, by_first_bytes, 30)
    servers.longer = 1000.0
    assert max(sizes(servers, by_first_bytes, 10)) > 2 * before
    servers.longer = 1.0
    *_, after = sizes(servers, by_first_bytes, 40)
    assert after <= 2 * 16


def test_where_nothing_is_heard_places_are_added() -> None:
    window = Window()
    for now in range(100, 120):
        window.missed(window.size, MOST, now)
    assert window.size == MOST


def test_who_is_over_a_smaller_window_leaves_before_it_is_judged_again() -> None:
    window = Window()
    window.missed(64, MOST, 100.0)
    window.told(16, 48, 64, 100.0)
    assert window.size == 17
    window.missed(60, MOST, 101.0)
    window.told(16, 44, 60, 101.0)
    assert window.size == 17
    window.told(16, 1, 17, 102.0)
    assert window.size == 18


SEEN = st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.floats(0.001, 50), st.booleans())


@given(st.integers(1, 300), st.lists(SEEN, max_size=60))
def test_a_window_is_never_below_one_and_never_above_what_may_be(
    most: int, seen: list[tuple[int, int, int, float, bool]]
) -> None:
    window, now = Window(), 100.0
    for running, waiting, taken, seconds, tells in seen:
        now += seconds
        window.missed(taken, most, now)
        if tells:
            window.told(running, waiting, taken, now)
        else:
            window.heard(seconds, taken, now)
        assert 1 <= window.size <= most


METRICS = b"vllm:num_requests_running 2\nvllm:num_requests_waiting 6\n"


async def test_a_tier_whose_server_tells_of_a_queue_opens_fewer_calls_and_shows_how_many(pro: Sim) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /metrics "):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(METRICS) + METRICS)
            await reader.read()
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    busy = Sim(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "flash-model")
    policy = policy_for(busy, pro, tiers={"flash": {"limits": {"max_inflight": 8, "adaptive": True}}})
    async with server, upstream() as door:
        route = Route(("flash",), "r", "named")
        calls = [asyncio.create_task(door.send(asked(body()), route, policy)) for _ in range(9)]
        await eventually(lambda: door.states(policy)["flash"][:2] == (8, 1))
        assert door.states(policy)["flash"].places == 8
        door.waiting(policy)
        await eventually(lambda: door.states(policy)["flash"].places == 2)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


@pytest.mark.parametrize(("engine", "watched"), [("vllm", ("flash",)), ("openai", ())])
def test_only_vllms_servers_are_asked_for_their_queue(flash: Sim, pro: Sim, engine: str, watched: tuple[str]) -> None:
    tier = {"engine": engine, "limits": {"adaptive": True}}
    assert policy_for(flash, pro, tiers={"flash": tier}, triage={"strategy": "json"}).watched_queues == watched
