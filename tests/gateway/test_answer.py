import json

import pytest

from gateway.answer import answer
from gateway.cache import Flights, cache_key
from gateway.errors import NotFound
from gateway.policy import Policy
from gateway.reply import Reply
from gateway.standing import OverLimit
from gateway.store import MemoryStore
from gateway.upstream import Upstream
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, SIMPLE, asked, body, collected, eventually, gateway, upstream
from tests.tiers import JSON, policy_for

REASONS: dict[str, JSON] = {
    "timeout": {"stall_first": 5.0},
    "parse": {"verdict": "garbage"},
    "truncated": {"verdict": "truncated"},
    "empty": {"verdict": "null"},
    "overloaded": {"status": 503},
    "error": {"status": 500},
}


async def answers(fields: JSON, policy: Policy, door: Upstream, store: MemoryStore | None = None) -> Reply:
    kept = store or MemoryStore()
    return await answer(asked(fields), policy, kept, door, Flights(kept))


@pytest.mark.parametrize("speculate", ["always", "never"])
@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("tier", ["flash", "pro"])
async def test_without_a_verdict_otherwise_says_who_answers(
    flash: Sim, pro: Sim, reason: str, tier: str, speculate: str
) -> None:
    flash.config(only="triage", **REASONS[reason])
    patience = "150ms" if reason == "timeout" else "20s"
    triage = {"timeout": patience, "speculate": speculate, "otherwise": {reason: tier}}
    async with gateway(policy_for(flash, pro, triage=triage)) as gate:
        found = await gate.ask(body(COMPLEX), x_route_explain="1")
        assert (found.status, found.headers["x-route-tier"]) == (200, tier)
        assert found.headers["x-route-reason"] == reason
        told = found.json()["route"]
        assert (told["verdict"]["label"], told["verdict"]["reason"]) == (None, reason)
        drafted = speculate == "always" and ("kept" if tier == "flash" else "wasted")
        assert told["draft"] == (drafted or "none")


async def test_without_a_verdict_the_local_score_says_who_answers_where_the_policy_lets_it(
    flash: Sim, pro: Sim
) -> None:
    flash.config(only="triage", verdict="garbage")
    async with gateway(policy_for(flash, pro, triage={"otherwise": {"parse": "local"}})) as gate:
        for text, tier, said in ((SIMPLE, "flash", "simple"), (COMPLEX, "pro", "complex")):
            found = await gate.ask(body(text), x_route_explain="1")
            assert (found.headers["x-route-tier"], found.headers["x-route-reason"]) == (
                tier,
                f"parse, local {said}",
            )
            told = found.json()["route"]["verdict"]
            assert (told["label"], told["source"], told["reason"]) == (said, "local", "parse")
        lines = gate.front.doors.records.recent(2)
        assert [json.loads(line)["verdict"]["label"] for line in lines] == [None, None]


async def test_by_default_flash_answers_without_a_verdict(flash: Sim, pro: Sim) -> None:
    flash.config(only="triage", verdict="garbage")
    async with upstream() as door:
        reply = await answers(body(COMPLEX), policy_for(flash, pro), door)
        assert (reply.tier, reply.route and reply.route.reason) == ("flash", "parse")
        await reply.close()


async def test_a_tier_asked_for_by_name_is_neither_triaged_nor_drafted(flash: Sim, pro: Sim) -> None:
    async with upstream() as door:
        reply = await answers(body(SIMPLE, model="pro"), policy_for(flash, pro), door)
        assert reply.tier == "pro"
        assert b"pro-model" in await collected(reply)
        assert flash.state()["requests"] == []


async def test_the_reply_holds_the_callers_slot_until_it_is_closed(flash: Sim, pro: Sim) -> None:
    policy = policy_for(flash, pro, callers={"plans": {"usual": {"concurrency": 1}}})
    store = MemoryStore()
    async with upstream() as door:
        reply = await answers(body(), policy, door, store)
        with pytest.raises(OverLimit) as refusal:
            await answers(body(), policy, door, store)
        assert b"x-ratelimit-limit-requests" in dict(refusal.value.headers())
        await reply.close()
        unknown = await answers(body(model="nobody"), policy, door, store)
        assert unknown.tier == ""
        assert unknown.limits.startswith(b"x-ratelimit-limit-requests: ")
        with pytest.raises(NotFound):
            await collected(unknown)
        await (await answers(body(), policy, door, store)).close()


async def test_an_answer_is_limited_and_paid_where_the_cache_holds_one_that_cannot_be_given(
    flash: Sim, pro: Sim
) -> None:
    plans = {"plans": {"usual": {"concurrency": 1}}}
    policy, fields = policy_for(flash, pro, callers=plans, caching={"ttl": "1m"}), body(temperature=0)
    store, request = MemoryStore(), asked(fields)
    await store.remember("ann", cache_key(request, policy) or b"", b"of a form that nobody can read", 60.0)
    async with upstream() as door:
        reply = await answers(fields, policy, door, store)
        with pytest.raises(OverLimit):
            await answers(body(), policy, door, store)
        assert b"flash-model" in await collected(reply)
        booked = [line for line in await store.ledger() if line.kind == "answer"]
        assert sum(line.requests for line in booked) == 1


@pytest.mark.parametrize("fields", [body("x"), body("x", stream=True)])
async def test_other_shapes_of_a_conversation_are_answered(flash: Sim, pro: Sim, fields: JSON) -> None:
    shapes: list[JSON] = [
        {"messages": [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "system", "content": "Be brief."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]}]},
    ]
    async with gateway(policy_for(flash, pro)) as gate:
        for shape in shapes:
            assert (await gate.ask({**fields, **shape})).status == 200
        for prompt in ("Say hi", ["one", "two"]):
            found = await gate.ask({"prompt": prompt, "stream": fields.get("stream", False)}, "/v1/completions")
            assert (found.status, found.headers["x-route-rule"]) == (200, "triaged")
        assert {entry["state"] for entry in flash.seen("triage")} == {"finished"}


async def test_where_every_tier_is_full_nothing_is_counted_and_a_remembered_answer_is_given(
    flash: Sim, pro: Sim
) -> None:
    full = {"limits": {"max_inflight": 1, "queue": 0}}
    plans = {"usual": {"requests_per_minute": 4, "may": []}}
    policy = policy_for(
        flash, pro, tiers={"flash": full}, callers={"plans": plans}, caching={"when": {"temperature": {"max": 0}}}
    )
    async with gateway(policy) as gate:
        assert (await gate.ask(body(temperature=0))).status == 200
        flash.config(stall_after=1)
        held = await gate.open(body(stream=True))
        await held.some()
        for _ in range(10):
            assert (await gate.ask(body())).status == 503, "not a 429: who is sent away has used nothing"
        assert (await gate.ask(body(temperature=0))).headers["x-route-cache"] == "hit"
        await held.leave()
        flash.config(stall_after=None)
        await eventually(lambda: gate.upstream.load()["flash"] == 0)
        answer = await gate.ask(body())
        assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, "0")
