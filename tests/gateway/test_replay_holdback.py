"""What other bounds on the start of an answer would have done with recorded ones."""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.cli.replay import in_words
from gateway.policy import Policy, load_policy
from gateway.recorded import Outcome, Recorded
from gateway.replay import Unrecorded
from gateway.types import Facts, Held, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import body, gateway
from tests.gateway.test_recorded import read
from tests.gateway.test_replay import TEXT, record, replay
from tests.tiers import JSON, policy_for

HELD = "holdback: {tiers: [flash], to: pro, escalate_when: {mean_logprob: {max: BOUND}, refusal: true}}\n"
PLAIN = TEXT.replace(", explore: 0.2", "")


def held(bound: float, text: str = PLAIN, old: str = "", new: str = "") -> Policy:
    return load_policy((text + HELD.replace("BOUND", str(bound))).replace(old, new), {})


def start(name: str, mean: float, made: Policy, **more: Any) -> Recorded:
    """The record of a request that went to Flash, whose start had that mean log-probability."""
    facts = Facts("auto", "ann", "gold", characters=50, context=100, **more)
    one = record(name, facts, Verdict("simple", 0.1), made)
    rules = made.holdback
    assert rules
    assert rules.escalate_when.mean_logprob
    weak = mean <= rules.escalate_when.mean_logprob.max
    one.held = Held("escalated" if weak else "kept", "mean_logprob" if weak else "tokens", 0.1, {"mean_logprob": mean})
    one.tier = "pro" if weak else "flash"
    return one


def starts(made: Policy) -> list[Recorded]:
    return [start(f"r{at}", -at / 100, made) for at in range(100)]


def test_another_bound_moves_the_starts_between_the_two() -> None:
    records = starts(held(-0.9))
    same = replay(records, held(-0.9))
    assert (same.moved, same.arms["candidate"].pro_share) == (0, same.arms["recorded"].pro_share)
    assert same.arms["recorded"].pro_share == pytest.approx(0.1)
    stricter = replay(records, held(-0.5))
    assert stricter.arms["candidate"].pro_share == pytest.approx(0.5)
    assert [(move.origin, move.to, move.count) for move in stricter.moves] == [("flash", "pro", 40)]
    off = replay(records, load_policy(PLAIN, {}))
    assert (off.arms["candidate"].pro_share, off.moved) == (0.0, 10)


def test_a_sign_that_showed_shows_under_any_bound_and_a_broken_start_stays_as_it_was() -> None:
    records = [start(f"r{at}", -0.1, held(-0.9)) for at in range(3)]
    records[0].held, records[0].tier = Held("escalated", "refusal", 0.1, {"mean_logprob": -0.1}), "pro"
    records[1].held, records[1].tier = Held("broken", "5xx", 0.1), "pro"
    found = replay(records, held(-5.0))
    assert found.moved == 0
    assert found.arms["candidate"].shares == {"pro": pytest.approx(1 / 3), "flash": pytest.approx(2 / 3)}


def test_an_answer_that_came_by_failover_is_that_of_the_tier_that_was_chosen() -> None:
    one = start("r", -0.1, held(-0.9))
    one.tier = "pro"
    assert [replay([one], made).moved for made in (held(-0.9), load_policy(PLAIN, {}))] == [0, 0]
    one.held = None
    assert replay([one], load_policy(PLAIN, {})).moved == 0


def test_a_caller_who_may_no_longer_reach_the_other_tier_keeps_a_weak_start() -> None:
    below = held(-0.9, old="gold: {may: [pro]}", new="gold: {}")
    assert replay(starts(held(-0.9)), below).arms["candidate"].shares == {"flash": 1.0, "pro": 0.0}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("refusal: true", "empty: true"),
        ("to: pro", "to: pro, tokens: 8"),
        ("tiers: [flash]", "tiers: [flash], wait: 1s"),
    ],
)
def test_what_was_not_looked_at_is_refused_by_name(old: str, new: str) -> None:
    with pytest.raises(
        Unrecorded,
        match=r"holdback looks at flash's starts .*; seen was 24 tokens or 0.4 s: refusal, figures\).* record r0 ",
    ):
        replay(starts(held(-0.9)), held(-0.9, old=old, new=new))


def test_a_start_that_the_candidate_has_no_use_for_need_not_be_recorded() -> None:
    changed = held(-0.9, old="to: pro", new="to: pro, tokens: 8")
    elsewhere = held(-0.9, PLAIN.replace("simple: flash", "simple: pro"), "to: pro", "to: pro, tokens: 8")
    with pytest.raises(Unrecorded):
        replay(starts(held(-0.9)), changed)
    assert replay(starts(held(-0.9)), elsewhere).arms["candidate"].pro_share == 1.0


def test_starts_of_records_without_hold_back_were_not_seen() -> None:
    facts = Facts("auto", "ann", "gold", characters=50, context=100)
    one = record("r", facts, Verdict("simple", 0.1), load_policy(PLAIN, {}))
    with pytest.raises(Unrecorded, match="seen was none"):
        replay([one], held(-0.9))
    assert one.seen
    one.seen = msgspec.structs.replace(one.seen, starts=None)
    with pytest.raises(Unrecorded, match="seen was none"):
        replay([one], held(-0.9))
    wished = record("w", msgspec.structs.replace(facts, wish="flash", wished_by="name"), None, load_policy(PLAIN, {}))
    assert replay([wished], held(-0.9)).decided == 1, "who chose the tier is never held back"


def test_starts_that_nobody_saw_count_as_let_out_and_are_told() -> None:
    made = held(-0.9)
    facts = Facts("auto", "ann", "gold", characters=50, context=100)
    records = [*starts(made), record("hard", facts, Verdict("complex", 0.9), made)]
    same = replay(records, made)
    assert (same.unseen, same.moved) == (0, 0), "a start of Pro is not looked at"
    found = replay(records, held(-0.9, old="threshold: 0.5", new="threshold: 0.95"))
    assert found.unseen == 1
    assert "of 1 hold-back would judge a start that nobody saw; they count as let out" in in_words(found)
    assert found.arms["candidate"].shares["flash"] == pytest.approx(91 / 101)
    assert replay(records, load_policy(PLAIN.replace("threshold: 0.5", "threshold: 0.95"), {})).unseen == 0


def test_quality_under_another_bound_needs_both_answers() -> None:
    """Pro is good at everything; Flash is good where its start was sure."""
    chance, made = random.Random(1), held(-0.5)
    records = []
    for at in range(400):
        mean = -chance.random()
        one = start(f"r{at}", mean, made)
        one.outcome = Outcome(1.0 if one.tier == "pro" else 1 + mean)
        records.append(one)
    same = replay(records, made).arms["candidate"].quality
    assert same
    assert same.value == pytest.approx(0.875, abs=0.02)
    for bound in (-0.9, -0.1):
        arm = replay(records, held(bound)).arms["candidate"]
        assert (arm.quality, "had no chance" in (arm.unknown or "")) == (None, True)
    for one in records:
        assert one.held
        sure = 1 + one.held.figures["mean_logprob"]
        one.outcome = Outcome(1.0, tiers={"flash": sure}) if one.tier == "pro" else Outcome(sure, tiers={"pro": 1.0})
    looser, stricter = (replay(records, held(bound)).arms["candidate"].quality for bound in (-0.9, -0.1))
    assert looser
    assert stricter
    assert looser.value < same.value < stricter.value


def test_explored_starts_keep_the_estimate_unbiased() -> None:
    """Under a policy that explores, with hold-back: what was judged is what one would have got."""
    chance, made = random.Random(2), held(-0.5, TEXT)
    records = []
    for at in range(3000):
        facts = Facts("auto", "ann", "gold", characters=50, context=100, chance=chance.random())
        one = record(f"r{at}", facts, Verdict("simple", 0.1), made)
        mean = -chance.random()
        if one.route.tier == "flash":
            weak = mean <= -0.5
            one.held = Held("escalated" if weak else "kept", "mean_logprob", 0.1, {"mean_logprob": mean})
            one.tier = "pro" if weak else "flash"
        one.outcome = Outcome(1.0 if one.tier == "pro" else 1 + mean)
        records.append(one)
    found = replay(records, held(-0.5)).arms["candidate"].quality  # explores no more
    assert found
    assert found.value == pytest.approx(0.875, abs=0.02)


def test_a_gateways_own_records_are_judged_again_as_it_would_have(flash: Sim, pro: Sim, tmp_path: Path) -> None:
    def policy(bound: float) -> Policy:
        rules: JSON = {
            "tiers": ["flash"],
            "to": "pro",
            "wait": "20s",
            "escalate_when": {"mean_logprob": {"max": bound}},
        }
        return policy_for(flash, pro, rules=[{"id": "all", "route": "flash"}], holdback=rules)

    async def served(bound: float, file: Path) -> list[str | None]:
        flash.config(only="answer", weak="unsure", weak_share=0.5)
        async with gateway(policy(bound), records=file) as gate:
            for at in range(12):
                await gate.ask(body(f"Question {at} of twelve?"), x_request_id=f"r{at}")
        return [one.tier for one in read([file])]

    for bound in (-1.6, -9.0):
        asyncio.run(served(bound, tmp_path / f"{bound}"))
    records = read([tmp_path / "-9.0"])
    assert {one.tier for one in records} == {"flash"}
    found = replay(records, policy(-1.6))
    weak = [one.id for one in records if one.held and one.held.figures["mean_logprob"] <= -1.6]
    assert 0 < len(weak) < 12
    assert found.moved == len(weak)
    assert found.arms["candidate"].pro_share == pytest.approx(len(weak) / 12)
    back = replay(read([tmp_path / "-1.6"]), policy(-9.0))
    assert back.arms["candidate"].pro_share == 0.0
    assert back.moved == sum(one.tier == "pro" for one in read([tmp_path / "-1.6"])) > 0
