"""GET /v1/key over sockets, with simulated tiers: what a caller is told of its own key."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.key_records import new_key, rotation
from gateway.store import KeyRecord, MemoryStore, Store, open_store
from loadtest.servers import Sim
from tests.gateway.serving import body, gateway
from tests.stores import on
from tests.tiers import JSON, policy_for

PRICED: JSON = {name: {"price": {"input_per_m": 1.0, "output_per_m": 10.0}} for name in ("flash", "pro")}
PLAN: JSON = {
    "requests_per_minute": 50,
    "concurrency": 3,
    "tokens_per_minute": 100_000,
    "budget": {"usd": 1.0, "window": "month", "then": "refuse"},
    "pro_share": {"max": 0.5, "window": "36h"},
}
CHEAP = body("hi", model="flash", max_tokens=10)


def planned(flash: Sim, pro: Sim, plan: JSON) -> Any:
    return policy_for(flash, pro, tiers=PRICED, callers={"plans": {"usual": plan}})


async def key_of(store: Store, name: str, **own: Any) -> JSON:
    key, record = new_key(await store.secret(), name, **own)
    await store.put_key(record)
    return {"authorization": f"Bearer {key}"}


@pytest.mark.usefixtures("each_front")
def test_a_caller_is_told_what_its_key_may_do_and_what_is_left_of_it_and_asking_takes_nothing(
    flash: Sim, pro: Sim, valkey: str
) -> None:
    async def main(store: Store) -> None:
        ann = await key_of(
            store, "ann", usd=0.0105, window="7d", may=("flash",), requests_per_minute=40, expires=time.time() + 1e6
        )
        bob = await key_of(store, "bob")
        async with gateway(planned(flash, pro, PLAN), store, everyone=False) as gate:
            assert (await gate.ask(CHEAP, **ann)).status == 200
            (line,) = await store.ledger((await gate.get("/v1/key", **ann)).json()["id"])
            answers = [await gate.get("/v1/key", **ann) for _ in range(20)]
            told = answers[-1].json()
            used, left = line.money / 1e9, (10_500_000 - line.money) / 1e9
            assert abs(told.pop("expires") - time.time() - 1e6) < 60
            assert 0 < told["budget"].pop("resets") - time.time() <= 7 * 86_400
            assert 0 < (tokens := told["tokens"].pop("left")) <= 100_000
            assert 40 - told["requests"].pop("left") <= 1, "the one that was answered"
            assert told == {
                "id": line.caller, "name": "ann", "plan": "usual", "models": ["auto", "flash"],
                "requests": {"per_minute": 40}, "tokens": {"per_minute": 100_000}, "concurrency": 3,
                "pro_share": {"max": 0.5, "window": "36h"},
                "budget": {"usd": 0.0105, "used": used, "left": left, "window": "7d", "then": "refuse"},
            }  # fmt: skip
            assert tokens >= 100_000 - line.prompt - line.completion
            other = (await gate.get("/v1/key", x_api_key=bob["authorization"].partition(" ")[2])).json()
            assert (other["name"], other["models"], other["expires"]) == ("bob", ["auto", "flash", "pro"], None)
            assert (other["budget"]["usd"], other["budget"]["used"], other["requests"]["left"]) == (1.0, 0.0, 50)
            assert not any(secret in answers[0].data for secret in (b"hash", ann["authorization"][20:].encode()))

    on(valkey, main)


async def test_who_used_up_a_months_budget_is_told_when_it_begins_anew(flash: Sim, pro: Sim) -> None:
    plan = PLAN | {"budget": {"usd": 0.001, "window": "month", "then": "refuse"}}
    async with gateway(planned(flash, pro, plan)) as gate:
        refused = await gate.ask(body("hi", model="flash", max_tokens=1000))
        resets = (await gate.get("/v1/key")).json()["budget"]["resets"]
        assert time.gmtime(resets)[2:6] == (1, 0, 0, 0)
        assert (refused.status, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        assert abs(int(refused.headers["retry-after"]) - (resets - time.time())) < 60
        assert "Try again in" in refused.json()["error"]["message"]


async def test_a_key_that_goes_on_for_a_day_after_its_rotation_is_told_of_that_day(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    old = await key_of(store, "ann")
    (record,) = await store.list_keys()
    key, change = rotation(await store.secret(), record.id, "1d")
    await store.change_key(record.id, change)
    async with gateway(planned(flash, pro, {}), store, everyone=False) as gate:
        assert (await gate.get("/v1/key", authorization=f"Bearer {key}")).json()["expires"] is None
        assert 0 < (await gate.get("/v1/key", **old)).json()["expires"] - time.time() <= 86_400
        for wrong in ({}, {"authorization": "Bearer sk-tg-0123456789ab-x"}):
            refused = await gate.get("/v1/key", **wrong)
            assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")


class Late(MemoryStore):
    """A store that tells of a key when it is `told` to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.told = asyncio.Event(), asyncio.Event()

    async def key(self, key_id: str) -> KeyRecord | None:
        self.asked.set()
        await self.told.wait()
        return await super().key(key_id)


RATED: JSON = {"request_id": "nobody's", "outcome": {"quality": 1.0}}


@pytest.mark.parametrize(
    ("path", "said", "status"), [("/v1/key", None, 200), ("/v1/route", CHEAP, 200), ("/v1/feedback", RATED, 404)]
)
async def test_who_asks_while_its_plan_leaves_the_policy_is_answered_by_the_one_that_was_in_force(
    flash: Sim, pro: Sim, path: str, said: JSON | None, status: int
) -> None:
    ann = await key_of(store := Late(), "ann", plan="usual")
    async with gateway(planned(flash, pro, PLAN), store, everyone=False) as gate:
        asking = asyncio.create_task(gate.ask(said, path, **ann) if said else gate.get(path, **ann))
        await store.asked.wait()
        callers: JSON = {"default": {"plan": "other"}, "plans": {"other": {}, "usual": None}}
        gate.front.doors.policy = policy_for(flash, pro, callers=callers)
        store.told.set()
        assert (await asking).status == status


async def test_what_is_left_is_not_known_while_the_store_does_not_answer(flash: Sim, pro: Sim, tmp_path: Path) -> None:
    store = open_store(f"unix://{tmp_path}/nobody")
    async with gateway(planned(flash, pro, PLAN), store) as gate:
        told = (await gate.get("/v1/key")).json()
        assert [told[limit]["left"] for limit in ("requests", "tokens", "budget")] == [None] * 3
        assert (told["id"], told["budget"]["usd"], told["budget"]["used"]) == ("anonymous", 1.0, None)


async def test_what_is_not_limited_is_told_as_nothing(flash: Sim, pro: Sim) -> None:
    async with gateway(planned(flash, pro, {})) as gate:
        told = (await gate.get("/v1/key")).json()
        assert [told[limit] for limit in ("tokens", "pro_share", "budget")] == [None] * 3
