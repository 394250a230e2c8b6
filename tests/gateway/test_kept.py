"""What is kept of a decision, and the line that becomes of it."""

import gc
import json

from msgspec.structs import replace

from gateway.kept import seen, to_keep
from gateway.recorded import Record
from gateway.types import Caller, Decision, Facts, Route
from loadtest.servers import Sim
from tests.tiers import policy_for

ANN = Caller("k1", "ann", "default", "")
LOCAL = Sim("http://127.0.0.1:1", "m")
POLICY = policy_for(LOCAL, LOCAL)
DECISION = Decision(Facts("auto", "ann", "default"), None, Route(("flash",), "all", "rule"))
RECORD = Record("r", "/v1/chat/completions", 200, 1.0, None, "p", caller=ANN, tier="flash", decision=DECISION)


def test_a_classifier_that_skips_experts_is_asked_another_question() -> None:
    asked = [seen(policy_for(LOCAL, LOCAL, tiers={"flash": tier})).question for tier in ({}, {"skips": "top3"})]
    assert asked[1] == f"{asked[0]} top3"


def test_a_line_tells_how_an_answer_ended_and_how_long_it_took() -> None:
    record = replace(RECORD, status=499, ttft=0.5)
    line = json.loads(to_keep(record, ANN, DECISION, POLICY).line())
    assert [line[name] for name in ("status", "seconds", "ttft", "policy")] == [499, 1.0, 0.5, "p"]


def test_what_is_kept_of_each_answer_is_nothing_for_the_garbage_collector_to_look_through() -> None:
    kept = to_keep(RECORD, ANN, DECISION, POLICY)
    assert not any(map(gc.is_tracked, (RECORD, kept, kept.decision, kept.decision.facts)))


def test_a_decision_that_no_chance_made_has_a_propensity_of_one_and_no_chances() -> None:
    assert json.loads(to_keep(RECORD, ANN, DECISION, POLICY).line())["route"] == (
        {"tier": "flash", "p": 1.0, "tiers": ["flash"], "rule": "all", "reason": "rule", "chances": {}}
    )
