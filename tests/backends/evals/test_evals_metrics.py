"""The measures of routing, against values that can be worked out by hand."""

import math
import random

import pytest

from backends.evals.metrics import (
    Pair,
    area,
    auroc,
    auroc_interval,
    bootstrap,
    lift,
    mcnemar,
    mean_skill,
    paired_difference,
    per_unit,
    percentile,
    skill,
    spread,
    wilson,
)

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


@pytest.mark.parametrize(("apart", "rare"), [(1.19, 0.5), (1.19, 0.1), (2.33, 0.1)])
def test_aurocs_interval_holds_the_truth_nine_times_of_ten_also_for_a_rare_label(apart: float, rare: float) -> None:
    """It is to hold it 95 times of 100; resampling fifty prompts holds it 70 to 80 times where five have the label."""
    chance, truth, held = random.Random(3), (1 + math.erf(apart / 2)) / 2, 0
    for _ in range(200):
        labels = [chance.random() < rare for _ in range(50)]
        found = auroc_interval([(chance.gauss(apart * label, 1), float(label)) for label in labels])
        held += math.isnan(found.value) or found.low <= truth <= found.high
    assert held >= 180


def test_aurocs_interval_ends_where_the_area_is_z_of_newcombes_deviations_away() -> None:
    """The variance as method 5 gives it, in which half of all prompts stand for either label's."""
    pairs = [(float(at % 7), float(at % 3 == 0)) for at in range(30)]
    found, half, cells = auroc_interval(pairs), 30 / 2, 10 * 20
    for end in (found.low, found.high):
        variance = end * (1 - end) * (2 * half - 1 - (3 * half - 3) / ((2 - end) * (1 + end))) / cells
        assert (end - found.value) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-5)
    assert 0 < found.low < found.value < found.high < 1


def test_aurocs_interval_has_a_width_for_a_perfect_order() -> None:
    found = auroc_interval([(float(at), float(at >= 25)) for at in range(50)])
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.9 < found.low < 0.93
    assert math.isnan(auroc_interval([(0.5, 1.0)]).low)


def test_intervals_hold_the_value_and_shrink_with_more_prompts() -> None:
    def drawn(n: int) -> list[Pair]:
        chance = random.Random(7)
        scores = [chance.random() for _ in range(n)]
        return [(score, float(chance.random() < score)) for score in scores]

    few, many = bootstrap(drawn(100), skill), bootstrap(drawn(2000), skill)
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert mean_skill([drawn(100), drawn(100)]).value == pytest.approx(few.value)


def test_an_interval_leaves_out_one_sample_in_forty_on_either_side() -> None:
    found = spread(0.5, [math.nan, *(at / 1000 for at in reversed(range(1001)))])
    assert (found.low, found.value, found.high) == pytest.approx((0.025, 0.5, 0.975))


def test_a_rates_interval_is_wilsons() -> None:
    found = wilson(81, 263)  # Newcombe, Statistics in Medicine 17 (1998), table I: 0.2553 to 0.3662
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20).low == 0
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    assert math.isnan(wilson(0, 0).value)


def test_an_uneven_change_is_unlikely_and_an_even_one_is_not() -> None:
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1
    assert mcnemar(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 2**10)
    assert mcnemar(5000, 5500) < 1e-5


def test_the_interval_of_a_difference_holds_it_nineteen_times_in_twenty() -> None:
    chance = random.Random(3)
    held = 0
    for _ in range(1000):
        drawn = chance.choices((1, -1, 0), (0.10, 0.14, 0.76), k=200)
        found = paired_difference(drawn.count(1), drawn.count(-1), 200)
        held += found.low <= -0.04 <= found.high
    assert 930 <= held <= 970
    assert paired_difference(0, 0, 10).low < 0 < paired_difference(0, 0, 10).high


def test_a_paired_difference_has_agresti_and_mins_interval_within_what_is_possible() -> None:
    found = paired_difference(10, 4, 100)  # 10.5 and 4.5 of 102
    middle, reach = 6 / 102, 1.959964 * math.sqrt(15 - 36 / 102) / 102
    assert (found.value, found.low, found.high) == pytest.approx((0.06, middle - reach, middle + reach))
    assert paired_difference(2, 0, 2).high == 1.0
    assert paired_difference(0, 2, 2).low == -1.0


def test_a_mean_per_unit_weighs_the_units() -> None:
    assert per_unit([(1.0, 1.0), (9.0, 3.0)]) == 2.5
    assert math.isnan(per_unit([]))


def test_a_mean_over_sets_has_the_interval_of_the_mean() -> None:
    pairs = [(at / 40, float(at % 3 == 0)) for at in range(40)]
    one, two = bootstrap(pairs, skill), mean_skill([pairs, pairs])
    assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high)), "they are drawn alike"


def test_where_nothing_is_known_there_is_no_interval() -> None:
    ends = [(one.low, one.high) for one in (spread(1.0, [math.nan]), paired_difference(0, 0, 0), wilson(0, 0))]
    assert all(math.isnan(end) for pair in ends for end in pair)


def test_a_percentile_is_the_value_that_this_part_lies_below() -> None:
    assert [percentile([3.0, 1.0, 2.0, 4.0], part) for part in (0.0, 0.25, 0.5, 0.99, 1.0)] == [1, 2, 3, 4, 4]
