"""What other choices would have brought, from choices that chance made."""

from random import Random

import pytest

from gateway.estimate import Unknown, Weighed, estimate, wilson


def logged(count: int, seed: int, p: float) -> list[Weighed]:
    """Outcomes of a policy that takes the good choice (quality 0.8) with probability `p`, else the bad one (0.2);
    weighed for a policy that always takes the good one."""
    chance = Random(seed)
    found = []
    for _ in range(count):
        good = chance.random() < p
        value = float(chance.random() < (0.8 if good else 0.2))
        found.append((1 / p if good else 0.0, value))
    return found


def test_weighed_outcomes_estimate_a_policy_that_was_not_in_force() -> None:
    runs = [estimate(logged(400, seed, 0.2)) for seed in range(30)]
    assert sum(run.plain for run in runs) / len(runs) == pytest.approx(0.8, abs=0.03)
    assert sum(run.value for run in runs) / len(runs) == pytest.approx(0.8, abs=0.02)
    assert sum(run.low <= 0.8 <= run.high for run in runs) >= 25
    assert all(run.low < run.value < run.high for run in runs)


def test_the_effective_number_is_that_of_the_outcomes_that_count() -> None:
    found = estimate(logged(1000, 1, 0.2))
    assert found.outcomes == 1000
    assert 150 < found.effective < 250
    assert estimate([(1.0, 0.5)] * 40).effective == pytest.approx(40)


def test_the_same_outcomes_give_the_same_interval() -> None:
    assert estimate(logged(500, 2, 0.5)) == estimate(logged(500, 2, 0.5))


def test_the_interval_is_as_wide_as_the_mean_of_so_many_is_uncertain() -> None:
    found = estimate([(1.0, float(at % 2)) for at in Random(3).sample(range(400), 400)])
    assert [found.low, found.high] == pytest.approx([0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025], abs=0.012)


def test_too_few_effective_outcomes_are_refused_however_many_there_are() -> None:
    with pytest.raises(Unknown, match="effective outcomes of 2000"):
        estimate([(100.0, 1.0)] * 5 + [(0.01, 1.0)] * 1995)
    with pytest.raises(Unknown, match="0 effective"):
        estimate([(0.0, 1.0)] * 100)
    with pytest.raises(Unknown, match="no outcome"):
        estimate([])


def test_choices_that_chance_never_made_are_refused() -> None:
    with pytest.raises(Unknown, match=r"12\.5% of its choices"):
        estimate([(1.0, 1.0)] * 100, unsupported=0.125)


def test_the_interval_of_a_share_stays_within_0_and_1() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)
    low, high = wilson(0.0, 50)
    assert low == 0.0
    assert 0.05 < high < 0.1
    assert wilson(0.1, 50) == pytest.approx((0.0435, 0.2136), abs=0.0001)
    low, high = wilson(0.5, 10_000)
    assert [low, high] == pytest.approx([0.49, 0.51], abs=0.001)
