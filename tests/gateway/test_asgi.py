import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.api import Exchange
from gateway.app import create_app
from gateway.asgi import ASGI, AsgiWire, Front, Lazy
from gateway.errors import Overloaded
from gateway.keys import Keys
from gateway.settings import Settings
from gateway.store import MemoryStore
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, body, eventually, gateway
from tests.tiers import JSON, policy_for


class Server:
    """An ASGI server's side of one exchange; `messages` are what it has for the app."""

    def __init__(self, front: Front, headers: list[tuple[bytes, bytes]], *messages: JSON) -> None:
        self.messages: asyncio.Queue[JSON] = asyncio.Queue()
        for message in messages:
            self.messages.put_nowait(message)
        self.sent: list[JSON] = []
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
        self.served = asyncio.ensure_future(front(scope, self.messages.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(dict(message))

    def status(self) -> int:
        return int(self.sent[0]["status"])

    def json(self) -> JSON:
        found: JSON = json.loads(b"".join(message.get("body", b"") for message in self.sent[1:]))
        return found


def part(data: bytes, more: bool = False) -> JSON:
    return {"type": "http.request", "body": data, "more_body": more}


GONE = {"type": "http.disconnect"}
LAST = {"type": "http.request"}  # what it leaves out is an empty body, and no more of it


@asynccontextmanager
async def running(flash: Sim, pro: Sim, **settings: Any) -> AsyncIterator[Front]:
    known = Settings(log_exchanges=False, **settings)
    store = MemoryStore()
    front = create_app(known, policy_for(flash, pro), store, Keys(store, everyone=True))
    async with front.running():
        yield front


async def test_a_body_in_many_pieces_is_one_body(flash: Sim, pro: Sim) -> None:
    async with running(flash, pro) as front:
        data = json.dumps(body(model="flash")).encode()
        server = Server(front, [], *(part(data[at : at + 7], more=True) for at in range(0, len(data), 7)), LAST)
        await server.served
        assert server.status() == 200
        assert server.json()["choices"]


async def test_a_body_in_small_pieces_is_not_kept_in_them() -> None:
    left = 4000

    async def piece() -> JSON:
        nonlocal left
        left -= 1
        return part(bytes(2), more=left > 0)

    async def said(_: Any) -> None: ...

    wire = AsgiWire({"method": "POST", "path": CHAT, "headers": []}, piece, said)
    tracemalloc.start()
    assert await wire.read(8000) == bytes(8000)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 8 * 8000


async def test_pieces_that_come_to_more_than_the_limit_are_413_before_the_last(flash: Sim, pro: Sim) -> None:
    async with running(flash, pro, max_body=1024) as front:
        server = Server(front, [], part(b"x" * 800, more=True), part(b"x" * 800, more=True))
        await server.served
        assert server.status() == 413


async def test_a_wire_knows_when_it_wrote_last() -> None:
    sent = asyncio.Queue[Any]()
    wire, before = AsgiWire({"method": "POST", "path": CHAT, "headers": []}, sent.get, sent.put), time.monotonic()
    await wire.write(b"x", more=True)
    assert wire.moved >= before


async def test_who_leaves_before_the_body_is_complete_is_told_nothing(flash: Sim, pro: Sim) -> None:
    async with running(flash, pro) as front:
        server = Server(front, [], part(b"{", more=True), GONE)
        await server.served
        assert server.sent == []


async def test_who_leaves_while_a_model_works_frees_it(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=5.0)
    async with running(flash, pro) as front:
        server = Server(front, [], part(json.dumps(body(model="flash")).encode()))
        await eventually(lambda: front.doors.upstream.load().get("flash", 0) == 1)
        server.messages.put_nowait(GONE)
        await server.served
        assert not any(front.doors.upstream.load().values())
        assert server.sent == []


@pytest.mark.parametrize("http", ["fast", "asgi"])
@pytest.mark.usefixtures("uncollected")
async def test_an_exchange_that_has_ended_is_gone_without_the_collectors_help(flash: Sim, pro: Sim, http: str) -> None:
    async with gateway(policy_for(flash, pro), http=http) as gate:
        assert (await gate.ask(body(model="flash"))).status == 200
        await eventually(lambda: not any(type(one) is Exchange for one in gc.get_objects()))


async def test_what_is_made_late_is_made_once_for_all_who_wait_and_again_after_a_failure() -> None:
    makings, asked = 0, []

    async def app(scope: Any, *_: Any) -> None:
        asked.append(scope["path"])

    def make() -> ASGI:
        nonlocal makings
        makings += 1
        if makings == 1:
            raise OSError("no file")
        return app

    late, deaf = Lazy(make), asyncio.Queue[Any]()
    for expected in ([OSError, OSError], [type(None), type(None)]):
        scopes = [{"path": path} for path in "ab"]
        asking = [late(scope, deaf.get, deaf.put) for scope in scopes]
        assert [type(found) for found in await asyncio.gather(*asking, return_exceptions=True)] == expected
    assert (makings, asked) == (2, ["a", "b"])


async def test_what_an_update_under_a_running_gateway_keeps_from_loading_is_refused_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def make() -> ASGI:
        from gateway.keys import of_another_version  # type: ignore[attr-defined]  # noqa: PLC0415

        made: ASGI = of_another_version
        return made

    deaf = asyncio.Queue[Any]()
    with pytest.raises(Overloaded, match="not those that it was started from"):
        await Lazy(make)({"path": "/v1/route"}, deaf.get, deaf.put)
    (told,) = [one.getMessage() for one in caplog.records]
    assert told.startswith("a part of the gateway cannot be loaded (cannot import name 'of_another_version'")
