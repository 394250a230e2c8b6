"""Does the guard notice drift, act on it, and leave quiet skipping alone?"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.flashmoe.guard import LEAST, Guard, Terms, bound, distance
from backends.flashmoe.policy import TopK
from backends.flashmoe.predictor import Predictor
from backends.flashmoe.session import Plan, Session


def stream(guard: Guard, steps: int, error: Callable[[int], float]) -> list[int]:
    """Decode steps whose layer errors follow `error(step)` at full pressure; gives the steps at which it tripped."""
    tripped, trips = [], guard.trips
    for _ in range(steps):
        guard.begin(1)
        if guard.trips > trips:
            tripped.append(guard.steps)
            trips = guard.trips
        if guard.looking:
            guard.watch("layer 0", error(guard.steps) * guard.pressure)
    return tripped


def noisy(mean: float, spread: float = 0.1, seed: int = 0) -> Callable[[int], float]:
    chance = torch.Generator().manual_seed(seed)
    return lambda _: mean * (1 + spread * torch.randn(1, generator=chance).item())


def calibrated() -> Guard:
    calm = noisy(0.2)
    values = torch.tensor([calm(0) for _ in range(200)])
    return Guard({"layer 0": bound(values, Terms().smooth)})


def test_a_quiet_stream_never_trips_and_keeps_full_pressure() -> None:
    guard = calibrated()
    assert stream(guard, 100_000, noisy(0.2, seed=1)) == []
    assert guard.pressure == 1


@pytest.mark.parametrize("times", [2.5, 4.0, 20.0])
def test_drift_trips_within_512_steps(times: float) -> None:
    guard = calibrated()
    stream(guard, 5000, noisy(0.2, seed=2))
    drifted = stream(guard, 512, lambda _: 0.2 * times / guard.pressure)
    assert len(drifted) == 1
    assert guard.exact


def test_small_drift_is_met_by_skipping_less_not_by_a_trip() -> None:
    guard = calibrated()
    assert stream(guard, 4000, noisy(0.2 * 1.5, seed=3)) == []
    assert 0.125 < guard.pressure < 1
    stream(guard, 4000, noisy(0.2, seed=4))
    assert guard.pressure == 1


def test_lasting_drift_trips_once_and_does_not_flap() -> None:
    guard = calibrated()
    assert len(stream(guard, 50_000, noisy(0.2 * 5, seed=5))) == 1
    assert guard.exact


def test_drift_that_comes_and_goes_trips_ever_more_rarely() -> None:
    guard = calibrated()
    quiet, loud = noisy(0.2, seed=6), noisy(1.0, seed=7)
    tripped = stream(guard, 100_000, lambda step: (loud if step // 1000 % 2 else quiet)(step))
    assert len(tripped) <= 4  # of fifty drifts
    assert guard.exact


def test_a_tripped_guard_lets_go_after_a_calm_while() -> None:
    guard = calibrated()
    stream(guard, 1000, noisy(2.0, seed=8))
    assert guard.exact
    stream(guard, 16 * 120, lambda _: 0.97 * guard.bounds["layer 0"])  # as good as that it was before it tripped
    assert guard.exact
    stream(guard, 16 * 120, noisy(0.2, seed=9))
    assert not guard.exact


@pytest.mark.parametrize(("trips", "looks"), [(1, 32), (2, 64), (3, 128)])
def test_each_trip_doubles_the_good_looks_in_a_row_after_which_it_lets_go(trips: int, looks: int) -> None:
    guard = Guard({"layer 0": 1.0}, exact=True, trips=trips)
    stream(guard, 16 * looks, lambda _: 0.1)
    assert guard.exact
    stream(guard, 1, lambda _: 0.1)  # acts on the last look
    assert not guard.exact


def test_a_bound_is_as_many_deviations_of_the_moving_average_above_the_mean() -> None:
    assert bound(torch.tensor([1.0, 3.0]), smooth=0.2) == pytest.approx(2 + 6 * 2**0.5 * (0.2 / 1.8) ** 0.5)


def test_a_bound_is_of_two_values_at_least_and_above_zero() -> None:
    with pytest.raises(ValueError, match="a longer text"):
        bound(torch.tensor([0.1]), smooth=0.2)
    assert bound(torch.zeros(8), smooth=0.2) == LEAST
    assert Guard({"layer 0": LEAST}).strain == 0


@pytest.mark.parametrize("once", [math.nan, math.inf, 1e30])
def test_what_is_no_number_trips_the_guard_once_and_does_not_blind_it(once: float) -> None:
    guard = calibrated()
    guard.watch("layer 0", once)
    assert len(stream(guard, 80, noisy(0.2, seed=10))) == 1
    stream(guard, 16 * 120, noisy(0.2, seed=11))
    assert not guard.exact
    assert len(stream(guard, 512, noisy(2.0, seed=12))) == 1


def test_the_divergence_of_the_final_answer_counts_like_a_layers_error() -> None:
    guard = Guard({"layer 0": 1.0, "kl": 0.01})
    guard.watch("kl", 0.05)
    assert guard.strain == pytest.approx(5)
    assert guard.metrics()["flashmoe_guard_strain"] == pytest.approx(5)
    assert guard.metrics()['flashmoe_guard_error{gauge="kl"}'] == pytest.approx(0.05)


def test_one_bad_audit_eases_once_and_is_forgiven_and_a_terrible_one_trips() -> None:
    for kl, pressures in ((0.15, {1.0, 0.5}), (0.5, {1.0})):
        guard = Guard({"layer 0": 0.3, "kl": 0.1})
        guard.watch("kl", kl)
        stream(guard, 80, lambda _: 0.1)
        assert guard.exact is (kl == 0.5)
        assert guard.pressure in pressures
        stream(guard, 4000, lambda _: 0.1)
        assert guard.exact is (kl == 0.5)  # until another audit says better
        assert guard.pressure == 1


def alone(session: Session, text: Tensor, steps: int) -> Tensor:
    """One-token steps of all sequences, each from nothing: the last logits."""
    for step in range(steps):
        logits = session.model(input_ids=text[:, step : step + 1], use_cache=False).logits
    return logits


@torch.inference_mode()
def test_answers_of_a_tripped_guard_are_bit_for_bit_those_without_skipping(model: Any, text: Tensor) -> None:
    with Session(model, Plan([])) as session:
        whole = alone(session, text, 20)
    guard = Guard({f"layer {at}": 1.0 for at in range(3)}, exact=True, trips=1)
    with Session(model, Plan([TopK(1)]), guard) as session:
        assert torch.equal(alone(session, text, 20), whole)
        assert guard.means  # it looked at what it did not serve
        assert session.kept == 0


@torch.inference_mode()
def test_a_predictor_that_goes_wrong_trips_the_guard_of_its_model(model: Any, trained: Predictor, text: Tensor) -> None:
    predictor = copy.deepcopy(trained)
    plan = Plan([TopK(5)], predictor)
    with Session(model, plan, probe := Guard({}, Terms(every=1))) as session:
        alone(session, text[:8], 60)
    guard = Guard({name: 1.5 * mean for name, mean in probe.means.items()}, Terms(every=8))
    with Session(model, plan, guard) as session:
        alone(session, text[:8], 100)
        assert not guard.trips
        for head in predictor.heads:
            head.out.weight.neg_()
            head.out.bias.neg_()
        alone(session, text[:8], 250)
    assert guard.exact


@torch.inference_mode()
def test_an_audit_of_a_single_token_compares_with_what_skips_nothing(model: Any, text: Tensor) -> None:
    with Session(model, Plan([TopK(1)])) as session:
        assert session.audit(text[:2, :1]) > 0.01
        assert session.plan.policies == [TopK(1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_distance_is_relative_to_the_whole(dtype: torch.dtype) -> None:
    whole = torch.full((16, 4096), 300.0, dtype=dtype)  # whose norm is beyond the largest of sixteen bits
    assert distance(whole * 0.5, whole) == pytest.approx(0.5)
    assert distance(whole * 0, whole) == distance(whole * 0, whole * 0) == 0


@pytest.mark.parametrize(("sink", "others"), [(1.0, 0.4), (0.4, 1.0), (math.nan, 1.0)])
def test_a_token_of_huge_norm_counts_as_one_of_all_and_padding_not_at_all(sink: float, others: float) -> None:
    chance = torch.Generator().manual_seed(0)
    whole = torch.randn(24, 64, generator=chance)
    whole[0] *= 1000
    whole[16:] = 0
    scale = torch.full((24, 1), others)
    scale[0] = sink
    mean = (15 * (1 - others) + 1 - sink) / 16
    assert distance(whole * scale - whole, whole) == pytest.approx(mean, nan_ok=True)


def test_what_is_made_of_nothing_is_infinitely_far() -> None:
    whole = torch.eye(4)
    whole[1] = 0
    assert distance(torch.eye(4) - whole, whole) == math.inf
