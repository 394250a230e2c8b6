"""A calibration's file: what it gives, and what is none."""

import json
import math

import pytest

from gateway.calibration import load

WHOLE = {
    "schema": 1,
    "layer": {"intercept": 0.0, "weights": {"score": 2.0}, "means": {"score": 0.0}, "scales": {"score": 1.0}},
    "edges": [0.2, 0.5],
}


def test_a_file_gives_its_layer_and_its_edges() -> None:
    layer, edges = load(json.dumps(WHOLE))
    assert edges == (0.2, 0.5)
    assert layer.p({"score": 0.5}) == 0.5
    assert layer.p({"score": 0.75}) == pytest.approx(0.9)  # odds of three to one, squared


def test_an_input_that_is_missing_counts_as_its_mean() -> None:
    layer, _ = load(json.dumps(WHOLE))
    assert layer.p({}) == layer.p({"p_complex": 0.9}) == layer.p({"score": 0.5})


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"layer": {}},
        {"layer": {**WHOLE["layer"], "weights": ["score"]}},  # type: ignore[dict-item]
        {"layer": {**WHOLE["layer"], "scales": {"score": 0}}},  # type: ignore[dict-item]
        {"layer": {**WHOLE["layer"], "intercept": math.nan}},  # type: ignore[dict-item]
        {"edges": [0.5, 0.2]},
        {"edges": [math.nan]},
        {"edges": None},
    ],
)
def test_a_file_that_is_no_whole_calibration_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"calibration|order|finite"):
        load(json.dumps(WHOLE | change))
