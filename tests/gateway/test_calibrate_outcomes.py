"""What recorded decisions say of which tier was needed."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.calibrate import Example, examples, told
from gateway.recorded import SHADOW, Chosen, LateOutcome, Outcome, Recorded, Seen
from gateway.types import Facts, Verdict
from tests.gateway.test_recorded import read


def decision(name: str = "a", tier: str = "flash", **more: Any) -> Recorded:
    facts = Facts("auto", "ann", "gold", score=0.25, measures={"length": 0.5})
    given: dict[str, Any] = {"facts": msgspec.to_builtins(facts), "verdict": Verdict("complex", 0.75)} | more
    look = Seen({}, (), ("flash", "think", "pro"), "")
    return Recorded(id=name, caller="ann", at=5.0, route=Chosen(tier), tier=tier, seen=look, **given)


def test_an_example_holds_what_the_decision_was_made_on() -> None:
    (found,) = examples([decision()])
    wanted = Example(
        id="ann/a", score=0.25, at=5.0, caller="ann", measures={"length": 0.5}, p_complex=0.75, question=""
    )
    assert found == wanted
    assert told(found) == {"score": 0.25, "p_complex": 0.75, "length": 0.5}
    (alone,) = examples([decision(verdict=None)])
    assert (told(alone), alone.question) == ({"score": 0.25, "length": 0.5}, None)
    assert [one.conversation for one in examples([decision(), decision(conversation="c")])] == [None, "c"]
    unseen = decision()
    unseen.seen = None
    assert [one.question for one in examples([unseen])] == [None]


def test_a_decision_without_a_score_is_no_example() -> None:
    assert examples([decision(facts=msgspec.to_builtins(Facts("pro", "ann", "gold", wish="pro")))]) == []


@pytest.mark.parametrize(
    ("tier", "outcome", "flash", "pro"),
    [
        ("flash", None, None, None),
        ("flash", Outcome(1.0), True, None),
        ("flash", Outcome(0.4), False, None),
        ("pro", Outcome(0.5), None, True),
        ("pro", Outcome(1.0, tiers={"flash": 0.0}), False, True),
        ("flash", Outcome(1.0, tiers={"pro": 0.0}), True, False),
        ("think", Outcome(1.0), None, None),
    ],
)
def test_a_tiers_outcome_is_known_where_it_answered_or_somebody_judged_it(
    tier: str, outcome: Outcome | None, flash: bool | None, pro: bool | None
) -> None:
    (found,) = examples([decision(tier=tier, outcome=outcome)])
    assert (found.flash_ok, found.pro_ok) == (flash, pro)


def test_an_outcome_is_of_the_tier_that_answered_in_place_of_the_one_chosen() -> None:
    chosen = Chosen("flash", 0.1, chances={"pro": 0.9, "flash": 0.1})
    found = []
    for tier in ("flash", "pro", None):
        one = decision(outcome=Outcome(1.0))
        one.route, one.tier = chosen, tier
        found += [(made.flash_ok, made.pro_ok, made.weight) for made in examples([one])]
    assert found == [(True, None, 10.0), (None, True, 1.0), (True, None, 10.0)]


@pytest.mark.parametrize(
    ("tiers", "pro"), [(("flash", "think", "pro"), True), (("flash", "pro"), True), (("flash",), None)]
)
def test_the_last_of_several_tiers_is_the_strong_one(tiers: tuple[str, ...], pro: bool | None) -> None:
    one = decision(outcome=Outcome(0.0, tiers={"think": 0.0, "pro": 1.0}))
    one.seen = Seen({}, (), tiers, "")
    (found,) = examples([one])
    assert (found.flash_ok, found.pro_ok) == (False, pro)


def test_what_chance_let_flash_answer_stands_for_what_it_did_not() -> None:
    by_chance = Chosen("flash", 0.1, chances={"pro": 0.9, "flash": 0.1})
    upward = Chosen("pro", 0.9, chances={"pro": 0.9, "flash": 0.1})
    judged, both = Outcome(1.0), Outcome(1.0, "judge", tiers={"flash": 0.0})
    records = [
        decision("known", outcome=judged),
        decision("unknown"),
        decision("went elsewhere", "pro", outcome=both),
        decision("fell back", outcome=judged),
    ]
    for one, route in zip(records, (by_chance, by_chance, upward, upward), strict=True):
        one.route = route
    assert [one.weight for one in examples(records)] == [10.0, 1.0, 1.0, 1.0]
    assert [one.weight for one in examples([decision(outcome=judged)])] == [1.0]


def test_a_source_that_judges_flash_whoever_answers_stands_for_no_other_request() -> None:
    """Not where it judged Pro's answer either, as it need not where Flash's is good: else the good ones would count
    ten times as much as the bad ones."""
    chances = {"pro": 0.9, "flash": 0.1}
    down, up = Chosen("flash", 0.1, chances=chances), Chosen("pro", 0.9, chances=chances)
    bad, good, upward, heard = (
        decision("bad", outcome=Outcome(0.0, "judge", tiers={"pro": 1.0})),
        decision("good", outcome=Outcome(1.0, "judge")),
        decision("upward", "pro", outcome=Outcome(1.0, "judge", tiers={"flash": 0.0})),
        decision("heard", outcome=Outcome(1.0, "caller", tiers={"pro": 1.0})),
    )
    bad.route = good.route = heard.route = down
    upward.route = up
    assert [one.weight for one in examples([bad, good, upward, heard])] == [1.0, 1.0, 1.0, 10.0]
    assert [one.weight for one in examples([bad, good])] == [10.0, 10.0], "Pro is asked behind Flash's answers only"


def test_one_word_on_flash_where_pro_answered_makes_nobody_a_judge_of_whoever_answers() -> None:
    """Any caller may send it, and those who judge what they got would count a tenth of what they stand for."""
    down, up = (Chosen(tier, p, chances={"pro": 0.9, "flash": 0.1}) for tier, p in (("flash", 0.1), ("pro", 0.9)))
    heard, compared = decision("heard", outcome=Outcome(0.0)), Outcome(1.0, tiers={"flash": 0.0})
    others = [decision(f"{at}", "pro", outcome=compared if at == 0 else Outcome(1.0)) for at in range(3)]
    heard.route = down
    for one in others:
        one.route = up
    assert examples([heard, *others])[0].weight == 10.0
    assert examples([heard, *others[:1]])[0].weight == 1.0


def test_from_which_agreement_flash_counts_as_good_is_the_operators_to_say() -> None:
    records = [decision("a", outcome=Outcome(0.4, SHADOW)), decision("b", outcome=Outcome(0.4))]
    assert [(one.flash_ok, one.agree) for one in examples(records)] == [(False, 0.5), (False, None)]
    assert [one.flash_ok for one in examples(records, agree=0.3)] == [True, False], "a judgement stays what it is"


def test_an_outcome_that_came_late_counts(tmp_path: Path) -> None:
    late = LateOutcome(id="a", caller="ann", at=6.0, outcome=Outcome(0.0))
    file = tmp_path / "records.jsonl"
    file.write_bytes(b"\n".join(map(msgspec.json.encode, (decision(outcome=Outcome(1.0)), late))))
    assert [one.needed for one in examples(read([file]))] == [True]


@pytest.mark.parametrize(
    ("flash", "pro", "needed", "failed", "gain"),
    [
        (True, None, False, False, 0),
        (True, True, False, False, 0),
        (True, False, False, False, -1),
        (False, None, True, True, 1),
        (False, True, True, True, 1),
        (False, False, False, True, 0),
        (None, True, None, None, None),
    ],
)
def test_pro_is_needed_where_flash_fails_and_pro_does_not(
    flash: bool | None, pro: bool | None, needed: bool | None, failed: bool | None, gain: int | None
) -> None:
    one = Example(id="a", score=0.5, flash_ok=flash, pro_ok=pro)
    assert (one.needed, one.failed, one.gain) == (needed, failed, gain)
