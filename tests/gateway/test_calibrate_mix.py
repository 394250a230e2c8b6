"""Shares of all requests, though a verdict decides only some of them and chance has its part; and who judged them."""

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from gateway.calibrate import Calibration, Example, Unproven, calibrate, examples, parse, told
from gateway.calibrate.caveats import sources_of, unlike
from gateway.calibrate.halves import RUNS, in_order, parted
from gateway.calibrate.layer import layer_for, needed
from gateway.calibrate.mix import Mix, mix_of
from gateway.calibrate.report import Judged
from gateway.recorded import RETRY, Chosen, Outcome, Recorded, Seen
from gateway.types import Facts, Verdict
from tests.gateway.test_calibrate import band, by_score, lift
from tests.gateway.test_calibrate import traffic as measured


def traffic(count: int, labels: int | None = None, seed: int = 1) -> list[Example]:
    """Decisions on the score alone: Flash fails on 0.32 of them."""
    return [replace(one, measures={}) for one in measured(count, by_score, labels, seed)]


def mixed(fixed: dict[int, float], explore: float, seed: int = 1) -> list[Example]:
    """Decisions of which these parts had their tier (by rank) without a verdict."""
    chance, found = random.Random(seed), []
    for one in traffic(1000, labels=0, seed=seed):
        at, rank = chance.random(), None
        for tier, part in fixed.items():
            rank = tier if rank is None and at < part else rank
            at -= part
        found.append(replace(one, fixed=rank, explored=0.0 if rank is not None else explore))
    return found


def realised(found: Calibration, records: list[Example], bands: int) -> list[float]:
    """The expected part of each band, of all requests: of a verdict's, chance sends some to the others."""
    parts = [0.0] * bands
    for one in records:
        if one.fixed is not None:
            parts[min(one.fixed, bands - 1)] += 1
            continue
        for at in range(bands):
            parts[at] += 1 - one.explored if at == band(found, one) else one.explored / (bands - 1)
    return [part / len(records) for part in parts]


@pytest.mark.parametrize(
    ("target", "fixed", "explore"),
    [
        ("pro_share=0.25", {}, 0.2),
        ("pro_share=0.25", {0: 0.4}, 0.0),
        ("pro_share=0.25", {0: 0.2, 1: 0.1, 3: 0.05}, 0.05),
        ("shares=0.5/0.3/0.2", {0: 0.2, 1: 0.1}, 0.1),
    ],
)
def test_the_wanted_shares_are_those_of_all_requests(target: str, fixed: dict[int, float], explore: float) -> None:
    wanted = parse(target)
    found = calibrate(mixed(fixed, explore), wanted)
    assert realised(found, mixed(fixed, explore, seed=2), len(wanted.shares)) == pytest.approx(wanted.shares, abs=0.04)
    assert [one["value"] for one in found.report["shares"]] == pytest.approx(wanted.shares, abs=0.05)
    assert (found.report["fixed"], found.report["explore"]) == pytest.approx((sum(fixed.values()), explore), abs=0.03)


def test_verdicts_choose_what_is_missing_exactly() -> None:
    mix = Mix((0.2, 0.1, 0.0), explore=0.1)
    wanted = (0.5, 0.3, 0.2)
    assert [mix.realised(at, part) for at, part in enumerate(mix.chosen(wanted))] == pytest.approx(wanted)
    assert sum(mix.chosen(wanted)) == pytest.approx(1.0)


def test_another_explore_than_the_records_show_is_the_operators_to_say() -> None:
    records = mixed({}, 0.2)
    assert mix_of(records, 2).explore == pytest.approx(0.2)
    edges = [calibrate(records, parse("pro_share=0.25"), explore=explore).edges[0] for explore in (None, 0.0)]
    assert edges[0] > edges[1], "chance sends some upward: fewer are left to be chosen"


@pytest.mark.parametrize(("fixed", "explore"), [({1: 0.3}, 0.0), ({}, 0.3), ({}, 0.5), ({0: 0.9}, 0.0)])
def test_a_share_that_no_threshold_brings_about_is_refused(fixed: dict[int, float], explore: float) -> None:
    with pytest.raises(Unproven, match="out of reach"):
        calibrate(mixed(fixed, explore), parse("pro_share=0.25"))


def recorded(at: int, p_complex: float | None, tier: str, **more: Any) -> Recorded:
    facts = Facts("auto", "ann", "gold", score=(at % 97) / 97)
    verdict = None if p_complex is None else Verdict("complex" if p_complex >= 0.5 else "simple", p_complex)
    route = Chosen(tier, chances=more.pop("chances", {}))
    look = Seen({}, (), ("flash", "think", "pro"), "house.v1")
    return Recorded(id=f"r{at}", facts=msgspec.to_builtins(facts), route=route, seen=look, verdict=verdict, **more)


def test_a_decision_without_a_verdict_is_fixed_only_where_verdicts_were_asked_for() -> None:
    alone = [recorded(at, None, "pro") for at in range(3)]
    assert [one.fixed for one in examples(alone)] == [None, None, None]
    asked = [*alone, recorded(3, 0.7, "pro"), recorded(4, None, "flash"), recorded(5, None, "gone")]
    assert [one.fixed for one in examples(asked)] == [2, 2, 2, None, 0, 0]
    drawn = recorded(6, 0.2, "pro", chances={"flash": 0.9, "think": 0.05, "pro": 0.05})
    assert [one.explored for one in examples([drawn])] == pytest.approx([0.1])


def test_a_rule_that_takes_many_requests_does_not_take_the_verdict_from_the_others() -> None:
    chance = random.Random(5)
    lines = [recorded(at, chance.random() if at % 2 else None, "flash") for at in range(600)]
    found = calibrate(examples(lines), parse("pro_share=0.25"))
    assert "p_complex" in found.layer.weights
    assert (found.basis.asked, sum(found.basis.counts)) == (True, 300)


def volunteered(found: list[Example], fair: float, source: str = "caller") -> list[Example]:
    """Each bad answer is told of, and this part of the good ones."""
    chance = random.Random(6)
    told_of = [one.failed or chance.random() < fair for one in found]
    return [
        replace(one, source=source) if heard else replace(one, flash_ok=None, pro_ok=None)
        for one, heard in zip(found, told_of, strict=True)
    ]


def test_who_judged_what_is_told_and_where_they_cannot_all_hear_a_fair_sample() -> None:
    fair = [replace(one, source="verifier") for one in traffic(200, seed=7)]
    unfair = volunteered(traffic(200, seed=8), 0.1)
    assert sources_of(fair) == {"verifier": {"outcomes": 200, "failed": pytest.approx(0.32, abs=0.08)}}
    found = calibrate([*fair, *unfair], parse("pro_share=0.25"))
    assert found.report["sources"]["caller"]["failed"] > 0.7
    for text in ("not all of them hear a fair sample", "failures are overstated"):
        assert any(text in caveat for caveat in found.caveats)
    two = [replace(one, source="other") if at % 2 else one for at, one in enumerate(fair)]
    assert (unlike([*fair, *unfair]), unlike(two), unlike(fair), unlike([])) == (True, False, False, False)


def test_answers_of_pro_that_were_judged_are_judged_answers() -> None:
    partly = "not every answer was judged"
    records = [replace(one, source="caller") for one in traffic(400, seed=4)]
    by_pro = [replace(one, flash_ok=None) if one.score > 0.6 else one for one in records]
    unheard = [replace(one, source="") if one.flash_ok is None else one for one in by_pro]
    for found, told_so in ((by_pro, False), (unheard, True)):
        caveats = calibrate(found, parse("pro_share=0.25")).caveats
        assert any(partly in caveat for caveat in caveats) is told_so


def retried(found: list[Example], judged: int) -> list[Example]:
    """The first ones are judged; of the others a third of the bad answers is asked for again."""
    chance = random.Random(9)
    return [
        replace(one, source="caller")
        if at < judged
        else replace(
            one, pro_ok=None, **({"source": RETRY} if one.failed and chance.random() < 0.3 else {"flash_ok": None})
        )
        for at, one in enumerate(found)
    ]


def test_retries_say_where_answers_fail_and_not_how_often() -> None:
    records = retried(traffic(1200, seed=3), 150)
    found = calibrate(records, parse("pro_share=0.25"))
    p = [found.layer.p(told(one)) for one in records]
    assert sum(p) / len(p) == pytest.approx(0.32, abs=0.08), "as without them"
    assert found.report["sources"]["retry"]["failed"] == 1.0
    assert found.report["outcomes"] < 120, "they judge nothing"
    assert found.basis.outcomes < 200


def test_retries_alone_calibrate_nothing() -> None:
    records = retried(traffic(1200, seed=3), 0)
    found = calibrate(records, parse("pro_share=0.25"))
    assert not found.proven
    assert any("0 outcomes or so" in caveat for caveat in found.caveats)
    with pytest.raises(Unproven, match="0 outcomes or so"):
        calibrate(records, parse("flash_failure=0.3"))


def talks(seed: int, several: int = 60, turns: int = 5) -> list[Example]:
    """Conversations whose turns look alike and that one person judges alike, whatever they look like; those of other
    callers come between."""
    chance, rows = random.Random(seed), []
    for talk in range(several):
        score, x, bad = chance.random(), chance.random(), chance.random() < 0.3
        for turn in range(turns):
            measures = {"x": x + chance.gauss(0, 0.02), "y": chance.random()}
            rows.append(
                Example(
                    id=f"{talk}-{turn}", score=min(max(score + chance.gauss(0, 0.02), 0.0), 1.0), at=float(turn),
                    caller=f"caller {talk}", measures=measures, flash_ok=not bad, pro_ok=True,
                )
            )  # fmt: skip
    return chance.sample(rows, len(rows))


def test_turns_of_one_conversation_do_not_judge_what_was_learned_from_each_other() -> None:
    found = []
    for seed in range(8):
        fitted, judged = parted(in_order(talks(seed)), "id")
        layer = layer_for(fitted, needed)
        p = [Judged(layer.p(told(one)), float(one.gain or 0)) for one in judged]
        found.append(lift(p, sorted(p)[len(p) * 3 // 4].p))
    assert sum(found) / len(found) < 0.05, "there is nothing to learn; by halves of turns it is 0.1"


def interleaved(seed: int, copies: int = 1, several: int = 60, turns: int = 5) -> list[Example]:
    """The same conversations, all with one key, whose turns come in turn."""
    rows = [
        replace(one, id=f"{one.id} {copy}", caller="app", conversation=f"{one.caller} {copy}")
        for copy in range(copies)
        for one in talks(seed + copy, several, turns)
    ]
    return sorted(rows, key=lambda one: one.at or 0.0)


def unnamed(records: list[Example]) -> list[Example]:
    return [replace(one, conversation=None) for one in records]


def test_a_conversation_is_in_one_half_though_others_come_between() -> None:
    records = in_order(interleaved(0))
    halves = parted(records, "id")
    first, second = ({one.conversation for one in half} for half in halves)
    assert not first & second
    assert [len(half) for half in halves] == pytest.approx([150, 150], abs=30)
    one_for_all = [replace(one, conversation="a greeting that everybody gets") for one in records]
    assert [len(half) for half in parted(one_for_all, "id")] == pytest.approx([150, 150], abs=30)


def test_conversations_that_interleave_prove_no_gain_where_there_is_none() -> None:
    records, target = interleaved(1), parse("pro_share=0.25")
    assert [calibrate(some, target).proven for some in (records, unnamed(records))] == [False, True]


@pytest.mark.parametrize(("several", "turns", "worth"), [(10, 40, 5), (3, 100, 2), (2, 150, 1)])
def test_few_long_conversations_prove_no_gain_where_there_is_none(several: int, turns: int, worth: int) -> None:
    found = calibrate(interleaved(1, several=several, turns=turns), parse("pro_share=0.25"))
    assert (found.proven, found.report.get("lift")) == (False, None)
    assert any(f"worth those of {worth} conversations" in caveat for caveat in found.caveats)


def test_each_half_has_one_of_two_conversations_though_only_one_was_judged() -> None:
    first, *others = interleaved(1, several=2, turns=10)
    records = [
        first,
        *(one if one.conversation == first.conversation else replace(one, flash_ok=None) for one in others),
    ]
    assert [len(half) for half in parted(records, "id")] == [10, 10]


def test_a_share_is_as_uncertain_as_so_few_conversations_are() -> None:
    few, each = (
        calibrate(some, parse("pro_share=0.25")).report["shares"][1] for some in (interleaved(1), traffic(300))
    )
    assert few["high"] - few["low"] > 1.5 * (each["high"] - each["low"]), (
        "the root of 5, if a band had all turns of each"
    )


def test_a_conversation_counts_once_in_a_bound() -> None:
    target, records = parse("flash_failure=0.4@0.95"), interleaved(10, copies=3)
    found = [calibrate(some, target) for some in (records, unnamed(records))]
    once, each = (one.report["bound"]["kept"] for one in found)
    assert 20 < once <= 90 < each == 450
    assert [any("further ones of a conversation" in told for told in one.caveats) for one in found] == [True, False]


def test_neighbours_of_a_caller_are_in_one_half_and_what_was_sent_again_is_with_its_first() -> None:
    records = in_order(talks(0))
    assert [one.caller for one in records[:5]] == ["caller 0"] * 5
    assert [one.at for one in records[:5]] == sorted(one.at or 0.0 for one in records[:5])
    again = replace(records[0], id="again", caller="z")
    first, second = (
        {one.id: half for half, some in enumerate(parted(rows, "id")) for one in some}
        for rows in ([*records, again], records)
    )
    assert first["again"] == first[records[0].id]
    changes = sum(second[one.id] != second[other.id] for one, other in pairwise(records))
    assert changes <= RUNS - 1, "halves of single turns would change at every other one"


def test_each_half_has_its_part_of_outcomes_that_are_all_of_one_time() -> None:
    records = traffic(4000, labels=100)
    halves = parted(records, "id")
    assert [sum(one.failed is not None for one in half) for half in halves] == pytest.approx([50, 50], abs=5)
    assert [len(half) for half in halves] == pytest.approx([2000, 2000], abs=100)


def test_a_source_can_be_left_out() -> None:
    lines = [recorded(at, 0.5, "flash", outcome=Outcome(0.0, source)) for at, source in enumerate(("caller", RETRY))]
    assert [one.source for one in examples(lines)] == ["caller", "retry"]
    assert [(one.source, one.failed) for one in examples(lines, without=["retry"])] == [("caller", True), ("", None)]
