"""How much of what drafts made was thrown away lately."""

from gateway.upstream import Waste


def test_waste_is_a_share_of_what_drafts_made_and_fades() -> None:
    at = 0.0
    waste = Waste(lambda: at)
    assert waste.within(0.0, 60.0)
    waste.add(kept=700, wasted=300)
    assert waste.within(0.3, 60.0)
    assert not waste.within(0.29, 60.0)
    at = 180.0
    waste.add(kept=1000)
    assert waste.within(0.02, 60.0)
    assert not waste.within(0.01, 60.0)


def test_a_stop_ends_by_itself() -> None:
    at = 0.0
    waste = Waste(lambda: at)
    waste.add(wasted=1000)
    assert not waste.within(0.5, 60.0)
    at = 60.0
    assert waste.within(0.5, 60.0)


def test_a_few_tokens_stop_nothing() -> None:
    waste = Waste(lambda: 0.0)
    waste.add(wasted=499)
    assert waste.within(0.0, 60.0)
