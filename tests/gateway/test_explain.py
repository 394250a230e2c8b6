"""Why a request goes where it goes: every rule, both sides of the threshold, and what it would cost."""

import json
from typing import Any

import pytest

from gateway.explain import explain as explained
from gateway.policy import load_policy
from gateway.types import Facts, Session, Verdict

SOURCE = """\
schema: 1
name: house
tiers:
  flash: {model: m/flash, replicas: ["http://h"], price: {input_per_m: 1.0, output_per_m: 2.0}}
  pro: {model: m/pro, replicas: ["http://h"], price: {input_per_m: 10.0, output_per_m: 20.0}}
signals: {sql: select}
rules:
  - {id: tiny, when: {characters: {max: 24}, tools: false}, route: flash}
  - {id: sql, when: {signals: [sql]}, route: pro}
  - {id: loaded, when: {load: {pro: {inflight: {min: 9}}}}, route: flash}
  - {id: phase, when: {header: {x-phase: [plan, act]}}, route: pro}
  - {id: others, when: {caller: {plan: {not: [gold, silver]}}}, route: flash}
  - {id: alice, when: {caller: {name: alice}}, route: flash}
  - {id: bands, when: {model: bands}, route: {p_complex: {"<0.4": flash, else: pro}}}
  - {id: triaged, route: {simple: flash, complex: pro}}
callers: {default: {plan: gold}, plans: {gold: {may: [pro]}, silver: {}, batch: {}}}
"""
POLICY = load_policy(SOURCE, {})


def explain(*given: Any) -> Any:
    """The explanation, of which a test knows what is there."""
    return explained(*given)


def facts(**given: Any) -> Facts:
    values: dict[str, Any] = {
        "model": "auto",
        "caller": "bob",
        "plan": "gold",
        "characters": 100,
        "context": 1000,
    } | given
    return Facts(**values)


def test_every_rule_says_whether_it_matched_and_why_not() -> None:
    found = explain(facts(), None, POLICY)["rules"]
    assert [(rule["id"], rule["why"]) for rule in found] == [
        ("tiny", "characters is 100, wanted max 24"),
        ("sql", "signals is none, wanted sql"),
        ("loaded", "load.pro.inflight is 0, wanted min 9"),
        ("phase", "header.x-phase is not given, wanted plan or act"),
        ("others", "caller.plan is gold, wanted not gold or silver"),
        ("alice", "caller.name is bob, wanted alice"),
        ("bands", "model is auto, wanted bands"),
        ("triaged", None),
    ]
    assert [rule["decides"] for rule in found] == [rule["matched"] for rule in found] == [False] * 7 + [True]


def test_the_first_matcher_that_fails_is_told() -> None:
    assert explain(facts(tools=True), None, POLICY)["rules"][0]["why"] == "tools is true, wanted false"


def test_only_one_rule_decides_and_none_when_the_caller_wishes() -> None:
    both = facts(characters=3, signals=frozenset({"sql"}))
    assert [rule["id"] for rule in explain(both, None, POLICY)["rules"] if rule["decides"]] == ["tiny"]
    wish = explain(facts(wish="pro", wished_by="name"), None, POLICY)
    assert not any(rule["decides"] for rule in wish["rules"])
    assert wish["route"] == {
        "tier": "pro",
        "tiers": ["pro"],
        "rule": "caller",
        "reason": "asked for by name",
        "p": 1.0,
    }


def test_the_verdict_comes_with_threshold_and_margin() -> None:
    said = Verdict("complex", 0.8, seconds=0.2, cut=True, strategy="json", prompt="intent.v1")
    found = explain(facts(), said, POLICY)
    assert (found["triaged"], found["route"]["tier"]) == (True, "pro")
    assert found["verdict"] == {
        "label": "complex",
        "p_complex": 0.8,
        "raw": 0.8,
        "source": said.source,
        "reason": said.reason,
        "seconds": 0.2,
        "cut": True,
        "strategy": "json",
        "prompt": "intent.v1",
        "side": "complex",
        "threshold": 0.5,
        "margin": 0.3,
    }


@pytest.mark.parametrize(
    ("verdict", "side", "margin"),
    [
        (Verdict("simple", 0.3), "<0.4", -0.1),
        (Verdict("simple", 0.4), "else", 0.0),
        (Verdict("complex", None), "else", None),
        (Verdict(None, None, "parse"), None, None),
    ],
)
def test_a_verdict_in_bands_comes_with_its_band_and_how_far_the_edge_is(
    verdict: Verdict, side: str | None, margin: float | None
) -> None:
    found = explain(facts(model="bands"), verdict, POLICY)["verdict"]
    assert (found["side"], found["threshold"], found["margin"]) == (side, 0.4, margin)


@pytest.mark.parametrize(
    ("p_complex", "threshold", "margin", "other"),
    [(0.1, 0.4, -0.3, "<0.7"), (0.45, 0.4, 0.05, "<0.4"), (0.65, 0.7, -0.05, "else"), (0.9, 0.7, 0.2, "<0.7")],
)
def test_of_several_edges_the_nearest_is_told_and_where_its_other_side_leads(
    p_complex: float, threshold: float, margin: float, other: str
) -> None:
    three = load_policy(SOURCE.replace('"<0.4": flash, else: pro', '"<0.4": flash, "<0.7": pro, else: pro'), {})
    found = explain(facts(model="bands"), Verdict("complex", p_complex), three)
    assert (found["verdict"]["threshold"], found["verdict"]["margin"]) == (threshold, margin)
    assert found["instead"]["side"] == other


def test_both_sides_of_the_threshold_are_told() -> None:
    found = explain(facts(), Verdict("complex", 0.8), POLICY)["sides"]
    assert (found["simple"]["tier"], found["simple"]["reason"]) == ("flash", "simple")
    assert (found["complex"]["tier"], found["complex"]["reason"]) == ("pro", "complex")
    assert found["otherwise"]["timeout"] == {
        "tier": "flash",
        "tiers": ["flash"],
        "rule": "triaged",
        "reason": "timeout",
        "p": 1.0,
    }


def test_each_band_is_told() -> None:
    found = explain(facts(model="bands"), None, POLICY)["sides"]
    assert (found["<0.4"]["tier"], found["else"]["tier"]) == ("flash", "pro")


def test_a_side_from_which_the_session_holds_the_request_is_told_as_the_tier_that_would_answer() -> None:
    text = SOURCE.replace("  pro: {", "  think: {extends: flash}\n  pro: {") + "sessions: {stay: until_escalated}\n"
    kept = facts(session=Session("think", "think", turns=1))
    found = explain(kept, Verdict("simple", 0.2), load_policy(text, {}))
    assert found["sides"]["simple"] == found["route"]
    assert (found["route"]["tier"], found["route"]["reason"]) == ("think", "session")
    assert found["sides"]["complex"]["tier"] == "pro"


def test_without_a_question_there_are_no_sides_and_no_verdict() -> None:
    found = explain(facts(characters=2), Verdict("complex", 0.8), POLICY)
    assert (found["triaged"], found["sides"], found["verdict"]) == (False, None, None)


def test_without_a_verdict_the_route_is_an_ask() -> None:
    assert explain(facts(), None, POLICY)["route"] == {"ask": "triaged", "draft": "flash"}


def test_a_refusal_is_part_of_the_answer() -> None:
    found = explain(facts(plan="silver", wish="pro", wished_by="name"), None, POLICY)["route"]
    assert found == {"refused": "Plan silver may not use tier pro; the highest it may use is flash.", "status": 403}


def test_cost_is_told_for_every_tier_with_what_it_assumes() -> None:
    found = explain(facts(), None, POLICY)["cost"]
    assert found["usd"] == {"flash": 0.002, "pro": 0.02}
    assert (found["output_tokens"], found["output_tokens_from"]) == (500, "assumed")
    found = explain(facts(max_tokens=100), None, POLICY)["cost"]
    assert found["usd"]["flash"] == pytest.approx(0.0012)
    assert found["output_tokens_from"] == "max_tokens"


def test_the_whole_is_json() -> None:
    seen: dict[str, Any] = {"headers": {"x-phase": "a"}, "load": {"pro": 1}, "waiting": {"pro": 2}}
    held = Session("flash", "flash", 1.5, 2)
    found = explain(facts(signals=frozenset({"sql", "maths"}), session=held, **seen), Verdict(None, None, "x"), POLICY)
    assert json.loads(json.dumps(found)) == found
    assert found["policy"] == POLICY.told()
    told = {"model": "auto", "caller": "bob", "context": 1000, "signals": ["maths", "sql"], **seen}
    told |= {"session": {"tier": "flash", "level": "flash", "age": 1.5, "turns": 2, "continues": False}}
    assert found["facts"].items() >= told.items()
    assert {"score", "measures"}.isdisjoint(found["facts"]), "what it says stands beside them"


def test_the_other_side_of_the_threshold_is_told_with_what_it_costs_more() -> None:
    found = explain(facts(), Verdict("complex", 0.6), POLICY)
    assert found["instead"] == {"side": "simple", "tier": "flash", "usd": 0.002, "usd_more": pytest.approx(-0.018)}
    found = explain(facts(), Verdict("simple", 0.1), POLICY)
    assert found["instead"] == {"side": "complex", "tier": "pro", "usd": 0.02, "usd_more": pytest.approx(0.018)}


def test_a_margin_is_to_the_nearest_edge_of_the_bands() -> None:
    found = explain(facts(model="bands"), Verdict("complex", 0.7), POLICY)
    assert (found["verdict"]["threshold"], found["verdict"]["margin"]) == (0.4, pytest.approx(0.3))
    assert found["instead"]["side"] == "<0.4"


@pytest.mark.parametrize("verdict", [None, Verdict("complex", None), Verdict(None, None, "parse")])
def test_without_a_probability_there_is_no_other_side(verdict: Verdict | None) -> None:
    assert explain(facts(), verdict, POLICY)["instead"] is None


def test_a_route_that_chance_chose_says_how_likely_it_was_and_the_sides_stay_as_they_are() -> None:
    text = "{id: triaged, route: {simple: flash, complex: pro}"
    local = "triage: {otherwise: {timeout: local}}\n"
    exploring = load_policy(SOURCE.replace(text, text + ", explore: 0.1") + local, {})
    found = explain(facts(chance=0.0, score=0.1), Verdict("simple", 0.2), exploring)
    assert (found["route"]["tier"], found["route"]["reason"], found["route"]["p"]) == ("pro", "explored", 0.1)
    assert (found["sides"]["simple"]["tier"], found["sides"]["complex"]["tier"]) == ("flash", "pro")
    assert found["sides"]["otherwise"]["timeout"]["tier"] == "flash"


def test_the_score_is_told_with_its_reasons_and_rules_that_look_at_it_say_so() -> None:
    text = SOURCE.replace("  - {id: triaged", "  - {id: hard, when: {score: {min: 0.8}}, route: pro}\n  - {id: triaged")
    policy = load_policy(text, {})
    found = explain(facts(score=0.7500125, measures={"maths": 0.5, "short": 0.25, "code": 0.0}), None, policy)
    assert found["score"] == {"value": 0.7500125, "reasons": ["maths", "-short"]}
    assert [rule["why"] for rule in found["rules"] if rule["id"] == "hard"] == ["score is 0.75, wanted min 0.8"]
    assert explain(facts(score=0.8), None, policy)["route"]["rule"] == "hard"
    unknown = explain(facts(), None, policy)
    assert (unknown["score"], unknown["route"]) == (None, {"ask": "triaged", "draft": "flash"})
    assert [rule["why"] for rule in unknown["rules"] if rule["id"] == "hard"] == ["score is not given, wanted min 0.8"]


def test_a_verdict_that_the_score_stands_in_for_says_so() -> None:
    policy = load_policy(SOURCE + "triage: {otherwise: {timeout: local}}\n", {})
    found = explain(facts(score=0.75), Verdict(None, None, "timeout"), policy)
    said = {key: found["verdict"][key] for key in ("label", "p_complex", "raw", "source", "reason", "side", "margin")}
    wanted = {"label": "complex", "p_complex": 0.75, "raw": None, "source": "local", "reason": "timeout"}
    assert said == wanted | {"side": "complex", "margin": 0.25}
    assert (found["route"]["tier"], found["instead"]["tier"]) == ("pro", "flash")
    assert found["sides"]["otherwise"]["timeout"]["tier"] == "pro"
    assert found["sides"]["otherwise"]["parse"]["tier"] == "flash"
