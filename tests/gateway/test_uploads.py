"""Who sends many bodies at once holds no more of them than it may have requests."""

import asyncio
import gc
import json

import pytest

from gateway.errors import BadRequest, Overloaded, RateLimited, TooLarge
from gateway.uploads import SMALL, Uploads, announced
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, PATIENCE, Line, body, eventually, gateway
from tests.tiers import JSON, policy_for

pytestmark = pytest.mark.usefixtures("each_front")
LIMIT = {"plans": {"usual": {"concurrency": 2, "may": ["pro"]}}}


@pytest.mark.parametrize("path", [CHAT, "/v1/route"])
async def test_a_caller_has_as_many_bodies_under_way_as_it_may_have_requests(flash: Sim, pro: Sim, path: str) -> None:
    whole = json.dumps(body()).encode()
    async with gateway(policy_for(flash, pro, callers=LIMIT)) as gate:
        assert (await gate.ask(whole, path)).status == 200  # what serves the path is there from now on
        half = [await gate.open(whole[:9], path, content_length=str(len(whole))) for _ in range(2)]
        await asyncio.sleep(0.1)
        other = await gate.ask(whole[:9], path, content_length=str(len(whole)))
        assert (other.status, other.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
        assert other.headers["retry-after"] == "1"
        for line in half:
            line.writer.write(whole[9:])
            assert (await line.answer()).status == 200
        assert (await gate.ask(whole, path)).status == 200


@pytest.mark.usefixtures("uncollected")
async def test_bodies_of_requests_that_failed_do_not_add_up(flash: Sim, pro: Sim) -> None:
    policy = policy_for(flash, pro, tiers={name: {"can": {"context": 4096}} for name in ("flash", "pro")})
    large = json.dumps(body("word " * 1_600_000)).encode()

    async with gateway(policy) as gate:
        for _ in range(3):
            assert (await gate.ask(large)).status == 400
        assert not any(isinstance(one, BadRequest) for one in gc.get_objects())


@pytest.mark.parametrize(("fault", "stream"), [({"status": 500}, True), ({"stall_first": 9.0}, False)])
@pytest.mark.usefixtures("uncollected")
async def test_a_request_whose_servers_fail_or_whose_caller_leaves_leaves_nothing_for_the_collector(
    flash: Sim, pro: Sim, fault: JSON, stream: bool
) -> None:
    policy = policy_for(flash, pro, failover=None, triage={"cache": "1m"})

    async with gateway(policy) as gate:
        for tier in (flash, pro):
            tier.config(only="all" if "stall_first" in fault else "answer", **fault)
        before = held()
        line = await gate.open(body("word " * 10_000, stream=stream))
        await eventually(lambda: held() > before)
        if "stall_first" in fault:
            await line.leave(reset=True)
        else:
            await line.answer()
        await eventually(lambda: held() == before)


def held() -> int:
    """Bytes in large pieces that the objects hold which the collector knows."""
    pieces = (piece for one in gc.get_objects() for piece in gc.get_referents(one) if type(piece) is bytes)
    return sum({id(piece): len(piece) for piece in pieces if len(piece) > 20_000}.values())


async def test_an_exchange_holds_its_body_once(flash: Sim, pro: Sim) -> None:
    flash.config(drip=0.05, drip_bytes=50, only="answer")
    large = json.dumps(body("word " * 200_000, model=flash.model, stream=True)).encode()
    async with gateway(policy_for(flash, pro)) as gate:
        before = held()
        line = await gate.open(large)
        assert b"200 OK" in await line.some()
        assert len(large) <= held() - before < 1.5 * len(large)
        await line.leave()


def test_a_body_that_ended_counts_no_more_and_callers_do_not_count_for_each_other() -> None:
    uploads = Uploads(1024)
    with uploads.one("ann", 1), uploads.one("bob", 1), pytest.raises(RateLimited), uploads.one("ann", 1):
        pass
    with pytest.raises(TimeoutError), uploads.one("ann", 1):
        raise TimeoutError
    with uploads.one("ann", 1):
        pass
    assert uploads._open == {}


def test_a_length_that_is_no_number_is_as_long_as_one_may_be() -> None:
    assert [announced({"content-length": told}, 100) for told in ("7", "100", "²", "-1", "")] == [7, 100, 100, 100, 100]
    assert announced({}, 100) == 100
    for told in ("101", "9" * 5000):
        with pytest.raises(TooLarge):
            announced({"content-length": told}, 100)


ROOM = 1 << 20
LARGE = ROOM // 2


async def refused(uploads: Uploads, caller: str, size: int) -> bool:
    """Whether there is no room in time."""
    try:
        held = await uploads.take(caller, size)
    except Overloaded as refusal:
        return refusal.retry_after == 1.0
    uploads.shrink(caller, 0, held)
    return False


async def test_a_caller_s_bodies_take_no_more_than_they_leave_to_others() -> None:
    uploads = Uploads(ROOM, patience=0.01)
    assert await uploads.take("ann", LARGE) == LARGE
    assert await refused(uploads, "ann", SMALL + 1)
    assert not await refused(uploads, "bob", LARGE // 2)
    assert await refused(uploads, "bob", LARGE // 2 + 1)
    assert not await refused(uploads, "ann", SMALL), "what a connection reads before it asks"
    assert uploads.shrink("ann", LARGE // 2, LARGE) == LARGE // 2
    assert not await refused(uploads, "ann", LARGE // 4)
    assert uploads.shrink("ann", LARGE, LARGE // 2) == LARGE // 2, "nothing is taken without asking"
    assert uploads.shrink("ann", 0, LARGE // 2) == 0
    held = await uploads.take("ann", 9 * ROOM)
    assert held == 9 * ROOM, "the only one is served, however long"
    uploads.shrink("ann", 0, held)
    assert (uploads._held, uploads._waiting) == ({}, {})


async def test_smaller_bodies_do_not_wait_behind_larger_ones() -> None:
    uploads, came = Uploads(ROOM), list[int]()
    held = await uploads.take("ann", LARGE)

    async def one(size: int) -> None:
        taken = await uploads.take("ann", size)
        came.append(size)
        uploads.shrink("ann", 0, taken)

    sizes = [LARGE, LARGE // 2, LARGE // 4]
    tasks = [asyncio.create_task(one(size)) for size in sizes]
    await asyncio.sleep(0)
    gone = asyncio.create_task(one(LARGE // 3))
    await asyncio.sleep(0)
    gone.cancel()  # whose caller left
    await asyncio.sleep(0)
    uploads.shrink("ann", 0, held)
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    assert came == sizes[::-1]
    assert (uploads._held, uploads._waiting) == ({}, {})


@pytest.mark.parametrize(("path", "chunked"), [(CHAT, False), ("/v1/route", True)])
async def test_bodies_for_which_there_is_no_room_are_not_read_until_there_is(
    flash: Sim, pro: Sim, path: str, chunked: bool
) -> None:
    large = json.dumps(body("word " * 20_000, model=flash.model, max_tokens=1)).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n".encode()
    framed = b"content-length: %d\r\n\r\n%b" % (len(large), large)
    if chunked:
        framed = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)
    async with gateway(policy_for(flash, pro), bodies=2 * len(large), max_body=len(large)) as gate:
        first = await gate.open(large[:90_000], content_length=str(len(large)))
        uploads = gate.front.doors.uploads
        await eventually(lambda: uploads._held.total() == len(large))
        second = Line(*await asyncio.open_connection("127.0.0.1", gate.port))
        second.writer.write(head + framed[:99])
        await eventually(lambda: len(uploads._waiting) == 1)
        assert (await gate.ask(body())).status == 200, "a small one does not wait"
        assert len(uploads._waiting) == 1
        second.writer.write(framed[99:])
        first.writer.write(large[90_000:])
        assert (await first.answer()).status == 200
        assert (await second.answer()).status == 200
        await eventually(lambda: not uploads._held)


async def test_a_body_of_unknown_length_gives_back_what_it_does_not_need(flash: Sim, pro: Sim) -> None:
    flash.config(drip=0.05, drip_bytes=50, only="answer")
    large = json.dumps(body("word " * 2_000, model=flash.model, stream=True)).encode()
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % CHAT.encode()
    async with gateway(policy_for(flash, pro)) as gate:
        line = Line(*await asyncio.open_connection("127.0.0.1", gate.port))
        held = gate.front.doors.uploads._held
        line.writer.write(head + b"%x\r\n%b" % (len(large), large[:9]))
        await eventually(lambda: held.total() == gate.front.settings.max_body)
        line.writer.write(large[9:] + b"\r\n0\r\n\r\n")
        await eventually(lambda: held.total() == len(large))
        await line.leave()
        await eventually(lambda: not held)
