"""The decision alone, and what became of an answer: over sockets, with simulated tiers."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from gateway.decisions import OUTCOMES, RATED, Ratings
from gateway.errors import BadRequest
from gateway.store import MemoryStore
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, PATIENCE, SIMPLE, Gateway, body, callers, eventually, gateway
from tests.tiers import JSON, policy_for

ROUTE, FEEDBACK = "/v1/route", "/v1/feedback"
KEY = "a-key-that-is-long-enough"
GOOD = {"quality": 1.0}


def judged(name: str, outcome: JSON) -> JSON:
    return {"request_id": name, "outcome": outcome}


def lines(gate: Gateway) -> list[JSON]:
    return [json.loads(line) for line in gate.front.doors.records.recent(100)]


async def test_the_decision_alone_is_the_one_that_an_answer_follows(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for text, tier in ((SIMPLE, "flash"), (COMPLEX, "pro")):
            flash.reset()
            alone = await gate.ask(body(text), ROUTE)
            told = alone.json()
            assert (alone.status, told["route"]["tier"], told["route"]["p"]) == (200, tier, 1.0)
            assert (len(flash.seen("triage")), flash.seen(), pro.seen()) == (1, [], [])
            after = (await gate.ask(body(text), x_route_explain="1")).json()["route"]
            assert after["verdict"]["source"] == "cache"
            assert told["verdict"]["margin"] == after["verdict"]["margin"]
            told["facts"] |= {"load": after["facts"]["load"], "chance": after["facts"]["chance"]}
            for part in ("policy", "facts", "rules", "route", "triaged", "sides", "instead", "cost"):
                assert told[part] == after[part]
        await eventually(lambda: len(lines(gate)) == 2)  # the answers' alone


async def test_a_decision_takes_a_completions_prompt_and_a_callers_wish(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        assert (await gate.ask({"prompt": SIMPLE}, ROUTE)).json()["route"]["tier"] == "flash"
        wish = (await gate.ask(body(SIMPLE), ROUTE, x_route_tier="pro")).json()
        assert (wish["route"]["reason"], wish["verdict"]) == ("asked for by header", None)


async def test_a_decision_alone_has_the_callers_id_at_the_server_too(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        alone = await gate.ask(body(), ROUTE, x_request_id="mine")
        assert (alone.status, alone.headers["x-request-id"]) == (200, "mine")
        assert flash.seen("triage")[0]["headers"]["x-request-id"].startswith("mine-triage")


async def test_a_decision_alone_is_counted_as_a_request_of_no_tier(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for fields in (body(), body(model="auto:best")):
            assert (await gate.ask(fields, ROUTE)).status == 200
        told = (await gate.get("/metrics")).data.decode()
        assert 'gateway_requests_total{status="200",tier="none"} 2.0' in told
        seconds = re.findall(r'request_duration_seconds_sum{.*original_model="(.+?)".*} (.+)', told)
        assert [(model, 0 < float(lasted) < PATIENCE) for model, lasted in seconds] == [
            ("auto", True),
            ("auto:best", True),
        ]


async def test_where_no_key_is_needed_no_page_of_another_site_may_ask_or_rate(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for path in (ROUTE, FEEDBACK):
            refused = await gate.ask(body(), path, origin="https://evil.example")
            assert (refused.status, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert (await gate.ask(body(), ROUTE, origin="http://localhost")).status == 200


async def test_the_room_that_a_large_body_took_is_given_back(flash: Sim, pro: Sim) -> None:
    large = body("word " * 20_000)
    async with gateway(policy_for(flash, pro), bodies=150_000) as gate:
        assert (await gate.ask(large, ROUTE)).status == 200
        assert not gate.front.doors.uploads._held


NO_REQUESTS = [
    (b"{", 400, "invalid_json"),
    (b"{}", 400, None),
    (json.dumps({"messages": []}).encode(), 400, None),
    (json.dumps({"prompt": "x", **body()}).encode(), 400, None),
    (json.dumps(body(model="nobody")).encode(), 404, "model_not_found"),
    (b"[" * 100_000, 400, None),
    (b'{"prompt": "' + b"x" * 200_000 + b'"}', 413, "request_too_large"),
]


async def test_what_is_no_request_is_refused(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), max_body=150_000) as gate:
        for data, status, code in NO_REQUESTS:
            answer = await gate.ask(data, ROUTE)
            assert (answer.status, answer.json()["error"]["code"]) == (status, code), data[:50]


async def test_a_decision_counts_as_a_request_and_in_no_share(flash: Sim, pro: Sim) -> None:
    plan = {"requests_per_minute": 3, "pro_share": {"max": 0.5}}
    store = MemoryStore()
    async with gateway(policy_for(flash, pro, callers={"plans": {"usual": plan}}), store) as gate:
        for _ in range(3):
            assert (await gate.ask(body(COMPLEX), ROUTE)).status == 200
        account = store._accounts["anonymous"]
        assert (account.asked, account.above, account.leases) == (0, 0, {})
        refused = await gate.ask(body(COMPLEX), ROUTE)
        assert (refused.status, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_who_asks_for_decisions_alone_pays_for_their_verdicts(flash: Sim, pro: Sim) -> None:
    plan = {"tokens_per_minute": 2000, "budget": {"usd": 1.0}}
    prices, store = {"flash": {"price": {"input_per_m": 1, "output_per_m": 1}}}, MemoryStore()
    rules: JSON = {"tiers": prices, "triage": {"strategy": "choice"}, "callers": {"plans": {"usual": plan}}}
    async with gateway(policy_for(flash, pro, **rules), store) as gate:
        assert (await gate.ask(body("word " * 1800), ROUTE)).status == 200
        (paid,) = await store.ledger()
        (asked,) = flash.seen("triage")
        assert (paid.kind, paid.prompt, paid.estimated) == ("answer", asked["prompt_tokens"], False)
        assert store._accounts["anonymous"].spent == paid.money > 0
        refused = await gate.ask(body("other " * 1800), ROUTE)
        assert (refused.status, "tokens" in refused.json()["error"]["message"]) == (429, True)


async def test_a_decision_is_what_is_left_of_the_budget(flash: Sim, pro: Sim) -> None:
    dear = {"price": {"input_per_m": 1000, "output_per_m": 1000}}
    callers = {"plans": {"usual": {"budget": {"usd": 0.01}}}}
    async with gateway(policy_for(flash, pro, tiers={"pro": dear}, callers=callers)) as gate:
        told = (await gate.ask(body(COMPLEX), ROUTE)).json()
        assert (told["route"]["tier"], told["route"]["reason"]) == ("flash", "budget")


async def test_who_leaves_before_the_decision_frees_the_classifier_and_its_own_place(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=60.0)
    alone = {"plans": {"usual": {"concurrency": 1}}}
    async with gateway(policy_for(flash, pro, triage={"timeout": "60s"}, callers=alone)) as gate:
        line = await gate.open(body(), ROUTE)
        await eventually(lambda: len(flash.seen("triage")) == 1)
        await line.leave()
        await eventually(lambda: [one["state"] for one in flash.seen("triage")] == ["aborted"])
        flash.reset()
        assert (await gate.ask(body(), ROUTE)).status == 200


async def test_a_caller_who_may_not_have_explanations_may_not_have_decisions(flash: Sim, pro: Sim) -> None:
    callers = {"plans": {"usual": {"explain": False}}}
    async with gateway(policy_for(flash, pro, callers=callers)) as gate:
        answer = await gate.ask(body(), ROUTE)
        assert (answer.status, answer.json()["error"]["code"]) == (403, "explain_not_allowed")
        assert flash.seen("triage") == []


async def test_both_paths_take_a_key_and_post_alone(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), everyone=False, api_key=KEY) as gate:
        for path in (ROUTE, FEEDBACK):
            assert (await gate.ask(body(), path)).status == 401
            assert (await gate.get(path, authorization=f"Bearer {KEY}")).status == 405
        told = (await gate.get("/openapi.json")).json()
        assert told["components"]["schemas"]["Feedback"]["required"] == ["request_id", "outcome"]
        assert {ROUTE, FEEDBACK} < told["paths"].keys()


async def test_an_outcome_is_attached_to_the_answer_of_the_same_caller(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    ann, bob = await callers(store, "ann", "bob")
    async with gateway(policy_for(flash, pro), store, everyone=False) as gate:
        answer = await gate.ask(body(), **ann)
        name = answer.headers["x-request-id"]
        await eventually(lambda: len(lines(gate)) == 1)
        tried = ((bob, name), (ann, name + "x"))
        asked = [gate.ask(judged(known, GOOD), FEEDBACK, **who) for who, known in tried]
        for refused in await asyncio.gather(*asked):
            assert (refused.status, refused.json()["error"]["code"]) == (404, "request_not_found")
        assert lines(gate)[0]["outcome"] is None
        taken = await gate.ask(judged(name, {"quality": 0.5, "tiers": {"pro": 1}}), FEEDBACK, **ann)
        assert (taken.status, taken.json()) == (200, {"request_id": name, "recorded": True})
        assert lines(gate)[0]["outcome"] == {"quality": 0.5, "tiers": {"pro": 1.0}}


async def test_an_answer_is_rated_ten_times_at_most_so_that_no_caller_pushes_others_decisions_out_of_the_records(
    flash: Sim, pro: Sim, tmp_path: Path
) -> None:
    file = tmp_path / "records"
    async with gateway(policy_for(flash, pro), records=file) as gate:
        first, other = [(await gate.ask(body())).headers["x-request-id"] for _ in range(2)]
        assert (await gate.ask(judged("unknown", GOOD), FEEDBACK)).status == 404
        asked = [gate.ask(judged(first, {"quality": at / 99}), FEEDBACK) for at in range(OUTCOMES + 5)]
        told = await asyncio.gather(*asked)
        assert sorted(one.status for one in told) == [200] * OUTCOMES + [400] * 5
        assert {one.json()["error"]["code"] for one in told if one.status == 400} == {"too_many_outcomes"}
        assert (await gate.ask(judged(other, GOOD), FEEDBACK)).status == 200
    assert len(file.read_bytes().splitlines()) == 2 + OUTCOMES + 1


def test_each_caller_has_ten_outcomes_of_its_own_and_older_answers_are_forgotten() -> None:
    ratings = Ratings()

    def rate(caller: str, name: str) -> None:
        with ratings.one(caller, name):
            pass

    for _ in range(OUTCOMES):
        rate("ann", "r")
    rate("bob", "r")
    with pytest.raises(BadRequest) as error:
        rate("ann", "r")
    assert error.value.param == "request_id"
    for at in range(RATED - 1):
        rate("ann", str(at))
    with pytest.raises(BadRequest):
        rate("ann", "r")
    for at in range(RATED):
        rate("ann", str(at))
    rate("ann", "r")


async def test_who_is_faster_than_the_record_of_an_answer_is_waited_for(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for at in range(20):
            await gate.ask(body(), x_request_id=f"r{at}")
            assert (await gate.ask(judged(f"r{at}", GOOD), FEEDBACK)).status == 200


async def test_an_outcome_counts_as_a_request(flash: Sim, pro: Sim) -> None:
    callers = {"plans": {"usual": {"requests_per_minute": 2}}}
    async with gateway(policy_for(flash, pro, callers=callers)) as gate:
        name = (await gate.ask(body())).headers["x-request-id"]
        told = [(await gate.ask(judged(name, GOOD), FEEDBACK)).status for _ in range(2)]
        assert told == [200, 429]


NO_OUTCOMES: list[JSON] = [
    {},
    {"quality": 1.5},
    {"quality": "good"},
    {"quality": True},
    {"quality": 1, "note": "the prompt was ..."},
    {"quality": 1, "source": "x" * 65},
    {"quality": 1, "source": "shadow"},
    {"quality": 1, "tiers": {"nobody": 1}},
    {"quality": 1, "tiers": {f"t{at}": 1 for at in range(9)}},
]


async def test_an_outcome_of_another_form_is_refused(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        answer = await gate.ask(body())
        name = answer.headers["x-request-id"]
        await eventually(lambda: len(lines(gate)) == 1)
        for outcome in NO_OUTCOMES:
            refused = await gate.ask(judged(name, outcome), FEEDBACK)
            assert (refused.status, refused.json()["error"]["type"]) == (400, "invalid_request_error"), outcome
        assert (await gate.ask(b"\xff", FEEDBACK)).status == 400
        assert (await gate.ask(judged("x" * 5000, GOOD), FEEDBACK)).status == 413


async def test_what_is_explored_is_recorded_with_its_chance(flash: Sim, pro: Sim) -> None:
    rules = [{"id": "triaged", "route": {"simple": "flash", "complex": "pro"}, "explore": 0.5}]
    async with gateway(policy_for(flash, pro, rules=rules)) as gate:
        answers = [await gate.ask(body()) for _ in range(40)]
        await eventually(lambda: len(lines(gate)) == 40)
        tiers = {answer.headers["x-route-tier"] for answer in answers}
        told = lines(gate)
    assert tiers == {"flash", "pro"}
    assert {line["route"]["p"] for line in told} == {0.5}
    assert {line["route"]["reason"] for line in told} == {"simple", "explored"}
