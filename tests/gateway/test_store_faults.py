"""Servers that answer, but refuse their work: no caller hears of it, the state does, the log says it once."""

import asyncio
import logging
import struct
import time
from collections.abc import Awaitable, Callable

import pytest
from valkey import Valkey

from gateway.app import open_to_everyone
from gateway.key_records import as_revoked
from gateway.keys import Keys
from gateway.settings import Settings
from gateway.store import Bound, KeyRecord, Limits, Line, Money, Portion, Store, open_store
from gateway.store.refusals import AskError, MovedError, NoScriptError, ResponseError, TryAgainError, refusal
from gateway.store.repair import TYPES, _kind
from gateway.store.scripts import NAMES
from tests.gateway.serving import eventually
from tests.stores import on, recovered

PLENTY = Limits(1_000_000, 100_000, 60.0)
FIVE = Limits(5, 100, 60.0)


@pytest.fixture(params=["valkey", "valkey_cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record.getMessage() for record in caplog.records if record.name.startswith("gateway.store")]
    return [line.partition(":")[0] for line in records]


async def spoil(store: Store, *command: bytes) -> None:
    await store._door.put(*command)  # type: ignore[attr-defined]


async def admits_five(store: Store) -> None:
    answers = [await store.admit("ann", FIVE, b"entry") for _ in range(6)]
    assert [answer.allowed for answer in answers] == [True] * 5 + [False]
    assert all(not (answer.lease or "").startswith("m") for answer in answers)


async def recalls(store: Store) -> None:
    assert await store.recall("ann", b"entry") is None
    await store.remember("ann", b"entry", b"value", 60.0)
    assert await store.recall("ann", b"entry") == b"value"


async def keeps_keys(store: Store) -> None:
    assert await store.key("a") is None
    record = KeyRecord("a" * 12, "hash", "ann", None, 1.0)
    assert await store.put_key(record)
    assert await store.list_keys() == [record]


async def shares_the_secret(store: Store) -> None:
    assert await store.secret() == await store.secret()


async def notes(store: Store) -> None:
    await store.note([b"line"], 10)
    assert [lines async for lines in store.noted()] == [[b"line"]]


@pytest.mark.parametrize(
    ("command", "works"),
    [
        ((b"RPUSH", b"tg5:{ann}:account", b"x"), admits_five),
        ((b"SET", b"tg5:{ann}:leases", b"x"), admits_five),
        ((b"RPUSH", b"tg1:{ann}:entry:entry", b"x"), admits_five),
        ((b"RPUSH", b"tg1:{ann}:entry:entry", b"x"), recalls),
        ((b"SET", b"tg1:keys", b"x"), keeps_keys),
        ((b"RPUSH", b"tg1:secret", b"x"), shares_the_secret),
        ((b"SET", b"tg1:records", b"x"), notes),
    ],
    ids=["rate", "slots", "entry", "recall", "keys", "secret", "records"],
)
def test_a_key_of_a_wrong_type_is_deleted_and_the_decision_repeated(
    url: str, command: tuple[bytes, ...], works: Callable[[Store], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async def main(store: Store) -> None:
        await spoil(store, *command)
        await works(store)
        assert store.state == "ok"

    with caplog.at_level(logging.INFO):
        on(url, main)
    assert said(caplog) == ["store repaired"]


def spoiled(number: float) -> bytes:
    return struct.pack(f"<{len(NAMES)}d", *[number] * len(NAMES))


ODD = {
    **{
        f"account {name}": [(b"HSET", b"tg5:{ann}:account", b"state", text)]
        for name, text in {
            **{f"{n}": spoiled(n) for n in (float("nan"), float("inf"), -5.0, 1e300)},
            "short": b"x",
            "long": spoiled(7.0) + b"x",
        }.items()
    },
    **{
        f"hold {name}": [(b"HSET", b"tg5:{ann}:account", b"x", text), (b"ZADD", b"tg5:{ann}:leases", b"1", b"x")]
        for name, text in {"short": b"x", "empty": b"", "numbers": spoiled(-7.0)[:31]}.items()
    },
}


@pytest.mark.parametrize("commands", ODD.values(), ids=ODD)
def test_a_value_that_no_gateway_writes_counts_as_nothing_and_stops_nobody(
    valkey: str, commands: list[tuple[bytes, ...]]
) -> None:
    limits = Limits(5, 100, 60.0, 1000, Money(1_000_000, 86_400.0, degrade=True), Portion(0.5, 86_400.0))

    async def main(store: Store) -> None:
        for command in commands:
            await spoil(store, *command)
        found = await store.admit("ann", limits, None, Bound("flash", "flash", 10, 10, 7, 7))
        assert (found.verdict, found.tokens, found.money, found.remaining) == (0, 20, 7, 4)
        await store.settle("ann", found.lease or "", [Line("flash", "answer", False, 1, 0, 1, 1)])
        assert [line.requests for line in await store.ledger("ann")] == [1]
        assert store.state == "ok"

    on(valkey, main)


def test_every_key_that_the_store_makes_is_told_from_one_of_a_wrong_type(valkey: str) -> None:
    async def main(store: Store) -> None:
        await keeps_keys(store)
        await recalls(store)
        await notes(store)
        await store.keep("policy.revisions.house", b"")
        held = [await store.admit("ann", PLENTY, b"turn") for _ in range(2)]
        line = Line("pro", "answer", False, 1, 0, 1, 1)
        for lease in (held[0].lease or "", "m1"):  # "m1": granted in an outage
            await store.settle("ann", lease, [line])
        await store.secret()
        with Valkey.from_url(valkey) as client:
            await eventually(lambda: client.exists("tg1:processes"))
            assert {_kind(name): client.type(name) for name in client.scan_iter()} == TYPES

    on(valkey, main)


def test_a_release_of_a_slot_whose_key_was_spoiled_is_not_owed_for_ever(valkey: str) -> None:
    async def main(store: Store) -> None:
        held = await store.admit("ann", PLENTY, None)
        await spoil(store, b"SET", b"tg5:{ann}:leases", b"x")
        await store.settle("ann", held.lease or "")
        assert len(store._owed) == 0  # type: ignore[attr-defined]

    on(valkey, main)


def refuse_memory(client: Valkey) -> None:
    client.config_set("maxmemory", "1mb")


def accept_memory(client: Valkey) -> None:
    client.config_set("maxmemory", "256mb")


def refuse_scripts(client: Valkey) -> None:
    client.execute_command("ACL", "SETUSER", "default", "-@scripting")  # type: ignore[no-untyped-call]


def accept_scripts(client: Valkey) -> None:
    client.execute_command("ACL", "SETUSER", "default", "+@scripting")  # type: ignore[no-untyped-call]


Change = Callable[[Valkey], None]


@pytest.mark.parametrize(
    ("spoil_it", "mend_it"),
    [(refuse_memory, accept_memory), (refuse_scripts, accept_scripts)],
    ids=["memory", "scripts"],
)
def test_a_server_that_refuses_is_down_for_as_long_as_it_does_and_says_so_once(
    valkey: str, spoil_it: Change, mend_it: Change, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(store: Store, client: Valkey) -> None:
        await store.secret()
        spoil_it(client)
        try:
            end = time.monotonic() + 1.2
            while time.monotonic() < end:
                assert (await store.admit("ann", PLENTY, b"key")).allowed
                await asyncio.sleep(0.02)
            assert store.state == "down"
        finally:
            mend_it(client)
        await recovered(store)
        answer = await store.admit("ann", PLENTY, b"key")
        assert not (answer.lease or "m").startswith("m")

    with caplog.at_level(logging.INFO), Valkey.from_url(valkey) as client:
        on(valkey, lambda store: main(store, client))
    assert said(caplog) == ["store down", "store ok"]


def test_where_the_server_cannot_keep_the_secret_the_process_keeps_its_own(valkey: str) -> None:
    async def main(store: Store, client: Valkey) -> None:
        refuse_memory(client)
        try:
            secret = await store.secret()
            assert len(secret) == 32
            assert (await store.admit("ann", PLENTY, b"key")).allowed
            assert await store.secret() == secret
        finally:
            accept_memory(client)

    with Valkey.from_url(valkey) as client:
        on(valkey, lambda store: main(store, client))


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", ConnectionError),
        ("NOAUTH Authentication required.", ConnectionError),
        ("WRONGPASS invalid username-password pair or user is disabled.", ConnectionError),
        ("ERR max number of clients reached", ConnectionError),
        ("READONLY You can't write against a read only replica.", ConnectionError),
        ("ERR unknown command", ResponseError),
        ("NOSCRIPT No matching script.", NoScriptError),
        ("TRYAGAIN Multiple keys request during rehashing of slot", TryAgainError),
        ("ASK 7 h:1", AskError),
        ("MOVED 7 h:1", MovedError),
    ],
)
def test_a_servers_error_is_the_commands_or_the_connections(reply: str, kind: type[Exception]) -> None:
    assert type(refusal(reply)) is kind


def test_a_wrong_password_is_an_outage_with_one_line(valkey: str, caplog: pytest.LogCaptureFixture) -> None:
    wrong = valkey.replace("unix://", "unix://nobody:wrong@")

    async def main() -> None:
        store = open_store(wrong)
        end = time.monotonic() + 1.3
        while time.monotonic() < end:
            assert (await store.admit("ann", PLENTY, b"key")).allowed
            await asyncio.sleep(0.02)
        assert store.state == "down"
        await store.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert said(caplog) == ["store down"]


@pytest.mark.parametrize("odd", [b"{", b"[]", b"null", b'{"id": "b"}', b"\xff", b"[" * 5000])
def test_a_key_whose_record_cannot_be_read_is_a_revoked_one_and_stops_no_other(url: str, odd: bytes) -> None:
    async def main(store: Store) -> None:
        await spoil(store, b"HSET", b"tg1:keys", b"b" * 12, odd)
        assert not await open_to_everyone(Settings(), store), "where callers have keys they need one"
        record = KeyRecord("a" * 12, "hash", "ann", None, 1.0)
        await store.put_key(record)
        unread, kept = await store.list_keys()
        assert (kept, unread.id, unread.name, unread.revoked is None) == (record, "b" * 12, "unreadable", False)
        assert await Keys(store).find("b" * 12) == (None, await store.secret())
        assert await store.change_key("b" * 12, as_revoked) == unread

    on(url, main)
