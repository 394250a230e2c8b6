"""How much of what drafts made was thrown away lately."""

import random

import pytest

from gateway.upstream.waste import REMEMBERED, Early, Waste


def test_waste_is_a_share_of_what_drafts_made_and_fades() -> None:
    at = 0.0
    waste = Waste(lambda: at)
    assert waste.within("ann", 0.0, 60.0)
    waste.add("ann", kept=700, wasted=300)
    assert waste.within("ann", 0.3, 60.0)
    assert not waste.within("ann", 0.29, 60.0)
    at = 180.0
    waste.add("ann", kept=1000)
    assert waste.within("ann", 0.02, 60.0)
    assert not waste.within("ann", 0.01, 60.0)


def test_a_stop_ends_by_itself() -> None:
    at = 0.0
    waste = Waste(lambda: at)
    waste.add("ann", wasted=1000)
    assert not waste.within("ann", 0.5, 60.0)
    at = 60.0
    assert waste.within("ann", 0.5, 60.0)


def test_a_few_tokens_stop_nothing() -> None:
    waste = Waste(lambda: 0.0)
    waste.add("ann", wasted=499)
    assert waste.within("ann", 0.0, 60.0)


def test_a_caller_with_drafts_enough_to_tell_is_judged_by_its_own_and_others_by_all() -> None:
    waste = Waste(lambda: 0.0)
    waste.add("ann", wasted=600)
    waste.add("bob", kept=500)
    waste.add("cid", kept=499)
    assert [waste.within(caller, 0.2, 60.0) for caller in ("ann", "bob", "cid", "new")] == [False, True, False, False]
    waste.add("bob", kept=5000)
    assert [waste.within(caller, 0.2, 60.0) for caller in ("ann", "bob", "cid", "new")] == [False, True, True, True]


def test_of_callers_those_with_the_latest_drafts_are_remembered() -> None:
    waste = Waste(lambda: 0.0)
    for name in ("ann", "bob", "ann"):
        waste.add(name, wasted=500)
    for number in range(REMEMBERED - 2):
        waste.add(f"caller {number}", kept=5000)
    assert [waste.within(name, 0.2, 60.0) for name in ("ann", "bob")] == [False, True]


def test_of_what_is_judged_at_most_the_share_starts_early_and_a_few_that_were_saved_up() -> None:
    early, chance = Early(), random.Random(1)
    wanted = [chance.random() < 0.5 for _ in range(1000)]
    started = [early.may(0.1, wanted=want) for want in wanted]
    assert sum(started) == pytest.approx(100, abs=3)
    assert all(want for want, start in zip(wanted, started, strict=True) if start)
    for _ in range(1000):
        early.may(0.1, wanted=False)
    assert sum(early.may(0.1, wanted=True) for _ in range(10)) <= 4, "what nobody wanted is not saved up for ever"
