"""Calibration: what it fits, what it certifies, and when it refuses."""

import json
import math
import random
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from operator import truediv

import pytest

from gateway.calibrate import (
    Calibration,
    Example,
    SplitBy,
    TargetError,
    Unproven,
    calibrate,
    dump,
    fit,
    parse,
    told,
)
from gateway.calibrate.bound import ALL, allowed, certify, least, tail, thinned
from gateway.calibrate.halves import parted
from gateway.calibrate.report import (
    FAR,
    Judged,
    added,
    apart,
    bootstrap,
    brier,
    ece,
    gained,
    lift_interval,
    over_chance,
)
from gateway.calibrate.trees import LEAVES, TREES, Sample, grown
from gateway.calibration import ALIKE, EDGE, Branch, Layer, Node, load, taken
from gateway.off_policy import Z

SPLITS: tuple[SplitBy, SplitBy] = ("id", "caller")
Chance = Callable[[float, float], float]  # from score and measure x to the probability that Flash fails


def by_score(score: float, x: float) -> float:
    return 0.05 + 0.8 * score**2


def by_measure(score: float, x: float) -> float:
    return 0.05 + 0.8 * x


def by_nothing(score: float, x: float) -> float:
    return 0.3


def traffic(n: int, fails: Chance, labels: int | None = None, seed: int = 1) -> list[Example]:
    """`n` decisions, the first `labels` of them with outcomes; Pro is always right."""
    chance = random.Random(seed)
    found = []
    for i in range(n):
        score, x, noise = chance.random(), chance.random(), chance.random()
        bad = chance.random() < fails(score, x)
        known = labels is None or i < labels
        one = Example(
            id=f"{seed}-{i}", score=score, at=float(i), caller=f"caller {i % 7}",
            flash_ok=not bad if known else None, pro_ok=True if known else None, measures={"x": x, "noise": noise},
        )  # fmt: skip
        found.append(one)
    return found


def band(found: Calibration, one: Example) -> int:
    """Which band a request falls into: 0 is the simplest."""
    p = found.layer.p(told(one))
    return sum(p >= edge for edge in found.edges)


def realised(found: Calibration, records: list[Example]) -> list[float]:
    bands = [band(found, one) for one in records]
    return [bands.count(at) / len(bands) for at in range(len(found.edges) + 1)]


def test_a_share_is_met_within_3_points_on_records_that_it_has_not_seen() -> None:
    found = calibrate(traffic(1500, by_score, labels=300), parse("pro_share=0.25"))
    assert realised(found, traffic(2000, by_score, seed=2)) == pytest.approx([0.75, 0.25], abs=0.03)
    assert found.proven
    assert found.report["lift"]["low"] > 0
    assert not any("not shown" in caveat or "no better" in caveat for caveat in found.caveats)


def test_agreements_order_requests_but_prove_no_bound() -> None:
    agreed = [replace(one, pro_ok=None, agree=0.5) for one in traffic(600, by_score)]
    found = calibrate(agreed, parse("pro_share=0.25"))
    assert found.report["lift"]["low"] > 0
    assert any("not who is right" in text for text in found.caveats)
    assert not any(
        "not who is right" in text for text in calibrate(traffic(200, by_score), parse("cost=0.5", 5)).caveats
    )
    with pytest.raises(Unproven, match="0 outcomes"):
        calibrate(agreed, parse("flash_failure=0.2"))
    mixed = [*agreed[:300], *traffic(600, by_score)[300:]]
    assert (found.basis.judged, calibrate(mixed, parse("pro_share=0.25")).basis.judged) == (False, True)


@cache
def three_bands() -> Calibration:
    return calibrate(traffic(1500, by_score), parse("shares=0.5/0.3/0.2"))


def test_bands_have_the_shares_that_were_asked_for() -> None:
    found = three_bands()
    assert list(found.edges) == sorted(found.edges)
    assert realised(found, traffic(2000, by_score, seed=2)) == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_a_greater_share_never_has_a_higher_threshold() -> None:
    records = traffic(500, by_score, labels=200)
    edges = [calibrate(records, parse(f"pro_share={share}")).edges[0] for share in (0.1, 0.3, 0.5, 0.9)]
    assert edges == sorted(edges, reverse=True)


def test_a_cost_is_the_share_that_it_pays_for() -> None:
    assert parse("cost=0.4", 10.0).shares == pytest.approx((2 / 3, 1 / 3))


def test_p_is_what_happens() -> None:
    found = three_bands()
    fresh = [Judged(found.layer.p(told(one)), float(bool(one.failed))) for one in traffic(2000, by_score, seed=2)]
    assert ece(fresh) < 0.04
    assert brier(fresh) < brier([Judged(0.3167, one.value) for one in fresh])  # the mean of by_score


def test_p_rises_with_the_score_and_with_the_verdict() -> None:
    records = traffic(600, by_score)
    both = [replace(one, measures={}, p_complex=min(max(one.score + 0.1, 0.0), 1.0)) for one in records]
    layer = calibrate(both, parse("pro_share=0.25")).layer
    assert set(layer.weights) == {"score", "p_complex"}
    steps = [layer.p({"score": at / 10, "p_complex": at / 10}) for at in range(11)]
    assert steps == sorted(steps)


def test_a_measure_that_tells_something_moves_p_and_one_that_does_not_hardly_does() -> None:
    telling = calibrate(traffic(600, by_measure), parse("pro_share=0.25")).layer.weights
    assert telling["x"] > 0.3
    assert abs(telling["noise"]) < telling["x"] / 5
    useless = calibrate(traffic(600, by_score), parse("pro_share=0.25")).layer.weights
    assert useless["score"] > 0.6
    assert max(abs(useless["x"]), abs(useless["noise"])) < 0.1


def test_kinds_of_requests_are_told_apart_where_no_direction_tells_them() -> None:
    def in_the_middle(score: float, x: float) -> float:
        return 0.7 if 0.3 < x < 0.7 else 0.1

    layer = calibrate(traffic(600, in_the_middle), parse("pro_share=0.25")).layer
    low, middle, high = (layer.p({"score": 0.5, "x": x, "noise": 0.5}) for x in (0.1, 0.5, 0.9))
    assert middle > max(low, high) + 0.05
    assert replace(layer, trees=()).p({"score": 0.5, "x": 0.5}) < max(low, high) + 0.05


def test_looks_tell_kinds_and_axes_directions() -> None:
    records = [
        replace(one, measures={"marks": one.measures["x"], "axis1": one.measures["noise"]})
        for one in traffic(600, by_measure)
    ]
    layer = calibrate(records, parse("pro_share=0.25")).layer
    assert set(layer.weights) == {"score", "axis1"}
    assert replace(layer, weights={}).inputs == {"score", "marks"}
    assert layer.p({"score": 0.5, "marks": 0.9}) > layer.p({"score": 0.5, "marks": 0.1}) + 0.05


def test_a_measure_that_short_texts_lack_counts_where_it_is_known() -> None:
    records = [
        replace(one, measures={"noise": one.measures["noise"]}) if at % 4 == 0 else one
        for at, one in enumerate(traffic(800, by_measure))
    ]
    layer = calibrate(records, parse("pro_share=0.25")).layer
    assert layer.p({"score": 0.5, "x": 0.9}) > layer.p({"score": 0.5}) > layer.p({"score": 0.5, "x": 0.1})
    rare = [replace(one, measures={}) if at % 4 else one for at, one in enumerate(records)]
    assert set(calibrate(rare, parse("pro_share=0.25")).layer.weights) == {"score"}


def test_a_measure_that_is_always_the_same_where_it_is_known_tells_nothing() -> None:
    records = [
        replace(one, measures={"noise": one.measures["noise"]} | ({"x": 0.3} if one.failed else {}))
        for one in traffic(600, lambda score, x: 0.6)
    ]
    assert "x" not in calibrate(records, parse("pro_share=0.25")).layer.inputs


def test_which_failures_pro_saves_is_learned_beside_where_flash_fails() -> None:
    def tried(seed: int) -> list[Example]:
        chance = random.Random(seed)
        return [
            replace(one, pro_ok=chance.random() < 1 - 0.8 * one.measures["x"])
            for one in traffic(1500, by_score, seed=seed)
        ]

    found = calibrate(tried(1), parse("pro_share=0.25"))
    saved, lost = ([found.layer.p({"score": score, "x": x}) for score in (0.2, 0.5, 0.9)] for x in (0.1, 0.9))
    assert saved == sorted(saved)
    assert lost == sorted(lost)
    assert all(one > 1.4 * other for one, other in zip(saved, lost, strict=True))
    fresh = [Judged(found.layer.p(told(one)), float(bool(one.needed))) for one in tried(2)]
    assert ece(fresh) < 0.04
    blind = calibrate([replace(one, pro_ok=None) for one in tried(1)], parse("pro_share=0.25")).layer
    assert blind.saved is None
    assert blind.p({"score": 0.9, "x": 0.9}) > 1.6 * lost[-1]


def test_pros_answers_beside_good_ones_of_flash_teach_no_order() -> None:
    chance = random.Random(3)
    both = [replace(one, pro_ok=chance.random() < 0.6) for one in traffic(600, by_score)]
    one_after_the_other = [one if one.failed else replace(one, pro_ok=None) for one in both]
    known, spared = (calibrate(records, parse("pro_share=0.25")) for records in (both, one_after_the_other))
    assert (spared.layer, spared.edges) == (known.layer, known.edges)
    assert spared.layer.saved is not None


@pytest.mark.parametrize("asked", ["every other time", "where Flash failed"])
def test_where_few_outcomes_tell_of_pro_p_is_still_how_often_it_saves_what_flash_fails(asked: str) -> None:
    chance = random.Random(3)
    truth = [replace(one, pro_ok=chance.random() < 0.2) for one in traffic(900, by_score)]
    tells = {one.id for at, one in enumerate(truth) if (one.failed if asked == "where Flash failed" else at % 2)}
    found = calibrate([one if one.id in tells else replace(one, pro_ok=None) for one in truth], parse("pro_share=0.25"))
    rate = sum(bool(one.needed) for one in truth) / len(truth)
    assert sum(found.layer.p(told(one)) for one in truth) / len(truth) == pytest.approx(rate, abs=0.02)
    assert found.report["rate"] == pytest.approx(rate, abs=0.03)
    assert found.report["ece"] < 0.05


def test_every_record_counts_in_the_edges_with_an_outcome_or_without() -> None:
    records = traffic(1200, by_score, labels=300)
    found = calibrate(records, parse("shares=0.5/0.3/0.2"))
    assert realised(found, records) == pytest.approx([0.5, 0.3, 0.2], abs=1.5 / len(records))
    assert found.basis.counts == (120,) * 10


@pytest.mark.parametrize(("simple", "share"), [(0.5, 0.5), (0.76, 0.24), (0.9, 0.1), (1.0, 0.0)])
def test_equal_scores_stay_together_on_the_side_that_comes_nearest_to_the_share(simple: float, share: float) -> None:
    records = [Example(id=str(at), score=0.1 if at < 200 * simple else 0.9) for at in range(200)]
    assert realised(calibrate(records, parse("pro_share=0.25")), records)[1] == pytest.approx(share)


def test_how_close_so_many_records_set_a_share_is_said_where_it_is_not_close() -> None:
    few, many = (calibrate(traffic(n, by_score), parse("pro_share=0.25")) for n in (300, 1300))
    (said,) = re.findall(r"300 records set a share to within (\S+) \(95 %\), (\d+) to within 0.03", str(few.caveats))
    assert float(said[0]) == pytest.approx(Z * math.sqrt(0.25 * 0.75 / 300), rel=0.2)
    assert int(said[1]) == pytest.approx(801, rel=0.4)
    assert many.report["within"] == pytest.approx(Z * math.sqrt(0.25 * 0.75 / 1300), rel=0.2)
    assert "set a share to within" not in "\n".join(many.caveats)


def talks(n: int, seed: int) -> list[Example]:
    """Conversations of ten turns whose scores are alike, all at the same time."""
    chance = random.Random(seed)
    middles = [chance.uniform(0.1, 0.9) for _ in range(n // 10)]
    return [
        Example(id=f"{seed}-{at}", score=middle + 0.1 * chance.random(), at=float(at), conversation=f"{seed}-{middle}")
        for at, middle in enumerate(middles * 10)
    ]


def test_how_close_a_share_is_set_counts_conversations_and_not_their_turns() -> None:
    """Else "95 %" held half of the time, and most shares were told to be missed."""
    after, target, held, missed = talks(20_000, seed=99), parse("pro_share=0.25"), 0, 0
    for seed in range(20):
        found = calibrate(talks(600, seed), target)
        held += abs(realised(found, after)[1] - 0.25) <= found.report["within"]
        missed += any("further from its target" in text for text in found.caveats)
    assert held >= 16
    assert missed <= 4


def test_a_share_that_moves_between_the_halves_is_told() -> None:
    records = traffic(600, by_score)
    risen = [replace(one, score=one.score**0.5) if at >= 300 else one for at, one in enumerate(records)]
    moved = "further from its target than chance"
    assert any(moved in text for text in calibrate(risen, parse("pro_share=0.25"), "time").caveats)
    assert not any(moved in text for text in calibrate(records, parse("pro_share=0.25"), "time").caveats)


def test_shares_need_no_outcomes_but_then_nothing_is_proven() -> None:
    found = calibrate(traffic(1500, by_score, labels=0), parse("pro_share=0.25"))
    assert realised(found, traffic(2000, by_score, seed=2)) == pytest.approx([0.75, 0.25], abs=0.03)
    assert not found.proven
    assert "lift" not in found.report


def test_outcomes_that_are_all_alike_prove_no_share() -> None:
    found = calibrate(traffic(1000, lambda score, x: 0.0), parse("pro_share=0.25"))
    assert not found.proven
    assert any("nearly all alike" in caveat for caveat in found.caveats)


def test_a_handful_of_failures_prove_nothing_though_all_of_them_look_hard() -> None:
    records = [Example(id=str(at), score=0.1 + 0.8 * (at < 8), flash_ok=at >= 8) for at in range(200)]
    found = calibrate(records, parse("pro_share=0.25"))
    assert any("nearly all alike" in caveat for caveat in found.caveats)
    assert not found.proven
    assert "lift" not in found.report


def again(n: int, times: int, fails: Chance, seed: int) -> list[Example]:
    """Requests that are sent several times in a row, and fare alike."""
    return [
        replace(one, id=f"{one.id}-{turn}", at=one.at and one.at + turn / times)
        for one in traffic(n, fails, seed=seed)
        for turn in range(times)
    ]


@pytest.mark.parametrize("split", ["id", "time"])
def test_requests_sent_again_prove_no_gain_by_themselves(split: str) -> None:
    found = [calibrate(again(100, 4, by_nothing, seed), parse("pro_share=0.25"), split) for seed in (1, 11)]  # type: ignore[arg-type]
    assert [one.proven for one in found] == [False, False]


def test_requests_sent_again_count_once_in_a_bound() -> None:
    found = calibrate(traffic(700, lambda score, x: 0.01), parse("flash_failure=0.05@0.95"))
    assert found.report["bound"]["kept"] > 300
    with pytest.raises(Unproven, match="at most 0 may"):
        calibrate(again(140, 5, lambda score, x: 0.01, 1), parse("flash_failure=0.05@0.95"))


def test_a_score_that_tells_nothing_is_not_proven() -> None:
    found = calibrate(traffic(600, by_nothing), parse("pro_share=0.25"))
    assert not found.proven
    assert any("not shown" in caveat for caveat in found.caveats)


@pytest.mark.parametrize("split", ["id", "time", "caller"])
def test_nothing_is_judged_on_what_it_was_fitted_on(split: str) -> None:
    records = traffic(400, by_score)
    first = calibrate(records, parse("pro_share=0.25"), split)  # type: ignore[arg-type]
    assert first.report["judged"] + 100 <= len(records)
    if split == "time":
        flipped = [replace(one, flash_ok=not one.flash_ok) for one in records[200:]]
        wrong = calibrate([*records[:200], *flipped], parse("pro_share=0.25"), "time")
        assert wrong.report["lift"]["value"] < 0, "what the older half taught is wrong of the later one"
        assert any("no better than the mean rate" in caveat for caveat in wrong.caveats)


def test_a_split_by_caller_keeps_each_callers_requests_together() -> None:
    halves = parted(traffic(400, by_score), "caller")
    first, second = ({one.caller for one in half} for half in halves)
    assert sum(map(len, halves)) == 400
    assert (len(first) + len(second), first & second) == (7, set())


def test_a_few_callers_prove_no_gain_for_others() -> None:
    known, others = (calibrate(traffic(400, by_score), parse("pro_share=0.25"), split) for split in SPLITS)
    assert [known.proven, others.proven] == [True, False]
    assert any(re.search(r"worth those of [34] callers", caveat) for caveat in others.caveats)


def test_a_split_by_time_fits_on_the_older_half_whatever_the_order_of_the_records() -> None:
    older, later = parted(traffic(400, by_score)[::-1], "time")
    assert [one.at for one in older + later] == [float(at) for at in range(400)]


def test_requests_that_all_look_alike_fall_on_one_side_and_are_counted_each() -> None:
    records = [replace(one, score=0.5, measures={}) for one in traffic(400, by_nothing)]
    found = calibrate(records, parse("pro_share=0.75"))
    assert [share["value"] for share in found.report["shares"]] == [0.0, 1.0]
    assert (found.basis.counts, found.report["flash_failure"]) == ((400,), None)
    assert any("scores are equal" in caveat for caveat in found.caveats)


def test_outcomes_of_some_requests_only_prove_nothing_and_order_none() -> None:
    def asked(most: float) -> Calibration:
        records = traffic(400, lambda score, x: float(x > 0.8))
        known = [replace(one, flash_ok=None) if one.score > most else one for one in records]
        return calibrate(known, parse("pro_share=0.25"))

    some, nearly_all = asked(0.7), asked(0.95)
    assert (some.proven, some.layer.inputs) == (False, {"score"})
    assert (nearly_all.proven, nearly_all.layer.inputs) == (True, {"score", "x", "noise"})
    unlike = "differ from those without"
    assert [any(unlike in caveat for caveat in found.caveats) for found in (some, nearly_all)] == [True, False]


def test_outcomes_that_changed_while_they_were_recorded_prove_nothing() -> None:
    before, target = traffic(500, by_score), parse("pro_share=0.25")
    worse = [replace(one, flash_ok=one.score < 0.4) if (one.at or 0) >= 350 else one for one in before]
    found = [calibrate(records, target) for records in (before, worse)]
    assert [one.proven for one in found] == [True, False]
    assert [any("outcomes are others since" in caveat for caveat in one.caveats) for one in found] == [False, True]
    assert found[1].report["lift"]["low"] > 0


def test_few_outcomes_do_not_turn_the_order_round() -> None:
    found = calibrate(traffic(1000, lambda score, x: 0.9 - 0.8 * score, labels=80), parse("pro_share=0.25"))
    assert found.layer.p({"score": 0.9}) > found.layer.p({"score": 0.1})


@pytest.mark.parametrize(
    ("records", "target", "split", "why"),
    [
        (traffic(99, by_score), "pro_share=0.25", "id", "99 records"),
        (traffic(1000, by_score, labels=60), "flash_failure=0.3@0.95", "id", "outcomes or so"),
        (traffic(1000, by_nothing), "flash_failure=0.1@0.95", "id", "no threshold keeps"),
        ([Example(id=str(i), score=0.5) for i in range(200)], "pro_share=0.25", "time", "needs `at`"),
        ([Example(id=str(i), score=0.5) for i in range(200)], "pro_share=0.25", "caller", "needs two callers"),
    ],
)  # fmt: skip
def test_what_the_records_do_not_show_is_refused(records: list[Example], target: str, split: str, why: str) -> None:
    with pytest.raises(Unproven, match=why):
        calibrate(records, parse(target), split)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["share=0.2", "pro_share=25", "pro_share=x", "pro_share", "shares=0.5/0.4", "shares=1", "cost=0.4",
     "flash_failure=0@0.95", "flash_failure=0.1@2"],
)  # fmt: skip
def test_a_target_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match=text):
        parse(text)


def test_a_cost_that_not_even_flash_meets_is_refused() -> None:
    with pytest.raises(TargetError, match="more than 1"):
        parse("cost=0.4", 1.0)
    with pytest.raises(TargetError, match="all on Flash costs"):
        parse("cost=0.05", 10.0)


def certified(judged: list[Judged], rate: float = 0.1, confidence: float = 0.9) -> tuple[float, int, int] | None:
    found = certify(judged, rate, confidence)
    return (found.threshold, found.kept, found.failures) if found else None


def test_a_certified_bound_is_broken_no_more_often_than_its_confidence_allows() -> None:
    chance = random.Random(5)
    broken = drawn = 0
    for _ in range(100):  # by_score fails below a threshold t with a rate of 0.05 + 0.8 t**2 / 3
        scores = [chance.random() for _ in range(200)]
        rows = [Judged(score, float(chance.random() < by_score(score, 0))) for score in scores]
        found = certify(rows, rate=0.15, confidence=0.9)
        drawn += found is not None
        broken += found is not None and 0.05 + 0.8 * min(found.threshold, 1.0) ** 2 / 3 > 0.15
    assert drawn > 30
    assert broken <= 100 * 0.1 + 9  # three standard deviations


def test_a_bound_that_most_requests_keep_is_shown_though_some_of_the_simplest_fail() -> None:
    chance = random.Random(9)
    found = []
    for _ in range(20):
        rates = [0.05 + 0.06 * chance.random() for _ in range(300)]
        found.append(certified([Judged(p, float(chance.random() < p)) for p in rates], 0.15, 0.95))
    assert sum(one is not None and one[0] == ALL for one in found) >= 18, "tested from the fewest requests up it is 12"


def test_requests_that_look_alike_are_all_kept_or_none_and_all_counted() -> None:
    bad_above = [Judged(0.01, 0.0)] * 200 + [Judged(0.5, 1.0)] * 200
    assert certified(bad_above) == (0.5, 200, 0)
    few_below = [Judged(0.01, 0.0)] * 5 + [Judged(0.02, at % 2) for at in range(200)] + [Judged(0.9, 0.0)] * 200
    assert certified(few_below) is None, "five good ones show little, and with the next there are too many bad"
    assert certified([Judged(0.5, float(at < 3)) for at in range(200)]) == (ALL, 200, 3)


def test_the_fewest_requests_that_can_show_a_bound_show_it_and_one_less_does_not() -> None:
    enough = least(0.1, 0.9)
    good = [Judged(0.01, 0.0)] * enough
    assert certified(good) == (ALL, enough, 0)
    assert certified(good[:-1]) is None
    assert [allowed(count, 0.1, 0.9) for count in (0, enough - 1, enough)] == [-1, -1, 0]


def test_the_rate_of_a_useless_score_just_above_the_bound_is_rarely_certified() -> None:
    chance = random.Random(6)
    rows = ([Judged(0.2 * chance.random(), float(chance.random() < 0.101)) for _ in range(200)] for _ in range(100))
    assert sum(certified(some) is not None for some in rows) <= 100 * 0.1 + 9


def test_a_bound_is_certified_where_flash_is_good_enough() -> None:
    found = calibrate(traffic(2000, by_score, seed=6), parse("flash_failure=0.15@0.95"))
    fresh = [one for one in traffic(2000, by_score, seed=2) if band(found, one) == 0]
    assert len(fresh) > 500
    assert sum(bool(one.failed) for one in fresh) / len(fresh) < 0.17
    assert found.proven
    assert any("after drift" in caveat for caveat in found.caveats)


def test_a_bound_that_all_requests_keep_sends_none_to_pro() -> None:
    found = calibrate(traffic(2000, lambda score, x: 0.001), parse("flash_failure=0.05@0.95"))
    assert realised(found, traffic(500, by_score, seed=2)) == [1.0, 0.0]
    assert load(dump(found, "", 2000, 0.0))[1] == found.edges


def test_where_pro_is_no_better_there_is_nothing_to_gain() -> None:
    records = [Example(id=str(i), score=i / 400, flash_ok=i % 3 > 0, pro_ok=i % 3 == 0) for i in range(400)]
    found = calibrate(records, parse("pro_share=0.25"))
    assert not found.proven
    assert any("nothing to gain" in caveat for caveat in found.caveats)
    assert load(dump(found, "", 400, 0.0))[1] == found.edges


def explored(n: int, fails: Chance, explore: float, seed: int = 1) -> list[Example]:
    """Requests of which only what Flash answered is known: it answers where the score is low, else as `explore` has
    it; each outcome stands for as many as that leaves out."""
    chance, found = random.Random(seed), []
    for one in traffic(n, fails, seed=seed):
        p = 1 - explore if one.score < 0.5 else explore
        known = chance.random() < p
        found.append(
            replace(
                one, flash_ok=one.flash_ok if known else None, pro_ok=None, weight=1 / p if known else 1.0, measures={}
            )
        )
    return found


def test_what_chance_let_flash_answer_stands_for_what_it_did_not() -> None:
    records = explored(1200, by_score, 0.1)
    found = calibrate(records, parse("pro_share=0.25"))
    blind = calibrate([replace(one, weight=1.0) for one in records], parse("pro_share=0.25"))
    assert found.report["rate"] == pytest.approx(0.3167, abs=0.08)
    assert blind.report["rate"] < 0.2
    assert found.report["effective"] < 0.5 * found.report["outcomes"]
    assert blind.report["effective"] == blind.report["outcomes"] == found.report["outcomes"]
    unlike = "differ from those without"
    assert not any(unlike in caveat for caveat in found.caveats)
    assert any(unlike in caveat for caveat in blind.caveats)


def jumps(score: float, x: float) -> float:
    return 0.05 if score < 0.5 else 0.9


def test_a_bound_from_explored_outcomes_holds_for_all_requests() -> None:
    records, fresh = explored(2000, jumps, 0.2, seed=6), traffic(1000, jumps, seed=2)

    def failing(known: list[Example]) -> tuple[bool, float]:
        found = calibrate(known, parse("flash_failure=0.25@0.9"))
        kept = [bool(one.failed) for one in fresh if band(found, one) == 0]
        return found.proven, sum(kept) / len(kept)

    proven, rate = failing(records)
    assert (proven, rate <= 0.25) == (True, True)
    proven, rate = failing([replace(one, weight=1.0) for one in records])
    assert (proven, rate > 0.4) == (False, True), "what chance left out fails more often"


def test_an_outcome_counts_in_the_layer_for_as_many_as_it_stands_for() -> None:
    rows, hits = [{"score": 0.5}] * 100, [at < 10 for at in range(100)]
    assert fit(rows, hits, {}).p({}) == pytest.approx(0.1, abs=0.01)
    assert fit(rows, hits, {}, [9.0 if hit else 1.0 for hit in hits]).p({}) == pytest.approx(0.5, abs=0.01)


def test_weights_are_where_outcomes_and_beliefs_pull_alike() -> None:
    chance = random.Random(7)
    rows = [{"length": chance.random(), "score": chance.random()} if at % 5 else {"length": 1.0} for at in range(300)]
    hits = [None if at % 7 == 0 else chance.random() < row["length"] for at, row in enumerate(rows)]
    counts = [chance.choice((1.0, 3.0)) for _ in rows]
    priors = {"length": (0.0, 4.0), "score": (0.4, 5.0)}
    layer = fit(rows, hits, priors, counts)
    known = [(row, hit, count) for row, hit, count in zip(rows, hits, counts, strict=True) if hit is not None]
    lengths = [row["length"] for row in rows]
    assert layer.means["length"] == pytest.approx(statistics.fmean(lengths))
    assert layer.scales["length"] == pytest.approx(statistics.pstdev(lengths))
    weights = [count for _, _, count in known]
    each = sum(weights) / sum(weight**2 for weight in weights)  # they sum up to as many as they are worth
    off = [(row, each * count * (hit - layer.p(row))) for row, hit, count in known]
    for name, (middle, firm) in priors.items():
        units = {
            id(row): (taken(name, row[name]) - layer.means[name]) / layer.scales[name] for row in rows if name in row
        }
        pull = sum(missed * units.get(id(row), 0.0) for row, missed in off)
        assert pull == pytest.approx(firm * (layer.weights[name] - middle), abs=1e-4)
    assert sum(missed for _, missed in off) == pytest.approx(EDGE * layer.intercept, abs=1e-4)


def test_trees_cut_where_outcomes_part_and_no_leaf_has_less_than_its_part() -> None:
    chance, names = random.Random(8), ("x", "noise", "more", "else")
    outcomes = [Sample((at / 300, *(chance.random() for _ in names[1:])), at >= 150, 1.0 + at % 2) for at in range(300)]

    def leaves(node: Node, held: list[Sample]) -> Iterator[tuple[float, list[Sample]]]:
        if not isinstance(node, Branch):
            yield node, held
            return
        at = names.index(node.name)
        yield from leaves(node.below, [one for one in held if one.row[at] < node.cut])
        yield from leaves(node.above, [one for one in held if one.row[at] >= node.cut])

    trees = grown(outcomes, names)
    assert len(trees) == TREES
    for rate, held in (leaf for tree in trees for leaf in leaves(tree, outcomes)):
        assert len(held) >= len(outcomes) / LEAVES
        assert rate == pytest.approx(sum(one.weight for one in held if one.hit) / sum(one.weight for one in held))
    layer = Layer(0.0, {}, {}, {}, trees=trees)
    low, high = (layer.p({**dict.fromkeys(names, 0.5), "x": x}) for x in (0.1, 0.9))
    assert low < 0.5 - 0.3 * ALIKE < 0.5 + 0.3 * ALIKE < high, "of the cuts that are drawn the best is taken"


def test_outcomes_that_weigh_too_little_are_few() -> None:
    records = [replace(one, weight=1.0 if at % 20 else 500.0) for at, one in enumerate(traffic(600, by_score))]
    with pytest.raises(Unproven, match="worth"):
        calibrate(records, parse("flash_failure=0.3@0.95"))
    assert not calibrate(records, parse("pro_share=0.25")).proven


def test_a_thinned_sample_stands_for_the_whole() -> None:
    chance = random.Random(8)
    drawn = [
        Judged(p, 0.0, 1 / p) for p in (chance.random() for _ in range(20_000)) if p > 0.05 and chance.random() < p
    ]
    below, left = thinned(drawn, [0.5, ALL])
    for some, middle in ((below, 0.275), (left, 0.525)):
        assert sum(one.p for one in some) / len(some) == pytest.approx(middle, abs=0.03)
    assert list(map(len, thinned([Judged(0.1, 1.0, 3.0)] * 50 + [Judged(0.9, 1.0, 90.0)], [0.5]))) == [50], (
        "equal weights leave all, whatever those weigh that a threshold does not keep"
    )


def test_the_tail_is_the_binomial_one() -> None:
    assert tail(0, 10, 0.1) == pytest.approx(0.9**10)
    assert tail(10, 10, 0.1) == pytest.approx(1.0)
    assert tail(-1, 10, 0.1) == 0.0
    assert tail(allowed(200, 0.05, 0.95), 200, 0.05) <= 0.05 < tail(allowed(200, 0.05, 0.95) + 1, 200, 0.05)


def lift(judged: list[Judged], threshold: float) -> float:
    return over_chance(*added(gained(one, threshold) for one in judged))


def test_lift_is_1_less_the_share_for_perfect_order_and_0_for_everything() -> None:
    pairs = random.Random(3).sample([Judged(0.9, 1.0)] * 20 + [Judged(0.1, 0.0)] * 80, 100)
    assert lift(pairs, 0.5) == pytest.approx(0.8)
    assert lift(pairs, 0.9) == pytest.approx(0.8), "at the threshold is above"
    assert lift(pairs, 0.0) == 0
    assert math.isnan(lift([Judged(0.5, 0.0)], 0.1))
    assert lift_interval(pairs, 0.5).low > 0.7


def test_a_few_gains_that_are_all_missed_do_not_exclude_chance() -> None:
    few = [Judged(at / 100, float(at in {5, 20, 35, 50, 65})) for at in range(100)]  # one draw of chance in four
    found = lift_interval(few, 0.75)
    assert found.value == pytest.approx(-0.25)
    assert found.low < -0.25 < 0 < found.high < 0.3


def of_mean(one: Judged) -> tuple[float, float]:
    return one.value, 1.0


def test_a_bootstrapped_interval_is_as_wide_as_the_mean_of_so_many_is_uncertain() -> None:
    coins = [Judged(0.5, float(at % 2)) for at in random.Random(3).sample(range(400), 400)]
    found = bootstrap(coins, of_mean, truediv)
    assert [found.low, found.high] == pytest.approx([0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025], abs=0.012)


def test_an_interval_is_wider_where_neighbours_are_alike() -> None:
    chance = random.Random(4)
    talks = [float(chance.random() < 0.3) for _ in range(60)]
    turns = [Judged(0.5 + at / 1000, talks[at // 5]) for at in range(300)]
    together, mixed = (bootstrap(some, of_mean, truediv) for some in (turns, chance.sample(turns, len(turns))))
    assert together.high - together.low > 1.6 * (mixed.high - mixed.low), "the root of 5"


def test_ece_is_0_for_true_chances_and_the_distance_for_shifted_ones() -> None:
    pairs = [Judged(0.2, float(i % 5 == 0)) for i in range(1000)]
    assert ece(pairs) == pytest.approx(0, abs=1e-9)
    assert ece([Judged(one.p + 0.3, one.value) for one in pairs]) == pytest.approx(0.3)
    both = [Judged(p, float(i % 2)) for p in (0.2, 0.8) for i in range(500)]
    assert ece(both) == pytest.approx(0.3), "too low here does not make up for too high there"


def test_samples_of_one_kind_are_not_apart_and_shifted_ones_are() -> None:
    chance = random.Random(3)
    some = [Judged(chance.random(), 0.0) for _ in range(500)]
    assert not apart(some, [chance.random() for _ in range(500)])
    assert apart(some, [one.p + 0.3 for one in some])
    half = [Judged(p, 0.0, 1 / p) for p in (chance.random() for _ in range(4000)) if chance.random() < p]
    assert not apart(half, [chance.random() for _ in range(500)]), "weights make up for what chance left out"
    assert apart([Judged(one.p, 0.0) for one in half], [chance.random() for _ in range(500)])
    for size, off in ((500, 0.0859), (4000, FAR)):  # of two samples of 500 so much between the two is one in twenty
        even = [at / size for at in range(size)]
        shifted = [[Judged(p + off + more, 0.0) for p in even] for more in (-0.002, 0.002)]
        assert [apart(one, even) for one in shifted] == [False, True]


def test_a_calibration_decides_from_its_file_as_it_did_before() -> None:
    records = traffic(600, by_measure)
    found = calibrate(records, parse("pro_share=0.25"))
    text = dump(found, "00ff", len(records), 0.0)
    layer, edges, _ = load(text)
    assert ([layer.p(told(one)) for one in records], edges) == (
        [found.layer.p(told(one)) for one in records], found.edges,
    )  # fmt: skip
    written = json.loads(text)
    assert (written["created"], written["records"]) == ("1970-01-01T00:00:00+00:00", {"sha256": "00ff", "n": 600})
    assert (written["target"], written["inputs"]) == ("pro_share=0.25", ["score", "x", "noise"])
