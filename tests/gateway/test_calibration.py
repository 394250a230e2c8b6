"""A calibration's file: what it gives, and what is none."""

import json
import math

import pytest

from gateway.calibration import ALIKE, Basis, load

WHOLE = {
    "schema": 1,
    "layer": {"intercept": 0.0, "weights": {"score": 2.0}, "means": {"score": 0.0}, "scales": {"score": 1.0}},
    "edges": [0.2, 0.5],
}
BASIS = {"edges": [0.5], "counts": [3, 4], "outcomes": 5, "label": "needed", "judged": True, "agree": None}


def test_a_file_says_what_was_fitted_on() -> None:
    assert load(json.dumps(WHOLE | {"basis": BASIS})).basis == Basis((0.5,), (3, 4), 5, "needed", True, None)


def test_a_file_gives_its_layer_and_its_edges() -> None:
    layer, edges, basis = load(json.dumps(WHOLE))
    assert basis is None
    assert edges == (0.2, 0.5)
    assert layer.p({"score": 0.5}) == 0.5
    assert layer.p({"score": 0.75}) == pytest.approx(0.9)  # odds of three to one, squared
    assert (layer.p({"score": 1.0}), layer.p({"score": 0.0})) == pytest.approx((1.0, 0.0), abs=1e-5)


def test_an_input_that_is_missing_counts_as_its_mean() -> None:
    layer = load(json.dumps(WHOLE)).layer
    assert layer.p({}) == layer.p({"p_complex": 0.9}) == layer.p({"score": 0.5})


def test_p_stays_a_probability_however_far_an_input_is_from_what_was_seen() -> None:
    length = {"intercept": 0.0, "weights": {"length": 1.0}, "means": {"length": 0.0}, "scales": {"length": 1.0}}
    layer = load(json.dumps(WHOLE | {"layer": length})).layer
    assert (layer.p({"length": -1e9}), layer.p({"length": 1e9})) == (0.0, 1.0)


def test_a_layer_in_two_parts_gives_their_product() -> None:
    saved = {**WHOLE["layer"], "weights": {"length": 2.0}, "means": {"length": 0.0}, "scales": {"length": 1.0}}  # type: ignore[dict-item]
    layer = load(json.dumps(WHOLE | {"layer": {**WHOLE["layer"], "saved": saved}})).layer  # type: ignore[dict-item]
    assert layer.inputs == {"score", "length"}
    assert layer.p({"score": 0.75, "length": 0.0}) == pytest.approx(0.45)
    assert layer.p({"score": 0.75, "length": 2.0}) == pytest.approx(0.9 / (1 + math.exp(-4)))


def test_trees_have_their_part_in_p_where_they_know_what_they_ask_for() -> None:
    tree = {"name": "lines", "cut": 0.5, "below": 0.1, "above": {"name": "marks", "cut": 0.2, "below": 0.3, "above": 1}}
    layer = load(json.dumps(WHOLE | {"layer": {**WHOLE["layer"], "trees": [tree, 0.5]}})).layer  # type: ignore[dict-item]
    assert layer.inputs == {"score", "lines", "marks"}
    assert layer.p({"score": 0.5, "lines": 0.5, "marks": 0.2}) == pytest.approx(0.5 + ALIKE * 0.25)
    assert layer.p({"score": 0.5, "lines": 0.4}) == pytest.approx(0.5 - ALIKE * 0.2)
    assert layer.p({"score": 0.5}) == layer.p({"score": 0.5, "lines": 0.9}) == 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 3},
        {"layer": {}},
        {"layer": {**WHOLE["layer"], "weights": ["score"]}},  # type: ignore[dict-item]
        {"layer": {**WHOLE["layer"], "scales": {"score": 0}}},  # type: ignore[dict-item]
        {"layer": {**WHOLE["layer"], "scales": {}}},  # type: ignore[dict-item]
        {"layer": {**WHOLE["layer"], "intercept": math.nan}},  # type: ignore[dict-item]
        {"edges": [10**400]},
        {"layer": {**WHOLE["layer"], "trees": [1.5]}},  # type: ignore[dict-item]
        {"layer": {**WHOLE["layer"], "trees": [{"name": "lines", "cut": 0, "below": 0, "above": math.nan}]}},  # type: ignore[dict-item]
        {"edges": [0.5, 0.2]},
        {"edges": [math.nan]},
        {"edges": None},
        {"basis": {"edges": [0.5]}},
        {"basis": {**BASIS, "counts": [1, 2, 3]}},
        {"basis": {**BASIS, "counts": [3, 0]}},
    ],
)
def test_a_file_that_is_no_whole_calibration_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"calibration|order|finite|basis|probabilities"):
        load(json.dumps(WHOLE | change))


def test_a_file_that_holds_something_else_is_refused() -> None:
    for told in ([WHOLE], {"schema": 1}):
        with pytest.raises(ValueError, match="calibration"):
            load(json.dumps(told))


def test_a_file_whose_trees_are_too_deep_to_be_read_is_refused() -> None:
    deep = '{"name": "lines", "cut": 0.5, "above": 0.1, "below": ' * 5000 + "0.2" + "}" * 5000
    whole = json.dumps(WHOLE | {"layer": {**WHOLE["layer"], "trees": ["DEEP"]}})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="too deeply"):
        load(whole.replace('"DEEP"', deep))
