"""The measures of routing, against values that can be worked out by hand."""

import math
import random

import pytest

from backends.evals.metrics import Pair, area, auroc, bootstrap, lift, mean_skill, skill

WON = [1.0, 1.0, 0.0, 0.0]


def test_skill_is_1_for_a_perfect_order_and_below_0_for_the_reverse() -> None:
    assert skill([(gain, gain) for gain in WON]) == pytest.approx(1.0)
    assert skill([(-gain, gain) for gain in WON]) == pytest.approx(-1.0)


def test_equal_scores_have_no_skill_in_whatever_order_they_come() -> None:
    chance = random.Random(1)
    pairs: list[Pair] = [(0.5, chance.choice((-1.0, 0.0, 1.0, 1.0))) for _ in range(99)]
    assert skill(pairs) == pytest.approx(0.0)
    assert skill(sorted(pairs)) == pytest.approx(0.0)


def test_the_area_is_that_under_the_curve() -> None:
    # sent upward: a quarter of the gain 1/4, then nothing, then both left together
    assert area([(3.0, 1.0), (2.0, 0.0), (1.0, 1.0), (1.0, 0.0)]) == pytest.approx((0.5 + 1 + 1.5 * 2) / 16)


def test_lift_is_what_is_recovered_above_the_share() -> None:
    assert lift([(1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (0.0, 0.0)]) == pytest.approx(0.25)
    assert math.isnan(lift([(1.0, 0.0)]))


def test_auroc_counts_ties_half() -> None:
    assert auroc([(0.1, 0.0), (0.9, 1.0)]) == 1
    assert auroc([(0.5, 0.0), (0.5, 1.0), (0.7, 1.0), (0.2, 0.0)]) == pytest.approx(3.5 / 4)
    assert math.isnan(auroc([(0.5, 1.0)]))


def test_intervals_hold_the_value_and_shrink_with_more_prompts() -> None:
    def drawn(n: int) -> list[Pair]:
        chance = random.Random(7)
        scores = [chance.random() for _ in range(n)]
        return [(score, float(chance.random() < score)) for score in scores]

    few, many = bootstrap(drawn(100), skill), bootstrap(drawn(2000), skill)
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert mean_skill([drawn(100), drawn(100)]).value == pytest.approx(few.value)
