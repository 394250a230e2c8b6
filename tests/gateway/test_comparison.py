"""A candidate serves its part of the callers, and is compared with what was decided without it."""

import asyncio
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_facts

from gateway.comparison import EXAMPLES, MOST, WAITING, Comparison, Due, Side, sides
from gateway.explain import try_route
from gateway.facts import observe
from gateway.policy import Policy, PolicyError, load_policy, serving
from gateway.recorded import Record
from gateway.reply import NOBODY
from gateway.store import MemoryStore
from gateway.types import ChatRequest, Decision, Route, Session, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, Gateway, asked, body, eventually, gateway
from tests.tiers import policy_for, policy_text

VERDICT = Verdict("simple", 0.1)
TRIAGED = {"simple": "flash", "complex": "pro"}
UP = [{"id": "up", "route": "pro"}]
CALLERS = [f"caller-{at}" for at in range(2000)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts that are given without a file name other files relative to here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_trial(place: Path, flash: Sim, pro: Sim, parts: dict[str, float], **changes: Any) -> Policy:
    """A policy with a candidate that has these changes, and serves or is compared with these parts."""
    (place / "next.yaml").write_text(policy_text(flash, pro, **{"name": "next", **changes}))
    return load_policy(policy_text(flash, pro, candidate={"policy": "next.yaml", **parts}))


def no(*_: str) -> None:
    """Hears nothing."""


def compared(gate: Gateway) -> dict[str, int]:
    return dict(gate.front.doors.comparison.compared)


def test_a_caller_stays_on_its_side_and_a_larger_part_takes_more_callers(place: Path, flash: Sim, pro: Sim) -> None:
    def served(part: float) -> set[str]:
        policy = on_trial(place, flash, pro, {"canary": part})
        return {caller for caller in CALLERS if serving(caller, policy).name == "next"}

    none, some, more, all_ = map(served, (0.0, 0.1, 0.3, 1.0))
    assert (none, all_) == (set(), set(CALLERS))
    assert some < more
    assert 0.07 < len(some) / len(CALLERS) < 0.13
    assert {"caller-0", "caller-100"} < some, "what every process says"


async def test_whom_the_candidate_serves_has_its_answers_headers_and_decisions(
    place: Path, flash: Sim, pro: Sim
) -> None:
    plan = {"plans": {"usual": {"concurrency": 3, "min_tier": "pro"}}}
    policy = on_trial(place, flash, pro, {"canary": 1.0, "shadow": 1.0}, rules=UP, callers=plan)
    async with gateway(policy, MemoryStore()) as gate:
        assert [one["id"] for one in (await gate.get("/v1/models")).json()["data"]] == ["auto", "pro"]
        key = (await gate.get("/v1/key")).json()
        assert (key["models"], key["concurrency"]) == (["auto", "pro"], 3)
        answer = await gate.ask(body())
        assert (answer.status, answer.headers["x-route-tier"]) == (200, "pro")
        assert answer.headers["x-route-policy"].startswith("next@")
        assert (await gate.ask(body(), "/v1/route")).json()["policy"]["name"] == "next"
        await gate.ask(body())
        await gate.ask(body(model="unheard of"))
        await eventually(lambda: gate.front.doors.comparison.served.total() == 3)
        assert gate.front.doors.comparison.served == {(200, "pro"): 2, (404, NOBODY): 1}
        metrics = (await gate.get("/metrics")).data.decode()
        counted = re.findall(r"^gateway_canary_requests_total{(.*)$", metrics, re.MULTILINE)
        assert counted == ['status="200",tier="pro"} 2.0', 'status="404",tier="none"} 1.0']
        assert compared(gate) == {}, "a candidate is not compared with itself"


async def test_whom_the_candidate_serves_has_spent_what_it_spent_also_after_it_rates_an_answer(
    place: Path, flash: Sim, pro: Sim
) -> None:
    tiers = {name: {"price": {"input_per_m": 1.0, "output_per_m": 1.0}} for name in ("flash", "pro")}
    callers = {"plans": {"usual": {"budget": {"usd": 1.0}}}}  # which the policy in force has not
    async with gateway(on_trial(place, flash, pro, {"canary": 1.0}, tiers=tiers, callers=callers)) as gate:
        answer = await gate.ask(body())
        used = (await gate.get("/v1/key")).json()["budget"]["used"]
        rating = {"request_id": answer.headers["x-request-id"], "outcome": {"quality": 1.0}}
        assert (await gate.ask(rating, "/v1/feedback")).status == 200
        assert (await gate.get("/v1/key")).json()["budget"]["used"] == used > 0


@pytest.mark.parametrize(
    ("changes", "text", "came"),
    [
        ({}, COMPLEX, "same"),
        ({"rules": UP}, COMPLEX, "same"),
        ({"rules": UP}, "Why?", "differs"),
        ({"triage": {"threshold": 0.0}}, "Why?", "differs"),
        ({"triage": {"prompt": "intent.v1"}}, "Why?", "undecided"),
        ({"signals": {"why": "(?i)why"}, "rules": [{"id": "why", "when": {"signals": ["why"]}, "route": "pro"}, *UP]},
         "Why?", "differs"),
        ({"tiers": {"pro": {"can": {"chat": False}}}, "rules": UP}, "Why?", "same"),
    ],
)  # fmt: skip
async def test_a_decision_is_compared_by_its_own_verdict_and_with_the_facts_that_the_candidate_looks_at(
    place: Path, flash: Sim, pro: Sim, changes: dict[str, Any], text: str, came: str
) -> None:
    policy = on_trial(place, flash, pro, {"shadow": 1.0}, **changes)
    async with gateway(policy, MemoryStore()) as gate:
        before = len(flash.seen("triage"))
        assert (await gate.ask(body(text))).headers["x-route-policy"].startswith("test@")
        assert (await gate.ask(body(model="unheard of"))).status == 404
        await eventually(lambda: compared(gate) != {})
        assert compared(gate) == {came: 1}
        assert len(flash.seen("triage")) == before + 1, "nobody is asked for the candidate's sake"


async def test_a_candidate_that_would_refuse_differs_by_the_refusal(place: Path, flash: Sim, pro: Sim) -> None:
    alone = {"tiers": {"pro": None}, "failover": None, "rules": [{"id": "x", "route": "flash"}]}
    policy = on_trial(place, flash, pro, {"shadow": 1.0}, **alone, callers={"plans": {"usual": {"may": []}}})
    async with gateway(policy, MemoryStore()) as gate:
        assert (await gate.ask(body(model="pro"))).status == 200
        await eventually(lambda: compared(gate) == {"differs": 1})
        ((_, there),) = gate.front.doors.comparison.counts
        assert there == ("model_not_found", "refused")


def made(request: ChatRequest, policy: Policy, **known: Any) -> Decision:
    facts = replace_facts(observe(request, policy, {}), **known)
    found = try_route(facts, VERDICT, policy)
    assert isinstance(found, Route)
    return Decision(facts, VERDICT, found)


def ended(request: ChatRequest, decision: Decision | None) -> Record:
    return Record(request.id, request.path, 200, 0.1, 0.0, "", decision=decision)


@pytest.mark.parametrize(
    ("when", "known"),
    [
        ({"budget_used": {"min": 0.5}}, {"budget_used": 0.7}),
        ({"session": {"tier": "pro"}}, {"session": Session("pro", "pro", 1.0, 1)}),
        ({"load": {"flash": {"inflight": {"min": 3}}}}, {"load": {"flash": 3}}),
        ({"load": {"flash": {"waiting": {"min": 3}}}}, {"waiting": {"flash": 3}}),
    ],
)
def test_both_sides_decide_in_the_same_state_and_neither_explores(
    flash: Sim, pro: Sim, when: dict[str, Any], known: dict[str, Any]
) -> None:
    rules = [{"id": "when", "when": when, "route": "pro"}, {"id": "triaged", "route": TRIAGED, "explore": 0.5}]
    policy = policy_for(flash, pro, rules=rules, sessions={"key": ["prefix"]})
    request = asked(body())
    due = [Due(request, made(request, policy, chance=0.0, **more), policy) for more in ({}, known)]
    assert [sides(one, policy) for one in due] == [(Side("triaged", "flash"),) * 2, (Side("when", "pro"),) * 2]


async def test_decisions_that_pile_up_are_skipped_and_counted(place: Path, flash: Sim, pro: Sim) -> None:
    policy, told, differing = on_trial(place, flash, pro, {"shadow": 1.0}, rules=UP), list[str](), list[str]()
    assert policy.candidate
    comparison = Comparison(told.append, lambda *sides: differing.extend(sides), no)
    requests = [asked(body()) for _ in range(WAITING + 7)]
    for request in requests:
        comparison.saw(ended(request, made(request, policy)), request, policy, policy.candidate)
    for _ in range(3):
        await asyncio.sleep(0)
    assert comparison.compared["differs"] < WAITING, "answers go first"
    await comparison.close()
    assert comparison.compared == {"differs": WAITING, "skipped": 7} == Counter(told)
    assert differing == ["triaged", "flash", "up", "pro"] * WAITING
    ((_, examples),) = comparison.disagreements.items()
    assert examples == [request.id for request in requests[WAITING - 1 : WAITING - 1 - EXAMPLES : -1]], "the newest"


async def test_what_nobody_decided_or_drew_is_not_compared_and_each_candidate_starts_over(
    place: Path, flash: Sim, pro: Sim
) -> None:
    policy = on_trial(place, flash, pro, {"shadow": 1.0}, rules=UP)
    assert policy.candidate
    candidate, request, told = policy.candidate, asked(body()), list[str]()
    decided = ended(request, made(request, policy))
    comparison = Comparison(told.append, no, no)
    for record, of in ((ended(request, None), request), (decided, None), (decided, request)):
        comparison.saw(record, of, policy, candidate)
    await comparison.close()
    assert comparison.compared == {"differs": 1}
    assert comparison.counts.keys() == {(Side("triaged", "flash"), Side("up", "pro"))}
    comparison.counts = Counter({(Side("", str(at)), Side("", "")): 1 for at in range(MOST)})
    comparison.saw(decided, request, policy, candidate)
    await comparison.close()
    assert (comparison.compared["differs"], len(comparison.counts)) == (2, MOST)
    silent = replace(candidate, shadow=0.0)
    comparison.saw(decided, request, policy, candidate)
    comparison.saw(decided, request, replace(policy, candidate=silent), silent)
    await comparison.close()
    assert [*comparison.compared, *comparison.counts, *comparison.disagreements] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "candidate.policy: cannot be read: No such file"),
        ("schema: 1", "next.yaml:1:1: tiers: missing"),
        ({"candidate": {"policy": "next.yaml"}}, "candidate: a candidate has none of its own"),
        ({"callers": {"plans": {"usual": None, "other": {}}, "default": {"plan": "other"}}}, "it lacks usual"),
    ],
)
def test_a_candidate_that_cannot_be_one_is_refused_with_the_policy_that_names_it(
    place: Path, flash: Sim, pro: Sim, text: str | dict[str, Any] | None, told: str
) -> None:
    if text is not None:
        (place / "next.yaml").write_text(text if isinstance(text, str) else policy_text(flash, pro, **text))
    with pytest.raises(PolicyError) as found:
        load_policy(policy_text(flash, pro, candidate={"policy": "next.yaml"}))
    assert told in str(found.value)
    assert json.dumps(str(found.value)).count("next.yaml") <= 2
