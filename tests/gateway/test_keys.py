import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from gateway.cli.keyfile import KeyFileStore
from gateway.errors import Forbidden, Overloaded, Refusal, Unauthorized
from gateway.key_records import as_revoked, changed, key_hash, new_key, rotation
from gateway.keyfile import KeyFile
from gateway.keys import BELIEVED, REMEMBERED, Identified, Keys, identify
from gateway.policy import load_policy
from gateway.policy.plans import Callers, DefaultCaller, Plan
from gateway.pricing import terms
from gateway.store import KeyRecord, MemoryStore
from gateway.types import Caller

RAW = "a-key-from-the-environment"
CALLERS = Callers(
    default=DefaultCaller(plan="silver"),
    plans={"silver": Plan(requests_per_minute=6, concurrency=2), "gold": Plan(requests_per_minute=1200)},
)
POLICY = load_policy(
    """\
schema: 1
tiers:
  flash: {model: f, replicas: ["http://h"]}
  pro: {model: p, replicas: ["http://h"], price: {output_per_m: 1.0}}
rules: [{id: all, route: pro}]
callers:
  default: {plan: silver}
  plans:
    silver: {may: [pro]}
    frugal: {budget: {usd: 0.01, warn: 0.5}, may: [pro]}
""",
    {},
)


class CountingStore(MemoryStore):
    """A memory store that counts look-ups and may stop answering them."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.down = False

    async def key(self, key_id: str) -> KeyRecord | None:
        self.asked.append(key_id)
        if self.down:
            raise Overloaded("the store does not answer")
        return await super().key(key_id)


async def kept(store: MemoryStore, name: str = "ann", plan: str | None = None) -> tuple[str, KeyRecord]:
    key, record = new_key(await store.secret(), name, plan)
    await store.put_key(record)
    return key, record


async def who(keys: Keys, key: str) -> Caller:
    return await identify(f"Bearer {key}", keys, CALLERS)


async def refused(keys: Keys, authorization: str | None) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await identify(authorization, keys, CALLERS)
    return refusal.value


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.mark.parametrize(
    ("had", "given", "left"),
    [
        ((20.0, "month"), {"usd": None}, (None, None)),
        ((20.0, "month"), {"usd": None, "window": "7d"}, (None, "7d")),
        ((None, "7d"), {"usd": None}, (None, "7d")),
        ((20.0, "month"), {"usd": 30.0}, (30.0, "month")),
        ((20.0, "month"), {"window": None}, (20.0, None)),
    ],
)
def test_a_keys_own_amount_that_is_taken_out_leaves_no_window_that_its_plans_would_then_have(
    had: tuple[float | None, str | None], given: dict[str, Any], left: tuple[float | None, str | None]
) -> None:
    _, record = new_key(b"x", "ann", usd=had[0], window=had[1])
    found = changed(record, **given)
    assert (found.usd, found.window) == left


async def test_a_key_names_its_caller_and_plan(store: CountingStore) -> None:
    key, record = await kept(store, "ann", "gold")
    caller = await who(Keys(store), key)
    assert (caller.id, caller.name, caller.plan) == (record.id, "ann", "gold")
    key, _ = await kept(store, "bob")
    assert (await who(Keys(store), key)).plan == "silver"


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic dXNlcjpw", RAW, "Bearer \udcff\ud800", "Bearer sk-tg-", "Bearer sk-tg--",
     "Bearer sk-tg-000000000000-" + "x" * 43, "Bearer sk-tg-000000000000", "Bearer " + "x" * 10_000],
)  # fmt: skip
async def test_no_key_a_malformed_one_and_an_unknown_one_are_401(authorization: str | None) -> None:
    refusal = await refused(Keys(MemoryStore(), RAW), authorization)
    assert isinstance(refusal, Unauthorized)
    assert (refusal.status, refusal.code) == (401, "invalid_api_key")


async def test_a_key_with_one_character_changed_is_401(store: CountingStore) -> None:
    key, _ = await kept(store)
    keys = Keys(store)
    for place in (-1, -20, -43):
        other = key[:place] + ("A" if key[place] != "A" else "B") + key[place:][1:]
        assert isinstance(await refused(keys, f"Bearer {other}"), Unauthorized)
    assert isinstance(await refused(keys, f"Bearer {key}x"), Unauthorized)


async def test_the_scheme_is_matched_in_any_case_and_is_the_only_one(store: CountingStore) -> None:
    assert (await identify(f"bearer {RAW}", Keys(store, RAW), CALLERS)).id == "default"
    assert (await refused(Keys(store, RAW), f"Basic {RAW}")).status == 401


async def test_a_key_takes_one_place_in_memory_however_its_header_is_written(store: CountingStore) -> None:
    keys = Keys(store, RAW)
    for authorization in (f"Bearer {RAW}", f"bearer {RAW}", f"BEARER   {RAW} "):
        assert (await identify(authorization, keys, CALLERS)).id == "default"
    assert list(keys._identified) == [f"Bearer {RAW}"]


async def test_the_key_from_the_environment_is_the_default_caller(store: CountingStore) -> None:
    caller = await who(Keys(store, RAW), RAW)
    assert (caller.id, caller.name, caller.plan) == ("default", "default", "silver")
    assert store.asked == []


async def test_where_no_key_is_asked_for_everyone_is_anonymous(store: CountingStore) -> None:
    for authorization in (None, "Bearer whatever", "nonsense"):
        caller = await identify(authorization, Keys(store, everyone=True), CALLERS)
        assert (caller.id, caller.plan) == ("anonymous", "silver")


async def test_a_plan_that_the_policy_does_not_have_is_403(store: CountingStore) -> None:
    key, _ = await kept(store, "ann", "platinum")
    refusal = await refused(Keys(store), f"Bearer {key}")
    assert isinstance(refusal, Forbidden)
    assert "platinum" in refusal.message


async def test_whom_a_key_let_in_is_asked_anew_when_the_plans_or_the_secret_change(store: CountingStore) -> None:
    key, _ = await kept(store, plan="gold")
    keys = Keys(store, RAW)
    before = [await who(keys, each) for each in (key, RAW)]
    assert [await who(keys, each) for each in (key, RAW)] == before
    with pytest.raises(Forbidden):
        await identify(f"Bearer {key}", keys, replace(CALLERS, plans={"silver": CALLERS.plans["silver"]}))
    store.known_secret = b"other" * 7
    assert isinstance(await refused(keys, f"Bearer {key}"), Unauthorized)
    assert (await who(keys, RAW)).salt != before[1].salt


async def test_whom_a_key_let_in_is_refused_once_the_store_has_no_such_key(store: CountingStore) -> None:
    key, record = await kept(store)
    keys = Keys(store)
    assert await who(keys, key) is keys.known(f"Bearer {key}", CALLERS)
    del store._keys[record.id]
    await asyncio.sleep(BELIEVED)
    for _ in range(2):
        assert keys.known(f"Bearer {key}", CALLERS) is None
        assert (await refused(keys, f"Bearer {key}")).status == 401
    store.down = True
    keys._unknown.clear()  # as after another second
    assert (await refused(keys, f"Bearer {key}")).status == 503, "an outage does not bring it back"


async def test_records_and_unknown_ids_are_believed_for_a_second_so_that_a_revocation_acts_within_it(
    store: CountingStore,
) -> None:
    key, record = await kept(store)
    keys = Keys(store)
    for _ in range(50):
        await who(keys, key)
        await refused(keys, "Bearer sk-tg-000000000000-secret")
    assert store.asked == [record.id, "000000000000"]
    await store.change_key(record.id, as_revoked)
    await asyncio.sleep(1.01)
    assert isinstance(await refused(keys, f"Bearer {key}"), Unauthorized)


@pytest.mark.parametrize(
    ("key", "asked"),
    [("sk-tg-" + "a" * 8 + "-x", True), ("sk-tg-" + "a" * 32 + "-x", True), ("sk-tg-" + "a" * 12 + "-x-y", True),
     ("sk-tg-" + "a" * 7 + "-x", False), ("sk-tg-" + "a" * 33 + "-x", False), ("sk-tg-" + "a" * 12 + "-", False),
     ("sk-tg-" + "a" * 12, False), ("sk-" + "a" * 12 + "-x", False), ("a" * 12 + "-x", False)],
)  # fmt: skip
async def test_a_store_is_asked_for_a_key_that_it_may_have_made_and_no_other(
    store: CountingStore, key: str, asked: bool
) -> None:
    await refused(Keys(store), f"Bearer {key}")
    assert len(store.asked) == asked


async def test_of_more_keys_than_are_remembered_the_one_found_first_is_forgotten(store: CountingStore) -> None:
    _, record = await kept(store)
    keys = Keys(store)
    identified = Identified(await identify(None, Keys(store, everyone=True), CALLERS), None, b"", CALLERS)
    for n in range(REMEMBERED + 1):
        store._keys[f"{n}"] = record
        assert await keys.record(f"{n}") == record
        keys.remember(f"{n}", identified)
    asked = len(store.asked)
    assert [keys.identified(f"{n}") for n in (0, 1, REMEMBERED)] == [None, identified, identified]
    await keys.record("1")
    await keys.record(f"{REMEMBERED}")
    assert len(store.asked) == asked
    await keys.record("0")
    assert len(store.asked) == asked + 1


async def test_ten_thousand_unknown_ids_push_no_known_key_out_and_are_bounded(store: CountingStore) -> None:
    key, record = await kept(store)
    keys = Keys(store)
    await who(keys, key)
    for n in range(10_000):
        await refused(keys, f"Bearer sk-tg-{n:012x}-secret")
    store.down = True
    assert (await who(keys, key)).id == record.id
    assert len(keys._unknown) <= 4096


async def test_in_an_outage_a_key_seen_before_works_and_another_is_503(store: CountingStore) -> None:
    key, record = await kept(store)
    unseen, _ = await kept(store)
    keys = Keys(store)
    await who(keys, key)
    await asyncio.sleep(1.01)
    store.down = True
    assert (await who(keys, key)).id == record.id
    assert (await refused(keys, f"Bearer {unseen}")).status == 503


async def test_the_salt_is_the_callers_own_and_the_same_each_time(store: CountingStore) -> None:
    ann, _ = await kept(store, "ann")
    bob, _ = await kept(store, "bob")
    salts = [(await who(Keys(store), key)).salt for key in (ann, ann, bob)]
    assert salts[0] == salts[1] != salts[2]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", salt) for salt in salts)


async def test_an_expired_key_is_401(store: CountingStore) -> None:
    key, record = await kept(store)
    await store.put_key(replace(record, expires=record.created - 1))
    refusal = await refused(Keys(store), f"Bearer {key}")
    assert (refusal.status, refusal.code) == (401, "expired_api_key")


@pytest.mark.parametrize("rotated", [False, True])
async def test_a_key_of_the_file_lets_its_caller_in_no_more_once_it_expires_or_its_time_after_a_rotation_is_over(
    store: CountingStore, tmp_path: Path, rotated: bool
) -> None:
    written = KeyFileStore(tmp_path / "keys.json")
    end = time.time() + 0.5
    key, record = new_key(await written.secret(), "ann", expires=None if rotated else end)
    await written.put_key(replace(record, hash="0" * 64, old_hash=record.hash, old_until=end) if rotated else record)
    keys = Keys(store, file=KeyFile(tmp_path / "keys.json"))
    assert await who(keys, key) is keys.known(f"Bearer {key}", CALLERS)
    await asyncio.sleep(end - time.time() + 0.01)
    assert keys.known(f"Bearer {key}", CALLERS) is None
    assert (await refused(keys, f"Bearer {key}")).code == "expired_api_key"


async def test_a_rotated_key_has_the_same_caller_and_the_one_before_counts_as_long_as_was_said(
    store: CountingStore,
) -> None:
    first, record = await kept(store, plan="gold")
    caller, secret = await who(Keys(store), first), await store.secret()

    async def rotate(keep: str | None) -> str:
        key, change = rotation(secret, record.id, keep)
        assert await store.change_key(record.id, change)
        return key

    second = await rotate("1d")
    assert await who(Keys(store), first) == await who(Keys(store), second) == caller
    third = await rotate("1d")
    assert (await refused(Keys(store), f"Bearer {first}")).code == "invalid_api_key", "one before, not two"
    assert await who(Keys(store), second) == await who(Keys(store), third) == caller
    await store.change_key(record.id, lambda record: changed(record, expires=record.created))
    assert {(await refused(Keys(store), f"Bearer {key}")).code for key in (second, third)} == {"expired_api_key"}
    await store.change_key(record.id, lambda record: changed(record, expires=None))
    fourth = await rotate(None)
    assert (await refused(Keys(store), f"Bearer {third}")).code == "invalid_api_key"
    await store.change_key(record.id, as_revoked)
    assert (await refused(Keys(store), f"Bearer {fourth}")).code == "invalid_api_key"
    with pytest.raises(ValueError, match="no active key"):
        await rotate(None)


async def test_what_a_key_has_of_its_own_goes_before_its_plan(store: CountingStore) -> None:
    key, record = await kept(store, plan="gold")
    own: dict[str, Any] = {"requests_per_minute": 3, "tokens_per_minute": 500, "usd": 2.5, "window": "month"}
    own |= {"may": ("pro",)}
    await store.put_key(replace(record, expires=record.created + 60, **own))
    caller = structs.replace(await who(Keys(store), key), plan="frugal")
    plan = terms(caller, POLICY).plan
    assert (plan.requests_per_minute, plan.tokens_per_minute) == (3, 500)
    assert plan.budget
    assert (plan.budget.usd, plan.budget.window, plan.budget.warn) == (2.5, "month", 0.5)
    assert POLICY.reach("silver", ()) == ("flash",)
    assert POLICY.reach("silver", caller.own.may) == ("flash", "pro")


async def test_the_file_is_asked_before_the_store_and_knows_its_keys_without_it(
    store: CountingStore, tmp_path: Path
) -> None:
    written = KeyFileStore(tmp_path / "keys.json")
    key, record = new_key(await written.secret(), "ann", "gold")
    await written.put_key(record)
    other, _ = await kept(store, "bob")
    keys = Keys(store, file=KeyFile(tmp_path / "keys.json"))
    assert ((await who(keys, key)).name, store.asked) == ("ann", [])
    assert (await who(keys, other)).name == "bob"
    store.down = True
    caller = await who(keys, key)
    assert caller.salt == (await who(Keys(MemoryStore(), file=keys.file), key)).salt
    assert (await refused(keys, f"Bearer {key}x")).status == 401
    assert (await refused(keys, "Bearer sk-tg-000000000000-x")).status == 503
    await written.change_key(record.id, as_revoked)
    assert keys.file
    keys.file.look()
    await store.put_key(replace(record, hash=key_hash(await store.secret(), key)))
    store.down = False
    assert (await refused(keys, f"Bearer {key}")).status == 401, "what the file says goes before the store"
