"""What other choices would have brought, from choices that chance made."""

from random import Random

import pytest

from gateway.off_policy import Interval, Unknown, Weighed, Z, difference, estimate, rate, runs


def logged(count: int, seed: int, p: float) -> list[Weighed]:
    """Outcomes of a policy that takes the good choice (quality 0.8) with probability `p`, else the bad one (0.2);
    weighed for a policy that always takes the good one."""
    chance = Random(seed)
    found = []
    for _ in range(count):
        good = chance.random() < p
        value = float(chance.random() < (0.8 if good else 0.2))
        found.append(Weighed(1 / p if good else 0.0, value, 1 / p))
    return found


def test_weighed_outcomes_estimate_a_policy_that_was_not_in_force() -> None:
    runs = [estimate(logged(400, seed, 0.2)) for seed in range(30)]
    assert sum(run.plain for run in runs) / len(runs) == pytest.approx(0.8, abs=0.03)
    assert sum(run.value for run in runs) / len(runs) == pytest.approx(0.8, abs=0.02)
    assert sum(run.low <= 0.8 <= run.high for run in runs) >= 25
    assert all(run.low < run.value < run.high for run in runs)


@pytest.mark.parametrize(
    ("count", "explored", "good"), [(50, 1.0, 0.98), (300, 0.2, 0.98), (1500, 0.05, 0.98), (300, 0.2, 0.5)]
)
def test_nine_intervals_of_ten_hold_the_truth_also_where_nearly_all_is_good(
    count: int, explored: float, good: float
) -> None:
    """They are to hold it 95 times of 100; 60 draws tell that from the half of it where rare failures go unseen."""
    chance = Random(3)
    held = 0
    for _ in range(60):
        outcomes = [
            Weighed(1 / explored if chance.random() < explored else 0.0, float(chance.random() < good), 1 / explored)
            for _ in range(count)
        ]
        found = estimate(outcomes)
        held += found.low <= good <= found.high
    assert held >= 53


def moving(chance: Random, count: int, explored: float, moved: float) -> tuple[list[Weighed], list[Weighed]]:
    """Outcomes weighed for a policy that sends a part of the requests another way than they mostly went, where answers
    are good 0.9 times in place of 0.5 (0.9 of all others are), and for the policy in force; both explore."""
    weights = (1 - explored) / explored, explored / (1 - explored)
    square = explored * weights[0] ** 2 + (1 - explored) * weights[1] ** 2
    one, other = [], []
    for _ in range(count):
        moves, drawn = chance.random() < moved, chance.random() < explored
        value = float(chance.random() < (0.5 if moves and not drawn else 0.9))
        one.append(Weighed(weights[not drawn], value, square) if moves else Weighed(1.0, value, 1.0))
        other.append(Weighed(1.0, value, 1.0))
    return one, other


def test_intervals_hold_where_a_policy_moves_some_requests_and_few_outcomes_tell_of_them() -> None:
    """1,200 outcomes, some seven of which are explored among those that move. Of 40 intervals 38 are to hold the truth;
    by weights alone 178 of 200 did. How much better the policy is, is 0.2 * 0.4 but for what both explore."""
    chance = Random(8)
    held, ahead = 0, 0
    for _ in range(40):
        one, other = moving(chance, 1200, 0.03, 0.2)
        found, better = estimate(one), difference(one, other)
        held += found.low <= 0.8 * 0.9 + 0.2 * (0.97 * 0.9 + 0.03 * 0.5) <= found.high
        ahead += better.low <= 0.2 * 0.4 * 0.94 <= better.high
    assert [held, ahead] == pytest.approx([38, 38], abs=2)


def test_an_interval_knows_what_the_rare_choices_would_weigh_though_none_came() -> None:
    """Of 300 outcomes 30 are of requests that move, and of these one was explored: in four draws of ten none."""
    chance = Random(8)
    found = (difference(*moving(chance, 300, 0.03, 0.1)) for _ in range(60))
    assert sum(one.low <= 0.1 * 0.4 * 0.94 <= one.high for one in found) >= 53, "by the weights that came it is 35"


def test_an_interval_reckons_with_a_whole_conversation_that_did_not_come() -> None:
    named, alone = (estimate([Weighed(1.0, 1.0, 0.0, f"c{at // turns}") for at in range(300)]) for turns in (5, 1))
    assert named.low == pytest.approx(1 - 5 * (1 - alone.low), abs=0.005)


def test_a_difference_is_known_better_than_what_it_is_made_of() -> None:
    one, other = moving(Random(9), 2000, 0.2, 0.1)
    here, there, better = estimate(one), estimate(other), difference(one, other)
    assert better.value == pytest.approx(here.value - there.value)
    apart = ((here.high - here.low) ** 2 + (there.high - there.low) ** 2) ** 0.5
    assert better.high - better.low < 0.75 * apart
    assert better.low > 0
    back = difference(other, one)
    assert (back.value, back.low, back.high) == pytest.approx((-better.value, -better.high, -better.low))


def test_ways_that_choose_alike_do_not_differ_and_such_as_may_differ_never_surely_do_not() -> None:
    one = [Weighed(1.0, 1.0)] * 60
    assert difference(one, one) == Interval(0.0, 0.0, 0.0)
    both = difference([Weighed(1.0, 0.5), *one[1:]], one)
    assert both.low < -0.02 < both.value < 0 < both.high, "one request of sixty is all that tells them apart"


def test_an_interval_is_wider_where_outcomes_that_follow_each_other_are_alike() -> None:
    chance = Random(4)
    talks = [float(chance.random() < 0.7) for _ in range(300)]
    turns = [Weighed(1.0, good) for good in talks for _ in range(5)]
    mixed = chance.sample(turns, len(turns))
    found, independent = estimate(turns), estimate(mixed)
    assert found.high - found.low > 1.7 * (
        independent.high - independent.low
    )  # the root of 5, if all were kept together


def test_turns_of_one_conversation_are_in_one_run_though_others_come_between() -> None:
    names = [f"c{at % 60}" for at in range(300)]
    found = runs(names, 30)
    assert len({*zip(names, found, strict=True)}) == 60
    assert [found.count(run) for run in range(30)] == [10] * 30
    assert runs([None] * 6, 3) == runs([*"abcdef"], 3) == [0, 0, 1, 1, 2, 2]
    assert runs([None, *range(28), None], 30) == [*range(30)], "who has no name is like nobody"
    assert runs(["a", *[None] * 10, "a", *[None] * 8], 10)[::11] == [0, 0]
    assert runs(["a"] * 6 + [None] * 6, 6) == [0] * 6 + [3, 3, 4, 4, 5, 5], "half of all may be one conversation"
    assert runs(["a"] * 7 + [None] * 5, 6) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "more only begin alike"


def test_intervals_hold_where_conversations_interleave_if_their_names_are_known() -> None:
    chance = Random(4)
    held = {"named": [0, 0], "unnamed": [0, 0]}
    for _ in range(60):
        talks = [float(chance.random() < 0.7) for _ in range(60)]
        for kind, count in held.items():
            turns = [Weighed(1.0, talks[at % 60], 0.0, f"c{at % 60}" if kind == "named" else None) for at in range(300)]
            found, behind = estimate(turns), difference([one._replace(value=1.0) for one in turns], turns)
            count[0] += found.low <= 0.7 <= found.high
            count[1] += behind.low <= 0.3 <= behind.high
    assert min(held["named"]) >= 53
    assert max(held["unnamed"]) <= 48


def test_an_interval_has_a_width_though_all_that_is_known_is_good() -> None:
    few, many = (estimate([Weighed(1.0, 1.0)] * count) for count in (40, 4000))
    assert (few.value, few.high, many.high) == (1.0, 1.0, 1.0)
    assert 0.85 < few.low < 0.95  # an exact interval begins at 0.91
    assert 0.998 < many.low < 1.0


def test_the_effective_number_is_that_of_the_outcomes_that_count() -> None:
    found = estimate(logged(1000, 1, 0.2))
    assert found.outcomes == 1000
    assert 150 < found.effective < 250
    assert estimate([Weighed(1.0, 0.5)] * 40).effective == pytest.approx(40)


def test_the_same_outcomes_give_the_same_interval() -> None:
    assert estimate(logged(500, 2, 0.5)) == estimate(logged(500, 2, 0.5))


def test_the_interval_is_as_wide_as_the_mean_of_so_many_is_uncertain() -> None:
    found = estimate([Weighed(1.0, float(at % 2)) for at in Random(3).sample(range(400), 400)])
    assert [found.low, found.high] == pytest.approx([0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025], abs=0.012)


def test_the_interval_of_thirty_is_that_of_a_rate_with_one_bad_and_one_good_outcome_more() -> None:
    for good in (0, 6, 29):
        found = estimate([Weighed(1.0, float(at < good)) for at in range(30)])
        middle = (good + 1) / 32
        off = Z * (middle * (1 - middle) / 32) ** 0.5
        assert found.value == pytest.approx(good / 30)
        assert (found.low, found.high) == pytest.approx((max(0.0, middle - off), min(1.0, middle + off)))


def test_no_way_is_more_than_wholly_better() -> None:
    good, bad = ([Weighed(1.0, value)] * 30 for value in (1.0, 0.0))
    assert (difference(good, bad).high, difference(bad, good).low) == (1.0, -1.0)


def test_requests_that_mostly_went_elsewhere_count_for_as_many_as_there_are_of_them() -> None:
    found = estimate([Weighed(1.0, 1.0, 1.0)] * 60 + [Weighed(2.5, 0.0, 6.25)] * 40)
    assert found.value == pytest.approx(0.6)
    assert found.effective == pytest.approx(1 / (0.6**2 / 60 + 0.4**2 / (40 / 6.25)))


def test_too_few_effective_outcomes_are_refused_however_many_there_are() -> None:
    with pytest.raises(Unknown, match="effective outcomes of 2000"):
        estimate([Weighed(100.0, 1.0)] * 5 + [Weighed(0.01, 1.0)] * 1995)
    with pytest.raises(Unknown, match="0 effective"):
        estimate([Weighed(0.0, 1.0)] * 100)
    with pytest.raises(Unknown, match="no outcome"):
        estimate([])
    with pytest.raises(Unknown, match="9 effective outcomes of 50"):
        estimate([Weighed(1.05, 1.0, 5.8)] * 50)


def test_choices_that_chance_never_made_are_refused() -> None:
    with pytest.raises(Unknown, match=r"12\.5% of its choices"):
        estimate([Weighed(1.0, 1.0)] * 100, unsupported=0.125)


def test_the_interval_of_a_share_stays_within_0_and_1() -> None:
    assert rate([]) == Interval(0.0, 0.0, 1.0)
    none, many = (
        rate([Weighed(1.0, 0.0)] * 50),
        rate([Weighed(1.0, float(at % 2)) for at in Random(3).sample(range(10_000), 10_000)]),
    )
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0.05 < none.high < 0.1
    assert [many.low, many.high] == pytest.approx([0.49, 0.51], abs=0.002)
