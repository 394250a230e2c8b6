"""Thresholds set anew on newer traffic, where the order of requests stays an earlier calibration's."""

from dataclasses import replace

import pytest

from gateway.calibrate import Example, Unproven, moved, parse
from gateway.calibrate.kept import UNJUDGED
from gateway.calibration import Basis, Fitted, Layer
from tests.gateway.test_calibrate import by_score, realised, traffic

TARGET = parse("pro_share=0.25")
BASIS = Basis((0.5,), (150, 150), 300, "needed", judged=True, agree=None, question="house.v1")
BY_SCORE = Layer(0.0, {"score": 1.0}, {"score": 0.0}, {"score": 1.0})
KEPT = Fitted(BY_SCORE, (0.75,), BASIS)
BY_VERDICT = Fitted(
    replace(BY_SCORE, weights={"p_complex": 1.0}, means={"p_complex": 0.0}, scales={"p_complex": 1.0}), (0.5,), BASIS
)
BY_SAME = KEPT._replace(layer=replace(BY_SCORE, weights={}))


def harder(count: int, seed: int = 1) -> list[Example]:
    """Newer traffic, of which nobody judged anything: every score lies in the upper half."""
    return [replace(one, score=0.5 + one.score / 2) for one in traffic(count, by_score, labels=0, seed=seed)]


def asked(question: str | None) -> list[Example]:
    return [replace(one, p_complex=one.score, question=question) for one in harder(200)]


def test_the_share_is_met_on_other_traffic_without_outcomes_and_the_order_stays() -> None:
    found, next_ones = moved(KEPT, harder(1500), TARGET), harder(2000, seed=2)
    assert sum(one.score >= 0.75 for one in next_ones) / 2000 == pytest.approx(0.5, abs=0.03), "by the old threshold"
    assert realised(found, next_ones) == pytest.approx([0.75, 0.25], abs=0.03)
    assert found.layer == KEPT.layer
    assert found.report["shares"][1]["low"] < 0.25 < found.report["shares"][1]["high"]


def test_drift_is_told_by_the_newer_traffic_and_outcomes_by_what_the_layer_was_fitted_on() -> None:
    basis = moved(KEPT, harder(1000), TARGET).basis
    assert (sum(basis.counts), min(basis.edges) > 0.5, basis.asked) == (1000, True, False)
    assert replace(basis, edges=BASIS.edges, counts=BASIS.counts) == BASIS
    assert moved(BY_VERDICT, asked("house.v1"), TARGET).basis.asked


def test_no_gain_is_proven_and_what_a_share_lacks_is_told() -> None:
    few, many = moved(KEPT, harder(200), TARGET), moved(KEPT, harder(1500), TARGET)
    assert (few.proven, many.proven, many.caveats) == (False, False, (UNJUDGED,))
    assert f"200 records set a share to within {few.report['within']:.3f} (95 %)" in "".join(few.caveats)


@pytest.mark.parametrize(
    ("kept", "records", "target", "why"),
    [
        (KEPT, harder(99), "pro_share=0.25", "99 records"),
        (KEPT, harder(200), "flash_failure=0.05", "only thresholds for shares"),
        (KEPT._replace(basis=None), harder(200), "pro_share=0.25", "says what it was fitted on"),
        (BY_VERDICT, asked("house.v2"), "pro_share=0.25", "answer 'house.v2', those of .* 'house.v1'"),
        (BY_VERDICT, harder(200), "pro_share=0.25", "answer None"),
        (BY_SAME, harder(200), "pro_share=0.6", "have the same p; the nearest shares are 0.00/1.00"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(kept: Fitted, records: list[Example], target: str, why: str) -> None:
    with pytest.raises(Unproven, match=why):
        moved(kept, records, parse(target))
