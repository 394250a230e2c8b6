"""A sample of Flash's answers, compared with Pro's behind the caller's back: over sockets, with simulated tiers."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.done import nothing
from gateway.facts import observe
from gateway.policy import Policy, PolicyError
from gateway.reply import Reply
from gateway.shadow import IDLE, LONGEST, MOST
from gateway.store import ALL, SHADOW_ACCOUNT, MemoryStore
from gateway.types import Decision, Route, Usage
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, PATIENCE, SIMPLE, Gateway, asked, body, eventually, gateway
from tests.tiers import JSON, policy_for

PRICE = {"price": {"input_per_m": 1.0, "output_per_m": 1.0}}


def shadowed(flash: Sim, pro: Sim, rules: JSON | None = None, **changes: Any) -> Policy:
    return policy_for(flash, pro, record={"shadow": {"tier": "pro", "share": 1.0, **(rules or {})}}, **changes)


def outcomes(gate: Gateway) -> list[JSON]:
    lines = [json.loads(line) for line in gate.front.doors.records.recent(100)]
    return [line["outcome"] for line in lines if line["outcome"]]


async def counted(gate: Gateway) -> dict[str, int]:
    """Answers that were drawn, by what became of them."""
    text = (await gate.get("/metrics")).data.decode()
    found = re.findall(r'gateway_shadow_answers_total\{outcome="(\w+)"\} (\S+)', text)
    return {name: int(float(count)) for name, count in found if float(count)}


async def became(gate: Gateway, outcome: str) -> None:
    """Waits until one drawn answer became that, and none anything else."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await counted(gate)):  # noqa: ASYNC110  the gateway is asked each time
            await asyncio.sleep(0.01)
    assert found == {outcome: 1}


@pytest.mark.parametrize("stream", [True, False])
async def test_behind_an_answer_of_flash_pro_is_asked_the_same_and_how_much_both_agree_is_its_outcome(
    flash: Sim, pro: Sim, stream: bool
) -> None:
    async with gateway(shadowed(flash, pro)) as gate:
        answer = await gate.ask(body(stream=stream), x_request_id="r")
        assert (answer.status, answer.headers["x-route-tier"]) == (200, "flash")
        assert b"pro-model" not in answer.data
        await became(gate, "compared")
        (outcome,) = outcomes(gate)
        assert outcome["source"] == "shadow"
        assert 0 < outcome["quality"] < 1, "the simulated tiers say their own names"
        assert "tiers" not in outcome, "nobody judged what Pro said"
        (seen,) = pro.seen()
        assert "r-shadow-" in seen["id"]
        kept = gate.front.doors.records.recent(1)[0]
        assert b"Australia" not in kept
        assert b"gateway_shadow_agreement_count 1.0" in (await gate.get("/metrics")).data


async def test_pro_is_asked_when_the_caller_has_the_whole_answer(flash: Sim, pro: Sim) -> None:
    flash.config(only="answer", stall_after=3, stall=0.6)
    async with gateway(shadowed(flash, pro)) as gate:
        line = await gate.open(body(stream=True))
        await line.some()
        await asyncio.sleep(0.1)
        assert pro.seen() == []
        assert b"[DONE]" in await line.reader.read()
        await line.leave()
        await became(gate, "compared")


async def test_a_caller_waits_for_no_shadow_and_the_gateway_ends_with_one_under_way(flash: Sim, pro: Sim) -> None:
    pro.config(stall_first=30.0)
    async with gateway(shadowed(flash, pro)) as gate:
        assert (await gate.ask(body())).status == 200
        await eventually(lambda: bool(pro.seen()))
        await gate.front.doors.shadows.close()
        assert not any(gate.upstream.load().values())
        assert await counted(gate) == {}
    assert outcomes(gate) == []


async def test_who_opts_out_chose_the_tier_may_not_reach_pro_or_asks_what_pro_cannot_do_is_not_shadowed(
    flash: Sim, pro: Sim
) -> None:
    plans: JSON = {"plans": {"usual": {"may": []}}}
    async with gateway(shadowed(flash, pro, callers=plans)) as gate:
        assert (await gate.ask(body())).status == 200
    async with gateway(shadowed(flash, pro)) as gate:
        await gate.ask(body(), x_route_shadow="off")
        await gate.ask(body(metadata={"shadow": "off"}))
        await gate.ask(body(model="flash"))
        await gate.ask(body(n=2))
        await gate.ask(body(), x_route_tier="fast")
        assert await counted(gate) == {}
    async with gateway(shadowed(flash, pro, tiers={"pro": {"can": {"tools": False}}})) as gate:
        await gate.ask(body(tools=[{"type": "function", "function": {"name": "f"}}]))
        assert await counted(gate) == {}
    async with gateway(shadowed(flash, pro, {"share": 0.0})) as gate:
        await gate.ask(body())
        assert await counted(gate) == {}
    assert pro.seen() == []


async def test_neither_errors_nor_several_answers_at_once_are_shadowed(flash: Sim, pro: Sim) -> None:
    async with gateway(shadowed(flash, pro)) as gate:
        flash.config(status=400, only="answer")
        assert (await gate.ask(body())).status == 400
        flash.reset()
        assert (await gate.ask({"model": "auto", "prompt": ["a", "b"]}, "/v1/completions")).status == 200
        await gate.ask(body())
        await became(gate, "compared")
        assert len(pro.seen()) == 1


async def test_what_pro_answers_is_not_asked_again(flash: Sim, pro: Sim) -> None:
    async with gateway(shadowed(flash, pro)) as gate:
        assert (await gate.ask(body(COMPLEX))).headers["x-route-tier"] == "pro"
    assert len(pro.seen()) == 1


async def test_an_answer_that_several_had_or_that_the_cache_gave_is_compared_once(flash: Sim, pro: Sim) -> None:
    async with gateway(shadowed(flash, pro, caching={"ttl": "1m"})) as gate:
        flash.config(only="answer", stall_first=0.05)
        await asyncio.gather(*(gate.ask(body(temperature=0)) for _ in range(2)))
        assert (await gate.ask(body(temperature=0))).headers["x-route-cache"] == "hit"
        await became(gate, "compared")


async def test_a_busy_tier_is_left_alone(flash: Sim, pro: Sim) -> None:
    places = {"limits": {"max_inflight": int(1 / IDLE) - 1}}
    async with gateway(shadowed(flash, pro, tiers={"pro": places})) as gate:
        await gate.ask(body())
        await became(gate, "busy")
    assert pro.seen() == []


async def test_so_many_are_open_at_once_and_no_more(flash: Sim, pro: Sim) -> None:
    pro.config(stall_first=30.0)
    async with gateway(shadowed(flash, pro)) as gate:
        await asyncio.gather(*(gate.ask(body(f"{SIMPLE} {at}")) for at in range(MOST + 3)))
        assert await counted(gate) == {"busy": 3}
        await eventually(lambda: len(pro.seen()) >= MOST)
        assert len(pro.seen()) == MOST
        await gate.front.doors.shadows.close()


async def test_it_costs_at_most_a_days_money_and_counts_in_the_budget_of_all(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    tights: list[JSON] = [{"rules": {"max_usd_per_day": 1e-6}}, {"budget": {"usd": 1e-6}}]
    for tight in tights:
        changes: JSON = {"tiers": {"pro": PRICE}, **tight}
        async with gateway(shadowed(flash, pro, **changes)) as gate:
            await gate.ask(body())
            await became(gate, "budget")
    async with gateway(shadowed(flash, pro, tiers={"pro": PRICE}, budget={"usd": 1.0}), store) as gate:
        await gate.ask(body())
        await became(gate, "compared")
        assert b'gateway_cost_usd_total{kind="shadow",tier="pro"}' in (await gate.get("/metrics")).data
    (line,) = await store.ledger(SHADOW_ACCOUNT)
    assert (line.tier, line.estimated, line.money > 0) == ("pro", False, True)
    assert line.money in [other.money for other in await store.ledger(ALL) if other.tier == "pro"]
    assert {other.tier for other in await store.ledger("anonymous")} == {"flash"}, "no caller pays for it"


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 400}, {"cut_after": 1}, {"bad_json": "truncated"}])
async def test_a_tier_that_fails_leaves_no_outcome(flash: Sim, pro: Sim, fault: JSON) -> None:
    pro.config(**fault)
    async with gateway(shadowed(flash, pro)) as gate:
        await gate.ask(body())
        await became(gate, "failed")
        assert outcomes(gate) == []


async def test_an_answer_that_was_cut_is_not_compared(flash: Sim, pro: Sim) -> None:
    async with gateway(shadowed(flash, pro)) as gate:
        await gate.ask(body(max_tokens=1))
        await became(gate, "cut")
    assert pro.seen() == []
    flash.config(only="answer", weak="empty")
    async with gateway(shadowed(flash, pro)) as gate:
        await gate.ask(body(max_tokens=1))
        await became(gate, "cut")
    assert len(pro.seen()) == 1, "by the other tier"
    flash.reset()
    pro.reset()
    flash.config(only="answer", stall_after=2)
    async with gateway(shadowed(flash, pro)) as gate:
        line = await gate.open(body(stream=True))
        await line.some()
        await line.leave()
        await became(gate, "cut")
    assert pro.seen() == []


async def test_without_a_record_there_is_nothing_to_learn_from(flash: Sim, pro: Sim) -> None:
    rules = {"decisions": 0.0, "shadow": {"tier": "pro", "share": 1.0}}
    async with gateway(policy_for(flash, pro, record=rules)) as gate:
        await gate.ask(body())
        await became(gate, "unrecorded")
    assert pro.seen() == []


@pytest.mark.parametrize(("size", "failed", "read"), [(LONGEST, False, 2), (1, True, 2), (1, False, 1)])
async def test_an_answer_that_is_too_long_tells_an_error_or_is_left_ends_with_its_reader_and_is_not_compared(
    flash: Sim, pro: Sim, size: int, failed: bool, read: int
) -> None:
    policy, request, ended = shadowed(flash, pro), asked(body()), list[str]()
    facts = observe(request, policy, {})
    said = [{"choices": [{"delta": {"content": "a" * size}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    events = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in said]

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            for event in events:
                yield event
        finally:
            ended.append("pieces")

    async with gateway(policy) as gate:
        reply = Reply(200, [], pieces(), True, "flash", nothing, Usage(failed=failed), cache="miss")
        reply.decided(Decision(facts, None, Route(("flash",), "triaged", "simple")))
        gate.front.doors.shadows.watch(request, reply, policy)
        passed = aiter(reply.chunks)
        assert [await anext(passed) for _ in range(read)] == events[:read]
        for _ in range(2):
            await reply.close()
        assert ended == ["pieces"]
        await became(gate, "cut")


def test_a_shadow_needs_a_tier_above_the_first(flash: Sim, pro: Sim) -> None:
    for tier, told in (("flash", "no tier ranks below"), ("prop", 'did you mean "pro"')):
        with pytest.raises(PolicyError, match=told):
            shadowed(flash, pro, {"tier": tier})
