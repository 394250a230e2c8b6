"""A candidate serves its part of the callers, and is compared with what was decided without it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.comparison import EXAMPLES, WAITING, Comparison
from gateway.explain import outcome
from gateway.facts import observe
from gateway.policy import Policy, PolicyError, load_policy, serving
from gateway.recorded import Record
from gateway.store import MemoryStore
from gateway.types import Decision, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, Gateway, asked, body, eventually, gateway
from tests.tiers import policy_text

VERDICT = Verdict("simple", 0.1)
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
    policy = on_trial(place, flash, pro, {"canary": 1.0, "shadow": 1.0}, rules=UP)
    async with gateway(policy, MemoryStore()) as gate:
        answer = await gate.ask(body())
        assert (answer.status, answer.headers["x-route-tier"]) == (200, "pro")
        assert answer.headers["x-route-policy"].startswith("next@")
        assert (await gate.ask(body(), "/v1/route")).json()["policy"]["name"] == "next"
        await eventually(lambda: gate.front.doors.comparison.served.total() == 1)
        assert gate.front.doors.comparison.served == {(200, "pro"): 1}
        assert compared(gate) == {}, "a candidate is not compared with itself"


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


async def test_decisions_that_pile_up_are_skipped_and_counted(place: Path, flash: Sim, pro: Sim) -> None:
    policy, told, differing = on_trial(place, flash, pro, {"shadow": 1.0}, rules=UP), list[str](), list[str]()
    assert policy.candidate
    comparison = Comparison(told.append, lambda *sides: differing.extend(sides))
    request = asked(body())
    facts = observe(request, policy, {})
    made = Decision(facts, VERDICT, outcome(facts, VERDICT, policy))  # type: ignore[arg-type]
    record = Record(request.id, request.path, 200, 0.1, 0.0, "", decision=made)
    for _ in range(WAITING + 7):
        comparison.saw(record, request, policy, policy.candidate)
    await comparison.close()
    assert comparison.compared == {"differs": WAITING, "skipped": 7} == Counter(told)
    assert differing == ["triaged", "flash", "up", "pro"] * WAITING
    ((_, examples),) = comparison.disagreements.items()
    assert examples == [request.id] * EXAMPLES


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
