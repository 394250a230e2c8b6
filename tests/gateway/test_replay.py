"""What another policy would have done: the same `route` on what was recorded, and what may be claimed of it."""

import json
import random
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.calibrate import Narrowed
from gateway.kept import seen, to_keep
from gateway.off_policy import estimate
from gateway.policy import Policy, load_policy
from gateway.recorded import RETRY, SHADOW, Outcome, Record, Recorded, RecordError, Used
from gateway.replay import Deciding, Replay, Unrecorded
from gateway.replay import replay as compared
from gateway.replay.choices import Choice, as_recorded, wanted
from gateway.replay.compared import above_first, moved, shuffled, weighed
from gateway.routing import route
from gateway.types import Caller, Decision, Facts, Route, Usage, Verdict
from tests.gateway.test_recorded import held

TEXT = """\
schema: 1
tiers:
  flash: {model: m/flash, replicas: ["http://h"], price: {input_per_m: 1, output_per_m: 2}}
  pro: {model: m/pro, replicas: ["http://h"], price: {input_per_m: 10, output_per_m: 20}}
triage: {threshold: 0.5}
signals: {sql: select}
rules:
  - {id: tiny, when: {characters: {max: 10}}, route: flash}
  - {id: sql, when: {signals: [sql]}, route: pro}
  - {id: phase, when: {header: {x-phase: plan}}, route: pro}
  - {id: triaged, route: {simple: flash, complex: pro}, explore: 0.2}
callers: {default: {plan: gold}, plans: {gold: {may: [pro]}, batch: {}}}
"""
ONE = """\
schema: 1
tiers: {flash: {model: m/flash, replicas: ["http://h"]}}
rules: [{id: all, route: flash}]
"""
A = load_policy(TEXT, {})
USAGE = Usage(100, 0, 50, complete=True)


def policy(*changes: tuple[str, str]) -> Policy:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return load_policy(text, {})


def record(name: str, facts: Facts, verdict: Verdict | None, made: Policy = A, **more: Any) -> Recorded:
    """The record of a request that `made` decided, read back from its line."""
    chosen = route(facts, None, made)
    if not isinstance(chosen, Route):
        assert verdict
        chosen = route(facts, verdict, made)
    else:
        verdict = None
    caller = Caller(facts.caller, facts.caller, facts.plan, "")
    whole = {"caller": caller, "tier": chosen.tiers[0], "usage": USAGE, **more}
    done = Record(name, "/v1/chat/completions", 200, 1.0, None, "made", **whole)
    line = to_keep(done, caller, Decision(facts, verdict, chosen), made).line()
    return msgspec.json.decode(line, type=Recorded)


def traffic(count: int, seed: int = 0, made: Policy = A) -> list[Recorded]:
    """Requests of every kind, decided by `made`."""
    chance = random.Random(seed)
    found = []
    for at in range(count):
        p_complex = chance.random()
        facts = Facts(
            model="auto",
            caller="ann",
            plan=chance.choice(["gold", "gold", "gold", "batch"]),
            characters=chance.choice([5, 50]),
            context=100,
            signals=frozenset({"sql"} if chance.random() < 0.1 else ()),
            headers={"x-phase": "plan"} if chance.random() < 0.1 else {},
            capped=chance.choice([None, None, None, "budget"]),
            chance=chance.random(),
        )
        found.append(record(f"r{at}", facts, Verdict("complex" if p_complex >= 0.5 else "simple", p_complex), made))
    return found


def triaged(count: int, quality: Callable[[str, float], float], seed: int = 0) -> list[Recorded]:
    """Requests that were all judged; `quality` is the chance that a tier's answer to one is good."""
    chance = random.Random(seed)
    found = []
    for at in range(count):
        p = chance.random()
        facts = Facts(model="auto", caller="ann", plan="gold", characters=50, context=100, chance=chance.random())
        one = record(f"r{at}", facts, Verdict("complex" if p >= 0.5 else "simple", p))
        one.outcome = Outcome(float(chance.random() < quality(one.route.tier, p)))
        found.append(one)
    return found


def choices(records: list[Recorded], made: Policy) -> list[Choice]:
    return [one.choices[0] for one in map(Deciding(made), records)]


def replay(records: list[Recorded], made: Policy) -> Replay:
    return compared(list(map(Deciding(made), records)), made)


def better(tier: str, p: float) -> float:
    """Pro is good at everything, Flash at what is simple."""
    return 0.9 if tier == "pro" else 0.9 - 0.8 * p


def test_little_is_kept_of_records_that_were_decided_or_that_a_calibration_takes(tmp_path: Path) -> None:
    (tmp_path / "records").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in traffic(100)))
    whole, decided, narrowed = (held(tmp_path / "records", keep) for keep in (copy, Deciding(A), Narrowed()))
    assert 0 < max(decided * 5, narrowed * 4) < whole


def test_the_same_policy_moves_nothing_not_even_what_was_explored() -> None:
    records = traffic(400)
    assert any(one.route.reason == "explored" for one in records)
    found = replay(records, A)
    assert (found.decided, found.moved, found.undecided, found.refused) == (400, 0, 0, 0)
    same, before = found.arms["candidate"], found.arms["recorded"]
    assert same.pro_share == pytest.approx(before.pro_share)
    assert same.cost_usd == pytest.approx(before.cost_usd)


def test_a_lower_threshold_moves_what_lies_between_the_two() -> None:
    records = traffic(400)
    found = replay(records, policy(("threshold: 0.5", "threshold: 0.3")))
    assert {(move.origin, move.to, move.rule) for move in found.moves} <= {
        ("flash", "pro", "triaged"),
        ("pro", "flash", "triaged"),  # explored the other way round
    }
    ids = {one.id for one in records if one.verdict and 0.3 <= (one.verdict.p_complex or 0) < 0.5}
    assert {name for move in found.moves for name in move.examples} <= ids
    assert found.moved == found.figures()["moved"] * 400 > 0  # type: ignore[operator]
    assert found.arms["candidate"].pro_share > found.arms["recorded"].pro_share


def test_the_shuffle_has_the_candidates_shares_and_the_ends_have_theirs() -> None:
    for seed in range(5):
        found = replay(traffic(200, seed), policy(("threshold: 0.5", "threshold: 0.7")))
        candidate, shuffle = found.arms["candidate"], found.arms["shuffle"]
        assert shuffle.shares == pytest.approx(candidate.shares)
        assert found.arms["all flash"].pro_share == 0.0
        assert candidate.pro_share < found.arms["all pro"].pro_share < 1.0  # capped and batch callers stay below


def test_the_shuffle_sends_nobody_where_the_candidate_could_not() -> None:
    records = traffic(200)
    for one, way in zip(records, shuffled(choices(records, A)), strict=True):
        bound = one.facts["plan"] == "batch" or one.facts["capped"]
        assert set(way.chances) <= ({"flash"} if bound else {"flash", "pro"})
        assert sum(way.chances.values()) == pytest.approx(1.0)


def test_a_classifier_that_was_not_asked_leaves_the_request_undecided() -> None:
    records = traffic(200)
    found = replay(records, policy(("max: 10", "max: 3")))
    unasked = [one for one in records if one.route.rule == "tiny" and one.facts["signals"] == []
               and not one.facts["headers"] and not one.facts["capped"] and one.facts["plan"] == "gold"]  # fmt: skip
    assert unasked
    assert (found.undecided, found.decided) == (len(unasked), 200 - len(unasked))
    assert found.figures()["undecided"] == len(unasked) / 200


def test_a_wish_that_the_candidate_forbids_is_refused_and_counted() -> None:
    wish = Facts(model="pro", caller="ann", plan="gold", wish="pro", wished_by="name")
    found = replay([record("w", wish, None), *traffic(10)], policy(("gold: {may: [pro]}", "gold: {}")))
    assert (found.refused, found.figures()["refused"]) == (1, 1 / 11)
    assert ("pro", "refused") in {(move.origin, move.to) for move in found.moves}


def test_the_controls_are_the_lowest_and_the_highest_tier() -> None:
    third = "  max: {model: m/max, replicas: ['http://h']}\n"
    lone = [record("r", Facts("auto", "ann", "gold", characters=5), None)]
    highest, only = policy(("triage: {", third + "triage: {"), ("[pro]", "[max]")), load_policy(ONE, {})
    found = [[name for name in replay(lone, each).arms if name.startswith("all ")] for each in (highest, A, only)]
    assert found == [["all flash", "all max"], ["all flash", "all pro"], ["all flash"]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("signals: {sql: select}", "signals: {sql: SELECT}"), "rule sql looks at signals.sql"),
        (("x-phase: plan", "x-agent: plan"), "rule phase looks at header.x-agent"),
        (("when: {signals: [sql]}", "when: {signals: [sql], load: {max: {inflight: {min: 1}}}}"), "load.max.inflight"),
        (("triage: {", "triage: {strategy: choice, "), "rule triaged asks 'complexity.v1 choice"),
        (("triage: {", "triage: {prompt: p_solve.v1, "), "rule triaged asks 'p_solve.v1 auto"),
    ],
)
def test_what_was_not_recorded_is_refused_by_rule_and_fact(change: tuple[str, str], told: str) -> None:
    more = "  max: {model: m/max, replicas: ['http://h']}\n"
    text = TEXT.replace(*change).replace("triage: {", more + "triage: {")
    with pytest.raises(Unrecorded, match=told):
        replay(traffic(20), load_policy(text, {}))


def test_a_fact_that_many_rules_look_at_is_looked_for_once_and_blamed_on_the_first() -> None:
    many = "".join(f"  - {{id: c{at}, when: {{caller: {{name: a{at}}}}}, route: pro}}\n" for at in range(50))
    found = wanted(policy(("  - {id: triaged", many + "  - {id: triaged")))
    assert found == {"characters": "tiny", "signals.sql": "sql", "header.x-phase": "phase", "caller": "c0"}


def test_who_was_never_asked_may_be_asked_another_question() -> None:
    facts = Facts(model="auto", caller="ann", plan="gold", characters=5)
    asks_otherwise = policy(("triage: {", "triage: {strategy: choice, "), ("max: 10", "max: 3"))
    assert [choice.to for choice in choices([record("tiny", facts, None)], asks_otherwise)] == ["undecided"]


def test_a_policy_that_asks_nobody_is_judged_by_answers_to_any_question() -> None:
    asks_nobody = policy(
        ("triage: {", "triage: {strategy: choice, "), ("{simple: flash, complex: pro}, explore: 0.2", "pro")
    )
    asked = record("asked", Facts(model="auto", caller="ann", plan="gold", characters=50), Verdict("simple", 0.1))
    assert [choice.to for choice in choices([asked], asks_nobody)] == ["pro"]


def test_a_rule_on_load_is_judged_where_the_tiers_load_was_recorded() -> None:
    busy = policy(
        (
            "  - {id: triaged",
            "  - {id: busy, when: {load: {pro: {inflight: {min: 8}}}}, route: flash}\n  - {id: triaged",
        )
    )
    records = [
        record(name, Facts("auto", "ann", "gold", characters=50, load={"pro": load}), Verdict("complex", 0.9))
        for name, load in (("free", 7), ("full", 8))
    ]
    assert [(choice.to, choice.rule) for choice in choices(records, busy)] == [("pro", "triaged"), ("flash", "busy")]


def test_a_record_that_does_not_say_what_was_looked_at_is_judged_by_its_facts_alone() -> None:
    facts = Facts(model="auto", caller="ann", plan="gold", characters=50)
    one = record("r0", facts, Verdict("complex", 0.9))
    one.seen = None
    plain = policy(
        ("  - {id: sql, when: {signals: [sql]}, route: pro}\n", ""),
        ("  - {id: phase, when: {header: {x-phase: plan}}, route: pro}\n", ""),
    )
    assert [choice.to for choice in choices([one], plain)] == ["pro"]
    with pytest.raises(Unrecorded, match=r"rule sql looks at signals\.sql, which record r0"):
        choices([one], A)
    scored = msgspec.structs.replace(one, facts=one.facts | {"score": 0.9})
    hard = policy(
        ("  - {id: sql, when: {signals: [sql]}, route: pro}\n", ""),
        ("{header: {x-phase: plan}}", "{score: {min: 0.8}}"),
    )
    assert [choice.rule for choice in choices([scored], hard)] == ["phase"]


def test_a_fact_that_an_older_version_did_not_record_is_refused() -> None:
    records = traffic(3)
    for one in records:
        del one.facts["characters"]
    with pytest.raises(Unrecorded, match="rule tiny looks at characters, which record r0"):
        replay(records, A)


def test_another_threshold_is_judged_by_what_the_classifier_said_and_the_calibration_makes_of_it(
    tmp_path: Path,
) -> None:
    layer = {"intercept": 1.0, "weights": {"p_complex": 1.0}, "means": {"p_complex": 0.0}, "scales": {"p_complex": 1.0}}
    (tmp_path / "found.json").write_text(json.dumps({"schema": 1, "layer": layer, "edges": [0.5]}))
    (tmp_path / "policy.yaml").write_text(TEXT.replace("threshold: 0.5", "calibration: found.json"))
    records = [
        record(str(p_complex), Facts("auto", "ann", "gold", characters=50, score=0.5), Verdict("simple", p_complex))
        for p_complex in (0.2, 0.4)
    ]
    found = choices(records, load_policy(tmp_path / "policy.yaml", {}))
    assert [choice.to for choice in found] == ["flash", "pro"]  # odds of 0.25 and 0.67, times e
    with pytest.raises(Unrecorded, match="rule triaged looks at score"):
        choices(traffic(1), load_policy(tmp_path / "policy.yaml", {}))


def test_a_rule_on_the_score_is_judged_where_the_score_was_recorded() -> None:
    steep = policy(("  - {id: triaged", "  - {id: hard, when: {score: {min: 0.8}}, route: pro}\n  - {id: triaged"))
    records = [
        record(name, Facts("auto", "ann", "gold", characters=50, score=score), Verdict("simple", 0.1))
        for name, score in (("easy", 0.7), ("hard", 0.8))
    ]
    assert [(choice.to, choice.rule) for choice in choices(records, steep)] == [("flash", "triaged"), ("pro", "hard")]
    wished = record("wished", Facts("flash", "ann", "gold", wish="flash", wished_by="name"), None)
    assert choices([wished], steep)[0].to == "flash"
    with pytest.raises(Unrecorded, match="rule hard looks at score, which record"):
        choices(traffic(1), steep)
    for_failures = policy(("triage: {", "triage: {otherwise: {timeout: local}, "))
    with pytest.raises(Unrecorded, match="looks at score, which record"):
        choices(traffic(1), for_failures)


def test_a_policy_with_sessions_is_not_judged_by_records_that_know_none() -> None:
    records, more = traffic(3), load_policy(TEXT + "sessions: {}\n", {})
    with pytest.raises(Unrecorded, match="rule triaged looks at session, which record r0"):
        replay(records, more)
    for one in records:
        one.seen = seen(more)
    assert replay(records, more).records == 3


def test_a_wish_for_a_tier_that_the_candidate_does_not_have_cannot_be_judged() -> None:
    facts = Facts(model="max", caller="ann", plan="gold", wish="max", wished_by="name")
    wished = msgspec.structs.replace(traffic(1)[0], facts=msgspec.to_builtins(facts))
    with pytest.raises(Unrecorded, match="asked for max, which is no tier"):
        replay([wished], A)


@pytest.mark.parametrize(("fact", "value"), [("turns", "many"), ("chance", -1.0), ("chance", 1.5)])
def test_facts_that_no_gateway_writes_are_refused(fact: str, value: object) -> None:
    records = traffic(1)
    records[0].facts[fact] = value
    with pytest.raises(RecordError, match="record r0"):
        replay(records, A)


def test_another_policys_quality_is_estimated_from_what_was_explored() -> None:
    bold = policy(("threshold: 0.5", "threshold: 0.25"), (", explore: 0.2", ""))
    expected = 0.25 * (0.9 - 0.8 * 0.125) + 0.75 * 0.9
    found = [replay(triaged(600, better, seed), bold).arms["candidate"].quality for seed in range(5)]
    known = [one for one in found if one]
    assert len(known) == 5
    assert sum(one.plain for one in known) / 5 == pytest.approx(expected, abs=0.03)
    assert sum(one.value for one in known) / 5 == pytest.approx(expected, abs=0.03)
    assert sum(one.low <= expected <= one.high for one in known) >= 4


def test_that_the_rare_choices_did_not_come_does_not_make_the_others_enough() -> None:
    records = [one for one in triaged(70, better) if one.route.reason != "explored"]
    bold = replay(records, policy(("threshold: 0.5", "threshold: 0.25"), (", explore: 0.2", ""))).arms["candidate"]
    assert bold.quality is None
    assert "effective outcomes of" in (bold.unknown or "")
    assert replay(records, A).arms["candidate"].quality


def test_a_choice_that_had_no_chance_is_not_supported_though_it_is_listed() -> None:
    records = triaged(300, better)
    for one in records:
        one.route = msgspec.structs.replace(one.route, p=1.0, chances={"flash": 0.0, "pro": 0.0, one.route.tier: 1.0})
    found = replay(records, policy(("threshold: 0.5", "threshold: 0.25"), (", explore: 0.2", ""))).arms["candidate"]
    assert "had no chance" in (found.unknown or "")


def test_without_exploration_only_what_was_done_can_be_judged() -> None:
    records = triaged(300, better)
    for one in records:
        one.route = msgspec.structs.replace(one.route, p=1.0, chances={})
    found = replay(records, policy(("threshold: 0.5", "threshold: 0.25"), (", explore: 0.2", "")))
    assert found.arms["recorded"].quality
    assert found.arms["candidate"].quality is None
    assert "had no chance" in (found.arms["candidate"].unknown or "")
    assert found.figures()["quality"] is None


def test_what_a_tier_answered_skipping_other_experts_moves_and_tells_nothing_of_it() -> None:
    records = triaged(400, better)
    few = policy(("{model: m/pro,", "{model: m/pro, skips: top4,"))
    found = replay(records, few)
    assert {(move.origin, move.to) for move in found.moves} == {("pro skipping nothing", "pro")}
    assert found.moved == sum(one.tier == "pro" for one in records)
    assert found.arms["recorded"].quality
    assert found.arms["candidate"].quality is None
    assert "had no chance" in (found.arms["candidate"].unknown or "")
    for one in records:
        one.skips = "top4" if one.tier == "pro" else None
    same = replay(records, few)
    assert (same.moved, same.arms["candidate"].quality) == (0, found.arms["recorded"].quality)
    assert {move.origin for move in replay(records, A).moves} == {"pro skipping top4"}


def test_outcomes_that_tell_of_every_tier_need_no_weights() -> None:
    records = triaged(200, better)
    for one in records:
        assert one.verdict
        one.outcome = Outcome(0.5, tiers={"flash": 1.0 - (one.verdict.p_complex or 0), "pro": 1.0})
    arms = replay(records, policy((", explore: 0.2", ""))).arms
    quality = {name: arm.quality.value for name, arm in arms.items() if arm.quality}
    for arm in arms.values():
        assert arm.quality
        assert (arm.quality.plain, arm.quality.effective) == pytest.approx((arm.quality.value, 200))
    assert quality["all pro"] == 1.0
    assert quality["all flash"] == pytest.approx(0.5, abs=0.1)
    assert quality["all flash"] < quality["shuffle"] < quality["candidate"] < quality["all pro"]


def test_an_outcome_is_that_of_the_tier_that_answered_after_a_failover() -> None:
    records = [one for one in triaged(200, better) if one.route.tier == "flash"]
    for one in records:
        one.tier, one.outcome = "pro", Outcome(1.0, tiers={"flash": 0.2})
    arms = replay(records, A).arms
    quality = {name: arm.quality.value for name, arm in arms.items() if arm.quality}
    assert (quality["all flash"], quality["all pro"]) == pytest.approx((0.2, 1.0))


@pytest.mark.parametrize("source", [SHADOW, RETRY])
def test_neither_how_much_two_answers_agree_nor_that_one_was_asked_for_again_is_quality(source: str) -> None:
    records = triaged(400, better)
    judged = replay(records, A).arms["candidate"].quality
    for one in triaged(200, better, seed=1):
        one.outcome = Outcome(0.1, source)
        records.append(one)
    found = replay(records, A)
    assert (found.outcomes, found.arms["candidate"].quality) == (400, judged)


def test_how_much_better_the_candidate_is_than_each_other_way_has_its_interval() -> None:
    bold = policy(("threshold: 0.5", "threshold: 0.25"), (", explore: 0.2", ""))
    gains = []
    for seed in range(4):
        found = replay(triaged(300, better, seed), bold)
        figures, arms = found.figures(), found.arms
        gain = arms["recorded"].behind
        assert gain
        gains.append(gain)
        assert (figures["gain"], figures["gain_low"], figures["gain_high"]) == (gain.value, gain.low, gain.high)
        assert (quality := arms["candidate"].quality)
        assert (figures["quality"], figures["quality_low"]) == (quality.value, quality.low)
        assert arms["candidate"].behind
        assert arms["candidate"].behind.high == 0.0
    # Of the quarter that moves Pro answers all, not a fifth; of the rest the policy in force sent a fifth elsewhere.
    expected = 0.25 * 0.8 * 0.8 * 0.375 - 0.2 * 0.25 * 0.8 * 0.125 + 0.2 * 0.5 * 0.8 * 0.75
    assert sum(gain.value for gain in gains) / 4 == pytest.approx(expected, abs=0.04)
    assert sum(gain.low <= expected <= gain.high for gain in gains) >= 3
    alike = replay(triaged(100, better), A).arms
    assert alike["recorded"].behind
    assert alike["recorded"].behind.value == alike["recorded"].behind.high == 0.0


def test_turns_of_one_conversation_stay_together_though_others_come_between() -> None:
    rows = triaged(100, better)
    turns = [
        msgspec.structs.replace(one, at=float(turn), caller=f"k{at}")
        for turn in range(5)
        for at, one in enumerate(rows)
    ]
    found = [estimate(weighed(some, list(map(as_recorded, some))).outcomes) for some in (turns, alone(turns))]
    together, mixed = (one.high - one.low for one in found)
    assert together > 1.8 * mixed, "the root of 5 times as wide"


@pytest.mark.parametrize("tiers", [(), ("flash", "pro")])
def test_conversations_of_one_key_are_known_by_their_names(tiers: tuple[str, ...]) -> None:
    rows = [
        msgspec.structs.replace(one, at=float(turn), caller=f"k{at}", conversation=f"c{at}")
        for turn in range(5)
        for at, one in enumerate(triaged(60, better))
    ]
    for one in rows:
        assert one.outcome
        one.outcome = Outcome(one.outcome.quality, tiers=dict.fromkeys(tiers, one.outcome.quality))
    widths, shares = [], []
    for some in (rows, alone(rows), alone([msgspec.structs.replace(one, conversation="") for one in rows])):
        ways = list(map(as_recorded, some))
        found, above = estimate(weighed(some, ways).outcomes), above_first(some, [way.answers for way in ways], "flash")
        widths.append(found.high - found.low)
        shares.append(above.high - above.low)
    assert widths[0] == pytest.approx(widths[1]) != pytest.approx(widths[2])
    assert shares[0] == pytest.approx(shares[1])
    assert shares[0] > 1.8 * shares[2], "the root of 5 times as wide"


def alone(rows: list[Recorded]) -> list[Recorded]:
    """The same with nothing that tells whose they are."""
    return [msgspec.structs.replace(one, caller="") for one in rows]


def test_cost_is_what_was_counted_and_else_as_long_as_that_tiers_answers_are() -> None:
    facts = Facts(model="auto", caller="ann", plan="gold", characters=50, context=70)
    low = record("low", facts, Verdict("simple", 0.1))
    high = record("high", facts, Verdict("complex", 0.9), usage=Usage(200, 100, 80, complete=True))
    arms = replay([low, high], A).arms
    assert arms["recorded"].cost_usd == pytest.approx(
        # explored shares of 0.2 on the other side: flash answers take 50 tokens, those of pro 80
        0.8 * (100 * 1 + 50 * 2) / 1e6 + 0.2 * (100 * 10 + 80 * 20) / 1e6
        + 0.8 * (100 * 10 + 80 * 20) / 1e6 + 0.2 * (200 * 1 + 50 * 2) / 1e6
    )  # fmt: skip
    assert arms["all flash"].cost_usd == pytest.approx((100 + 100 + 200 + 100) / 1e6)
    assert arms["all flash"].counted == pytest.approx(0.4)


def test_an_answer_that_nobody_counted_is_estimated_from_its_facts() -> None:
    facts = Facts(model="auto", caller="ann", plan="gold", characters=5, context=70)
    arm = replay([record("r", facts, None, usage=None)], A).arms["candidate"]
    assert [arm.cost_usd, arm.counted] == pytest.approx([(70 * 1 + 500 * 2) / 1e6, 0.0])


@pytest.mark.parametrize(
    ("used", "usd"), [(Used(None, None, 80), (70 + 80 * 2) / 1e6), (Used(200, None, None), (200 + 500 * 2) / 1e6)]
)
def test_an_answer_of_which_a_part_was_counted_is_estimated_with_that_part(used: Used, usd: float) -> None:
    facts = Facts(model="auto", caller="ann", plan="gold", characters=5, context=70)
    one = msgspec.structs.replace(record("r", facts, None), used=used)
    arm = replay([one], A).arms["candidate"]
    assert [arm.cost_usd, arm.counted] == pytest.approx([usd, 0.0])


def test_what_costs_nothing_is_counted_whole() -> None:
    facts = Facts(model="auto", caller="ann", plan="gold", characters=5, context=70)
    free = policy(("price: {input_per_m: 1, output_per_m: 2}", "price: {input_per_m: 0, output_per_m: 0}"))
    arm = replay([record("r", facts, None)], free).arms["candidate"]
    assert (arm.cost_usd, arm.counted) == (0.0, 1.0)


def test_no_records_are_no_error_and_tell_nothing() -> None:
    found = replay([], A)
    assert (found.records, found.arms["candidate"].pro_share) == (0, 0.0)
    assert set(found.figures().values()) == {None}


def test_moves_are_counted_by_tiers_and_rule_with_some_of_their_ids() -> None:
    rows = traffic(20)
    ways = [Choice("pro", "y")] * 3 + [Choice("pro", "x")] * 12 + [Choice("undecided")] * 5
    found = moved(["flash"] * 20, ways, rows)
    assert [(move.count, move.rule, len(move.examples)) for move in found] == [(12, "x", 5), (3, "y", 3)]
    assert moved(["undecided"] * 20, [Choice("pro", "x")] * 20, rows) == (), "nobody knows where they went"


def test_a_choice_has_all_its_chances() -> None:
    one = traffic(300)
    made = choices(one, replace(A, name="other"))
    assert all(sum(choice.way.chances.values()) == pytest.approx(1.0) for choice in made)
    assert {len(choice.way.chances) for choice in made} == {1, 2}
