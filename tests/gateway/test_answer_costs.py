"""What answers cost, seen from outside: the ledger beside what the simulated servers counted."""

import asyncio
import json
import random

import pytest
from valkey import Valkey

from gateway.store import NANO, MemoryStore, Store, open_store
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, SIMPLE, Gateway, body, gateway
from tests.stores import on
from tests.tiers import JSON, policy_for

PRICES = {
    "flash": {"price": {"input_per_m": 0.1, "cached_input_per_m": 0.05, "output_per_m": 1.0}},
    "pro": {"price": {"input_per_m": 1.0, "cached_input_per_m": 0.1, "output_per_m": 10.0}},
}
SUMS = ("requests", "prompt", "cached", "completion")


async def booked(store: Store, *kinds: str, estimated: bool | None = None) -> dict[str, int]:
    found = [line for line in await store.ledger() if line.kind in kinds and estimated in (None, line.estimated)]
    return {name: sum(getattr(line, name) for line in found) for name in (*SUMS, "money")}


def counted(*sims: Sim) -> dict[str, int]:
    seen = [entry for sim in sims for entry in sim.seen()]
    names = {"prompt": "prompt_tokens", "cached": "cached_tokens", "completion": "tokens"}
    return {"requests": len(seen)} | {name: sum(entry[key] for entry in seen) for name, key in names.items()}


def plan(**limits: object) -> JSON:
    return {"plans": {"usual": limits}}


@pytest.mark.parametrize("stream", [True, False])
def test_the_ledger_is_what_the_servers_counted_and_what_answers_say_that_they_cost(
    flash: Sim, pro: Sim, valkey: str, stream: bool
) -> None:
    async def main(store: Store) -> None:
        policy = policy_for(flash, pro, tiers=PRICES, triage={"speculate": "never"})
        async with gateway(policy, store) as gate:
            bodies = [body(f"{text} {n}", stream=stream) for n in range(8) for text in (SIMPLE, COMPLEX)]
            answers = await asyncio.gather(*(gate.ask(one, x_route_explain="1") for one in bodies))
            assert {answer.status for answer in answers} == {200}
            found, true = await booked(store, "answer"), counted(flash, pro)
            routes = [(json.loads(one.events()[-2]) if stream else one.json())["route"] for one in answers]
            assert round(sum(route["answer_usd"] for route in routes) * NANO) == found["money"]
            told = [one.headers["x-answer-usd"] for one in answers if not stream]
            assert told == [f"{route['answer_usd']:.9f}" for route in routes if not stream]
            assert {name: found[name] for name in SUMS} == true
            assert found["money"] == sum(
                (seen["prompt_tokens"] - seen["cached_tokens"]) * new
                + seen["cached_tokens"] * old
                + seen["tokens"] * out
                for sim, new, old, out in ((flash, 100, 50, 1000), (pro, 1000, 100, 10_000))
                for seen in sim.seen()
            )
            assert (await booked(store, "triage"))["requests"] == 16
            exact = await booked(store, "triage", estimated=False)
            assert exact["requests"] > 0  # those whose count came before the answer had ended
            most = max(seen["prompt_tokens"] for seen in flash.seen("triage") + pro.seen("triage"))
            assert 0 < exact["prompt"] <= most * exact["requests"]

    on(valkey, main)


def test_an_answer_that_comes_whole_is_booked_and_remembered_in_one_command(flash: Sim, pro: Sim, valkey: str) -> None:
    async def main(store: Store) -> None:
        async with gateway(policy_for(flash, pro, caching={"ttl": "10m"}), store) as gate:
            with Valkey.from_url(valkey) as client:
                counted = []
                for text in ("first", "second", "second"):
                    client.config_resetstat()
                    answer = await gate.ask(body(text, model="flash", temperature=0))
                    await store.ping()
                    runs = client.info("commandstats")["cmdstat_evalsha"]["calls"]
                    counted.append((answer.headers["x-route-cache"], runs))
        assert counted[1:] == [("miss", 2), ("hit", 1)]

    on(valkey, main)


def test_with_random_leavers_answers_are_never_booked_below_what_the_servers_counted(
    flash: Sim, pro: Sim, valkey: str
) -> None:
    async def one(gate: Gateway, chance: random.Random, n: int) -> None:
        line = await gate.open(body(f"{COMPLEX} {n}", stream=n % 3 > 0, max_tokens=200))
        if n % 2:
            await asyncio.wait_for(line.answer(), 10)
            return
        await asyncio.sleep(chance.uniform(0, 0.15))
        await line.leave(reset=n % 4 == 0)

    async def main(store: Store) -> None:
        for sim in (flash, pro):
            sim.config(only="answer", drip=0.005, drip_bytes=400)
        async with gateway(policy_for(flash, pro, tiers=PRICES), store) as gate:
            chance = random.Random(7)
            await asyncio.gather(*(one(gate, chance, n) for n in range(40)))
        books, true, answers = open_store(valkey), counted(flash, pro), counted(pro)  # the gateway has closed its own
        found = await booked(books, "answer")
        exact = await booked(books, "answer", "draft", estimated=False)
        await books.close()
        assert exact["requests"] >= 20
        for name in ("prompt", "completion"):
            assert found[name] >= answers[name], "drafts count against no limit: they are estimates, not bounds"
            assert exact[name] <= true[name]

    on(valkey, main)


async def test_who_has_spent_its_budget_goes_to_flash_and_is_refused_when_that_does_not_fit_either(
    flash: Sim, pro: Sim
) -> None:
    budget = {"usd": 0.0021, "warn": 0.3}
    policy = policy_for(flash, pro, tiers=PRICES, callers=plan(budget=budget))
    async with gateway(policy, MemoryStore()) as gate:
        fields = {"max_tokens": 150, "model": "pro"}
        answers = [await gate.ask(body(SIMPLE, **fields)) for _ in range(30)]
        tiers = [answer.headers["x-route-tier"] for answer in answers if answer.status == 200]
        assert tiers[0] == "pro"
        assert "flash" in tiers
        degraded = answers[tiers.index("flash")]
        assert (degraded.headers["x-route-reason"], degraded.headers["x-budget"]) == ("budget", "flash_only")
        refusal = await gate.ask(body(SIMPLE, max_tokens=100_000))
        assert (refusal.status, refusal.json()["error"]["code"]) == (429, "insufficient_quota")
        assert refusal.headers["x-should-retry"] == "false"
        metrics = (await gate.get("/metrics")).data.decode()
        refused = sum(answer.status == 429 for answer in answers) + 1
        assert f'gateway_limited_total{{limit="money"}} {refused}.0' in metrics
        assert 'gateway_cost_usd_total{kind="answer",tier="pro"}' in metrics


async def test_of_coalesced_callers_the_flight_is_paid_once_and_a_hit_costs_nothing(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    policy = policy_for(flash, pro, tiers=PRICES, caching={"ttl": "10m"}, callers=plan(budget={"usd": 1.0}))
    async with gateway(policy, store) as gate:
        flash.config(stall_first=0.2)
        same = body(SIMPLE, model="flash", temperature=0)
        leader = await gate.open(same)
        await asyncio.sleep(0.05)
        followers = [await gate.open(same) for _ in range(5)]
        await asyncio.sleep(0.05)
        await leader.leave()
        assert {(await line.answer()).headers["x-route-cache"] for line in followers} == {"coalesced"}
        assert (await gate.ask(same)).headers["x-route-cache"] == "hit"
    found = await booked(store, "answer")
    assert {name: found[name] for name in SUMS} == counted(flash)
    assert found["requests"] == 1
    assert store._accounts["anonymous"].money == 0


async def test_an_answer_is_paid_though_who_asked_first_left_before_a_model_was_asked(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    async with gateway(policy_for(flash, pro, tiers=PRICES, caching={"ttl": "10m"}), store) as gate:
        flash.config(stall_first=0.5)
        same = body(SIMPLE, model="flash", temperature=0)
        stream = await gate.open({**same, "stream": True})
        await asyncio.sleep(0.05)
        first = await gate.open(same)  # waits for what may come of the stream
        await asyncio.sleep(0.05)
        second = await gate.open(same)
        await asyncio.sleep(0.05)
        await first.leave()
        await stream.leave()
        assert (await second.answer()).headers["x-route-cache"] == "coalesced"
    (answer,) = [line for line in await store.ledger() if not line.estimated]
    assert (answer.kind, answer.requests, answer.completion) == ("answer", 1, flash.seen()[-1]["tokens"])
    assert store._accounts["anonymous"].leases == {}


async def test_a_failover_costs_what_the_tier_that_answered_counted(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    flash.config(status=500)
    async with gateway(policy_for(flash, pro, tiers=PRICES), store) as gate:
        assert (await gate.ask(body(SIMPLE, model="flash"))).headers["x-route-tier"] == "pro"
    (line,) = await store.ledger()
    assert (line.tier, line.kind, line.estimated) == ("pro", "answer", False)


async def test_a_wasted_draft_is_the_operators(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    flash.config(only="answer", stall_first=60.0)  # it may not end before it is dropped
    async with gateway(policy_for(flash, pro, tiers=PRICES, callers=plan(budget={"usd": 1.0})), store) as gate:
        assert (await gate.ask(body(COMPLEX))).headers["x-route-tier"] == "pro"
    kinds = {line.kind: line for line in await store.ledger()}
    assert (kinds["answer"].tier, kinds["draft"].tier, kinds["triage"].tier) == ("pro", "flash", "flash")
    assert store._accounts["anonymous"].spent == kinds["answer"].money < NANO
    assert (kinds["draft"].estimated, kinds["draft"].prompt) == (True, kinds["answer"].prompt)
