"""Who sends many bodies at once holds no more of them than it may have requests."""

import asyncio
import gc
import json

import pytest

from gateway.errors import BadRequest, RateLimited
from gateway.uploads import SWEPT, Uploads
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, body, gateway
from tests.tiers import policy_for

pytestmark = pytest.mark.usefixtures("each_front")
LIMIT = {"plans": {"usual": {"concurrency": 2, "may": ["pro"]}}}


@pytest.mark.parametrize("path", [CHAT, "/v1/route"])
def test_a_caller_has_as_many_bodies_under_way_as_it_may_have_requests(flash: Sim, pro: Sim, path: str) -> None:
    whole = json.dumps(body()).encode()

    async def main() -> None:
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

    asyncio.run(main())


def test_bodies_of_requests_that_failed_do_not_add_up(flash: Sim, pro: Sim) -> None:
    policy = policy_for(flash, pro, tiers={name: {"can": {"context": 4096}} for name in ("flash", "pro")})
    large = json.dumps(body("word " * (SWEPT // 40))).encode()

    async def main() -> None:
        async with gateway(policy) as gate:
            for _ in range(10):
                assert (await gate.ask(large)).status == 400
            assert sum(isinstance(one, BadRequest) for one in gc.get_objects()) < 8

    gc.disable()  # as if few objects came with the bytes
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def held() -> int:
    """Bytes in large pieces that the objects hold which the collector knows."""
    pieces = (piece for one in gc.get_objects() for piece in gc.get_referents(one) if type(piece) is bytes)
    return sum({id(piece): len(piece) for piece in pieces if len(piece) > 20_000}.values())


def test_an_exchange_holds_its_body_once(flash: Sim, pro: Sim) -> None:
    flash.config(drip=0.05, drip_bytes=50, only="answer")
    large = json.dumps(body("word " * 200_000, model=flash.model, stream=True)).encode()

    async def main() -> None:
        async with gateway(policy_for(flash, pro)) as gate:
            before = held()
            line = await gate.open(large)
            assert b"200 OK" in await line.some()
            assert len(large) <= held() - before < 1.5 * len(large)
            await line.leave()

    asyncio.run(main())


def test_a_body_that_ended_counts_no_more_and_callers_do_not_count_for_each_other() -> None:
    uploads = Uploads()
    with uploads.one("ann", 1), uploads.one("bob", 1), pytest.raises(RateLimited), uploads.one("ann", 1):
        pass
    with pytest.raises(TimeoutError), uploads.one("ann", 1):
        raise TimeoutError
    with uploads.one("ann", 1):
        pass
    assert uploads._open == {}
