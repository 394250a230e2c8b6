import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from gateway.draft import RATE, Draft, drafting
from gateway.policy import Policy
from gateway.types import Ask, ChatRequest, Decision, Route
from gateway.upstream import Upstream
from gateway.upstream.waste import TOGETHER
from loadtest.servers import Sim
from tests.gateway.serving import ANN, COMPLEX, SIMPLE, asked, body, collected, eventually, gateway, upstream
from tests.tiers import JSON, policy_for

ASK, SIMPLY, HARD = Ask("r", "flash"), Route(("flash", "pro"), "r", "simple"), Route(("pro", "flash"), "r", "complex")


@contextlib.asynccontextmanager
async def held(request: ChatRequest, ask: Ask, policy: Policy, door: Upstream) -> AsyncIterator[Draft]:
    """A draft that starts, dropped at the end of the block unless it was taken."""
    draft = drafting(request, ask, policy, door)
    assert draft
    try:
        yield draft
    finally:
        await draft.drop()


async def test_a_draft_is_kept_when_the_verdict_is_simple(flash: Sim, pro: Sim) -> None:
    flash.config(only="triage", stall_first=0.2)
    async with gateway(policy_for(flash, pro)) as gate:
        answer = await gate.ask(body(SIMPLE, stream=True), x_route_explain="1")
        assert b'"draft":"kept"' in answer.data
        assert b"gateway_draft_won_seconds_count 1.0" in (await gate.get("/metrics")).data
        triage, draft = flash.seen("triage")[0], flash.seen()[0]
        assert draft["received_ms"] < triage["ended_ms"], "both were under way together"
        assert [entry["state"] for entry in flash.seen()] == ["finished"], "one answer, no second one"
        assert pro.state()["requests"] == []
        assert float(answer.headers["x-gateway-overhead-ms"]) < 200


async def test_a_draft_is_cancelled_when_the_verdict_is_complex(flash: Sim, pro: Sim) -> None:
    flash.config(only="answer", stall_after=2)
    pro.config(stall_first=0.5)
    async with gateway(policy_for(flash, pro)) as gate:
        answer = await gate.ask(body(COMPLEX, stream=True), x_route_explain="1")
        assert b'"draft":"wasted"' in answer.data
        assert answer.headers["x-route-tier"] == "pro"
        draft = flash.seen()[0]
        assert draft["state"] == "aborted"
        assert draft["ended_ms"] < pro.seen()[0]["received_ms"] + 100, "at once, not when Pro has answered"


async def test_nothing_of_a_draft_reaches_the_caller_before_the_verdict(flash: Sim, pro: Sim) -> None:
    flash.config(only="triage", stall_first=60.0)
    async with gateway(policy_for(flash, pro, triage={"timeout": "60s"})) as gate:
        line = await gate.open(body(SIMPLE, stream=True))
        await eventually(lambda: bool(flash.seen()) and flash.seen()[0]["state"] == "finished")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(line.reader.read(1), 0.1)
        await line.leave()


@pytest.mark.parametrize(
    ("speculate", "waiting", "drafted"), [("when_idle", 0, True), ("when_idle", 60, False), ("always", 60, True)]
)
async def test_no_draft_starts_while_a_tier_has_found_that_it_has_few_places(
    flash: Sim, pro: Sim, speculate: str, waiting: int, drafted: bool
) -> None:
    limits = {"limits": {"max_inflight": 4, "adaptive": True}}
    policy = policy_for(flash, pro, tiers={"flash": limits}, triage={"speculate": speculate})
    async with upstream() as door:
        places, known = door._placed("flash"), policy.tiers["flash"].limits
        for _ in range(4):
            assert places.free(known)
        queued = asyncio.create_task(places.take(known, 0, 1.0))
        await asyncio.sleep(0)
        places.told((4, waiting))
        for _ in range(4):
            places.give_back()
        await queued
        places.give_back()
        draft = drafting(asked(body()), ASK, policy, door)
        assert (draft is not None) is drafted
        if draft:
            await draft.drop()


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"status": 429}, {"cut_after": 0}])
async def test_a_draft_that_fails_while_triage_thinks_is_the_tiers_attempt(flash: Sim, pro: Sim, fault: JSON) -> None:
    flash.config(only="answer", **fault)
    async with gateway(policy_for(flash, pro)) as gate:
        for text in (SIMPLE, COMPLEX):
            flash._call("DELETE", "/admin/state")
            answer = await gate.ask(body(text, stream=True), x_route_explain="1")
            assert (answer.status, answer.headers["x-route-tier"]) == (200, "pro")
            assert b'"draft":"wasted"' in answer.data
            assert len(flash.seen()) <= 1, "Flash is not asked again"


async def test_a_failed_draft_is_told_when_the_policy_forbids_failover(flash: Sim, pro: Sim) -> None:
    flash.config(only="answer", status=500)
    async with gateway(policy_for(flash, pro, failover={"tiers": {"flash": []}})) as gate:
        answer = await gate.ask(body(SIMPLE))
        assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_failed")
        assert answer.headers["x-route-rule"] == "triaged"
        assert len(flash.seen()) == 1


async def test_a_finished_draft_that_nobody_takes_is_closed(flash: Sim, pro: Sim) -> None:
    async with upstream() as door:
        policy = policy_for(flash, pro)
        async with held(asked(body(stream=True)), ASK, policy, door) as draft:
            await eventually(lambda: flash.seen()[:1] != [] and flash.seen()[0]["state"] == "finished")
            await asyncio.sleep(0.05)
            assert door.load()["flash"] == 1
            assert await draft.take(HARD) is None
            assert door.load()["flash"] == 0
            assert draft.outcome == "wasted"
        async with held(asked(body(stream=True)), ASK, policy, door):
            await asyncio.sleep(0.1)
        assert door.load()["flash"] == 0, "nor when nobody asks for it"


async def test_a_taken_draft_is_its_takers_and_was_not_waited_for(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=0.2)
    async with upstream() as door:
        async with held(asked(body()), ASK, policy_for(flash, pro), door) as draft:
            await asyncio.sleep(0.3)
            started = time.perf_counter()
            reply = await draft.take(SIMPLY)
            assert reply is not None
            assert reply.waited <= time.perf_counter() - started
        assert (reply.tier, draft.outcome) == ("flash", "kept")
        assert b"flash-model" in await collected(reply)


async def test_a_kept_draft_won_what_went_by_before_it_was_taken(flash: Sim, pro: Sim) -> None:
    async with upstream() as door:

        async def taken(first: float, verdict: float, chosen: Route = SIMPLY) -> tuple[float, float]:
            """What was won, and how long the verdict and the draft took, whichever came sooner."""
            flash.config(stall_first=first)
            before, began, came = len(flash.seen()), time.perf_counter(), list[float]()
            async with held(asked(body()), ASK, policy_for(flash, pro), door) as draft:
                assert draft._task
                draft._task.add_done_callback(lambda _: came.append(time.perf_counter()))
                await eventually(lambda: len(flash.seen()) > before)
                await asyncio.sleep(verdict)
                at = time.perf_counter()
                reply = await draft.take(chosen)
            if reply:
                await reply.close()
            return draft.won, min(at, *came) - began

        for first, verdict in ((0.4, 0.1), (0.1, 0.4)):
            won, most = await taken(first, verdict)
            assert 0.1 <= won <= most
        assert (await taken(first=0.0, verdict=0.1, chosen=HARD))[0] == 0, "a dropped one wins nothing"
        flash.config(status=500)
        assert (await taken(first=0.0, verdict=0.05))[0] == 0, "nor one that failed, for which another tier answers"


EARLY = Ask("r", "flash", early="pro")


async def test_an_early_start_of_the_dear_tier_is_kept_when_the_verdict_says_complex(flash: Sim, pro: Sim) -> None:
    flash.config(only="triage", stall_first=0.2)
    rules = {"early": {"score": 0.5, "max_share": 1.0}}
    async with gateway(policy_for(flash, pro, triage=rules)) as gate:
        answer = await gate.ask(body(COMPLEX, stream=True), x_route_explain="1")
        assert (answer.headers["x-route-tier"], answer.headers["x-route-reason"]) == ("pro", "complex")
        assert b'"draft":"kept"' in answer.data
        assert pro.seen()[0]["received_ms"] < flash.seen("triage")[0]["ended_ms"], "both were under way together"
        assert (len(pro.seen()), flash.seen()) == (1, []), "in place of Flash's draft"


async def test_an_early_start_is_cancelled_and_counts_as_waste_when_the_verdict_says_simple(
    flash: Sim, pro: Sim
) -> None:
    flash.config(only="triage", verdict="wrong_label")
    pro.config(stall_after=2)
    price = {"pro": {"price": {"output_per_m": 1.0}}}
    rules = {"early": {"score": 0.5, "max_share": 1.0}}
    async with gateway(policy_for(flash, pro, triage=rules, tiers=price)) as gate:
        answer = await gate.ask(body(COMPLEX, stream=True), x_route_explain="1")
        assert answer.headers["x-route-tier"] == "flash"
        assert b'"draft":"wasted"' in answer.data
        assert b"pro-model" not in answer.data.partition(b'"policy"')[0]
        await eventually(lambda: [entry["state"] for entry in pro.seen()] == ["aborted"])
        assert len(flash.seen()) == 1
        metrics = (await gate.get("/metrics")).data
        assert b'gateway_drafts_total{outcome="wasted"} 1.0' in metrics
        assert b'gateway_cost_usd_total{kind="draft",tier="pro"}' in metrics


async def test_nothing_of_either_tier_starts_early_while_too_much_was_wasted(flash: Sim, pro: Sim) -> None:
    rules = {"early": {"max_share": 1.0}, "waste": {"max": 0.5}}
    async with upstream() as door:
        door.waste.add(ANN.id, wasted=10_000)
        assert drafting(asked(body()), EARLY, policy_for(flash, pro, triage=rules), door) is None


@pytest.mark.parametrize(
    ("ask", "inflight", "starts"),
    [
        (ASK, 1, True),
        (ASK, 2, False),
        (EARLY, 2, True),
        (EARLY, 3, False),
        (Ask("r", None), 0, False),
    ],
)
async def test_an_adaptive_tier_keeps_a_quarter_of_its_places_for_answers_that_are_needed(
    flash: Sim, pro: Sim, ask: Ask, inflight: int, starts: bool
) -> None:
    limits = {"limits": {"max_inflight": 4, "adaptive": True}}
    triage: JSON = {"speculate": "when_idle", "early": {"max_share": 1.0}}
    policy = policy_for(flash, pro, tiers={"flash": limits, "pro": limits}, triage=triage)
    async with upstream() as door:
        taken = [door._placed(tier) for tier in ("flash", "pro")] * inflight
        assert all(places.free(policy.tiers["flash"].limits) for places in taken)
        draft = drafting(asked(body()), ask, policy, door)
        assert (draft is not None) is starts
        if draft:
            await draft.drop()
        for places in taken:
            places.give_back()


async def test_above_its_share_the_draft_is_the_ordinary_one(flash: Sim, pro: Sim) -> None:
    async with upstream() as door:
        policy = policy_for(flash, pro, triage={"early": {"max_share": 0.0}})
        async with held(asked(body()), EARLY, policy, door) as draft:
            reply = await draft.take(SIMPLY)
        assert reply is not None
        assert b"flash-model" in await collected(reply)
    assert pro.seen() == []


async def test_leaving_while_the_draft_is_awaited_stops_it(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=30.0)
    async with upstream() as door:

        async def serve() -> None:
            async with held(asked(body()), ASK, policy_for(flash, pro), door) as draft:
                await draft.take(SIMPLY)

        task = asyncio.create_task(serve())
        await eventually(lambda: bool(flash.seen()))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await eventually(lambda: flash.seen()[0]["state"] == "aborted")


async def test_cancelling_at_any_moment_leaks_nothing(flash: Sim, pro: Sim) -> None:
    async with upstream() as door:
        policy = policy_for(flash, pro)

        async def serve(route: Route) -> None:
            async with held(asked(body(stream=True)), ASK, policy, door) as draft:
                await asyncio.sleep(0.002)
                reply = await draft.take(route) or await door.send(asked(body(stream=True)), route, policy)
                reply.decided(Decision(None, None, route))  # type: ignore[arg-type]
            await reply.close()

        for turns in range(60):
            task = asyncio.create_task(serve((SIMPLY, HARD)[turns % 2]))
            for _ in range(turns):
                await asyncio.sleep(0.0002)
            task.cancel()
            await asyncio.wait([task])
        assert not any(door.load().values())


async def test_without_a_tier_to_draft_on_there_is_none(flash: Sim, pro: Sim) -> None:
    async with upstream() as door:
        assert drafting(asked(body()), Ask("r", None), policy_for(flash, pro), door) is None
        await asyncio.sleep(0.1)
        assert flash.state()["requests"] == []


async def test_drafts_stop_while_too_much_of_them_was_wasted(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, triage={"waste": {"max": 0.5}})) as gate:

        async def drafted(text: str) -> str:
            told: str = (await gate.ask(body(text), x_route_explain="1")).json()["route"]["draft"]
            return told

        waste = gate.upstream.waste
        assert await drafted(SIMPLE) == "kept"
        waste.add("anonymous", wasted=10_000)
        assert await drafted(SIMPLE + "!") == "none"
        waste.add("anonymous", kept=20_000)
        assert await drafted(COMPLEX) == "wasted"
        metrics = (await gate.get("/metrics")).data.decode()
        (kept,) = re.findall(r'gateway_draft_tokens_total{outcome="kept"} ([0-9.]+)', metrics)
        assert float(kept) > 0
        assert 'gateway_draft_tokens_total{outcome="wasted"}' in metrics


async def test_a_caller_whose_drafts_come_to_nothing_takes_none_from_others(flash: Sim, pro: Sim) -> None:
    policy, bob = policy_for(flash, pro, triage={"waste": {"max": 0.2}}), replace(ANN, id="bob")
    async with upstream() as door:
        door.waste.add(ANN.id, wasted=600)
        door.waste.add(bob.id, kept=600)
        assert drafting(asked(body()), ASK, policy, door) is None
        async with held(asked(body(), caller=bob), ASK, policy, door):
            pass


async def test_a_kept_drafts_tokens_count_once_and_of_a_dropped_json_answer_the_time_it_ran(
    flash: Sim, pro: Sim
) -> None:
    async with upstream() as door:
        policy = policy_for(flash, pro)
        async with held(asked(body(max_tokens=20)), ASK, policy, door) as draft:
            reply = await draft.take(SIMPLY)
        assert reply is not None
        await collected(reply)
        await reply.close()
        kept = reply.usage.completion
        assert kept
        (ann, together) = (door.waste._tallies[name] for name in (ANN.id, TOGETHER))
        assert ann.kept == together.kept == pytest.approx(kept, rel=0.01)
        flash.config(stall_first=30.0)
        started = time.perf_counter()
        async with held(asked(body()), ASK, policy, door) as draft:
            await asyncio.sleep(0.1)
        assert 10 <= draft.wasted <= RATE * (time.perf_counter() - started) + 1
        assert ann.wasted == together.wasted == pytest.approx(draft.wasted, rel=0.01)


@pytest.mark.parametrize("stream", [True, False])
async def test_metric_budget_and_ledger_tell_what_the_server_made_of_a_dropped_draft(
    flash: Sim, pro: Sim, stream: bool
) -> None:
    flash.config(only="triage", stall_first=0.5)
    async with gateway(policy_for(flash, pro)) as gate:
        answer = await gate.ask(body(COMPLEX, stream=stream, max_tokens=30), x_route_explain="1")
        assert b'"draft":"wasted"' in answer.data
        (draft,) = flash.seen()
        assert (draft["state"], draft["tokens"]) == ("finished", 30), "all of it came before the verdict"
        metrics = (await gate.get("/metrics")).data.decode()
        assert 'gateway_draft_tokens_total{outcome="wasted"} 30.0' in metrics
        assert gate.upstream.waste._tallies[TOGETHER].wasted == pytest.approx(30, rel=0.01)
        (line,) = [line for line in await gate.front.doors.store.ledger() if line.kind == "draft"]
        assert (line.completion, line.estimated) == (30, False)


async def test_of_a_stream_that_is_dropped_what_came_was_made(flash: Sim, pro: Sim) -> None:
    flash.config(stall_after=40)
    async with upstream() as door:
        request = asked(body(COMPLEX, stream=True))
        async with held(request, ASK, policy_for(flash, pro), door) as draft:
            await eventually(lambda: bool(flash.seen()) and flash.seen()[0]["tokens"] >= 39)
            await asyncio.sleep(0.05)
        assert 30 <= draft.wasted <= 42, "an event each, the last ones may be on their way"
        assert request.bills[0].usage.tokens == draft.wasted


@pytest.mark.parametrize("stream", [True, False])
async def test_a_draft_that_its_server_refuses_wastes_nothing(flash: Sim, pro: Sim, stream: bool) -> None:
    flash.config(status=503)
    async with upstream() as door:
        async with held(asked(body(stream=stream)), ASK, policy_for(flash, pro), door) as draft:
            assert draft._task
            await asyncio.wait([draft._task])
            await asyncio.sleep(0.05)
        assert draft.wasted == 0


async def test_a_stream_that_has_not_begun_wastes_nothing(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=30.0)
    async with upstream() as door:
        async with held(asked(body(stream=True)), ASK, policy_for(flash, pro), door) as draft:
            await eventually(lambda: bool(flash.seen()))
        assert (draft.outcome, draft.wasted) == ("wasted", 0)
        assert door.load()["flash"] == 0, "its place is free before anybody goes on"
