"""What a calibration's report says of p, in figures that can be worked out by hand."""

import math
from typing import Any

import pytest

from gateway.calibrate.report import Judged, apart, bootstrap, brier, ece, gained, grouped, lift_interval, over_chance


def test_brier_is_the_weighted_mean_of_squared_distances() -> None:
    assert brier([Judged(0.2, 1.0, 3.0), Judged(0.5, 0.0)]) == pytest.approx((3 * 0.64 + 0.25) / 4)


def test_each_tenth_of_the_requests_counts_by_itself_in_ece() -> None:
    assert ece([Judged(0.5, at % 2) for at in range(10)]) == pytest.approx(0.5)
    assert ece([Judged(0.5, at % 2) for at in range(20)]) == pytest.approx(0.0)


def test_the_lift_is_known_where_anything_is_gained() -> None:
    assert over_chance(0.5, 1.0, 0.5, 0.25) == 0.75
    assert math.isnan(over_chance(0.0, 1.0, 0.0, 0.25))


def measured(judged: list[Judged]) -> Any:
    return bootstrap(judged, lambda one: gained(one, 0.5), over_chance)


def test_samples_in_which_nothing_is_gained_tell_nothing_of_the_lift() -> None:
    nothing = measured([Judged(at / 40, 0.0) for at in range(40)])
    assert (math.isnan(nothing.value), nothing.low, nothing.high) == (True, -math.inf, math.inf)
    once = measured([Judged(at / 40, float(at == 39)) for at in range(40)])
    assert -1 < once.low <= once.high < 1


def test_the_upper_end_of_a_lift_is_that_with_one_gain_more_of_mean_effective_weight() -> None:
    judged = [Judged(at / 40, float(at % 4 == 0), 2.0) for at in range(40)]
    found = lift_interval(judged, 0.5)
    assert (found.value, found.low) == (measured(judged).value, measured(judged).low)
    assert found.high == measured([*judged, Judged(1.0, 1.0, 2.0)]).high


def test_neighbours_equal_p_and_one_name_are_drawn_together_but_a_kind_of_requests_is_not() -> None:
    def sizes(*changes: tuple[int, Judged]) -> list[int]:
        judged = [Judged(at / 100, 0.0) for at in range(60)]
        for at, one in changes:
            judged[at] = one
        return sorted(map(len, grouped(judged)))

    equal, named = Judged(0.99, 0.0), Judged(0.0, 0.0, name="c")
    assert sizes() == [2] * 30
    assert max(sizes(*[(at, equal) for at in (1, 31)])) == 3
    assert max(sizes(*[(at, equal) for at in range(0, 60, 10)])) > 5, "a tenth"
    assert sizes(*[(at, equal) for at in range(0, 56, 8)]) == [2] * 30, "more than a tenth"
    talks = [(at, equal._replace(name=str(at % 16))) for at in range(0, 56, 8)]
    assert max(sizes(*talks)) > 2, "and those of one name are"
    assert max(sizes(*[(at, named._replace(p=0.9 + at / 1000)) for at in (1, 21, 41)])) > 2


def test_nothing_is_apart_from_a_sample_without_requests() -> None:
    assert not apart([], [0.5])
    assert not apart([Judged(0.5, 0.0)], [])
