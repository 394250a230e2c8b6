"""Does the cost model give the figures that follow from the published shapes?"""

import pytest

from backends.flashmoe.costmodel import (
    MIXTRAL,
    QWEN3_30B,
    V4_FLASH,
    Shape,
    break_even,
    compute_bound_from,
    distinct,
    layer_bound,
    layer_floor,
    miss,
    pays,
    piggyback_saving,
    prefill_bound,
    step_bound,
    tables,
)


@pytest.mark.parametrize(("batch", "experts"), [(1, 6.0), (4, 23.2), (16, 80.8), (64, 200), (128, 244)])
def test_a_batch_touches_this_many_experts_of_v4_flash(batch: int, experts: float) -> None:
    assert distinct(256, 6, batch) == pytest.approx(experts, rel=0.005)


@pytest.mark.parametrize(("batch", "microseconds"), [(1, 19), (4, 72), (8, 138), (16, 251), (32, 423), (64, 621)])
def test_a_layer_of_v4_flash_takes_at_least_this_long_to_read(batch: int, microseconds: int) -> None:
    assert round(layer_floor(V4_FLASH, batch) * 1e6) == microseconds


@pytest.mark.parametrize(
    ("shape", "k", "batch", "step", "layer"),
    [
        (V4_FLASH, 4, 1, 1.13, 1.50),
        (V4_FLASH, 4, 16, 1.35, 1.42),
        (V4_FLASH, 4, 256, 1.02, 1.02),
        (V4_FLASH, 1.875, 4, 1.84, 3.12),
        (QWEN3_30B, 4, 4, 1.63, 1.91),
        (QWEN3_30B, 4, 64, 1.12, 1.13),
        (MIXTRAL, 1, 1, 1.78, 2.00),
        (MIXTRAL, 1, 32, 1.01, 1.01),
    ],
)
def test_skipping_is_bounded_by_the_bytes_left(shape: Shape, k: float, batch: int, step: float, layer: float) -> None:
    assert step_bound(shape, k, batch) == pytest.approx(step, abs=0.006)
    assert layer_bound(shape, k, batch) == pytest.approx(layer, abs=0.006)


def test_all_routed_experts_of_v4_flash_do_not_fit_one_h200() -> None:
    assert V4_FLASH.routed_bytes == pytest.approx(147e9, rel=0.01)
    assert 0.6 * V4_FLASH.routed_bytes == pytest.approx(88e9, rel=0.01)


def test_dropping_every_routed_expert_makes_a_single_stream_only_half_as_fast_again() -> None:
    assert step_bound(V4_FLASH, 0, 1) == pytest.approx(1.53, abs=0.005)


def test_a_prompt_gains_little_from_skipping() -> None:
    assert prefill_bound(0.5, 2.5 / 8) == pytest.approx(1.52, abs=0.005)
    assert prefill_bound(0.5, 4 / 6) == pytest.approx(1.20, abs=0.005)
    assert prefill_bound(1, 2.5 / 8) == pytest.approx(3.2)


def test_arithmetic_takes_longer_than_reading_from_49_tokens_an_expert() -> None:
    assert compute_bound_from(V4_FLASH) == pytest.approx(49, abs=0.5)


def test_a_predictor_of_ten_microseconds_eats_most_of_what_it_gains_alone_and_little_in_a_batch() -> None:
    eaten = [10e-6 / break_even(V4_FLASH, 1.875, batch) for batch in (1, 4, 16)]
    assert eaten == pytest.approx([0.78, 0.20, 0.06], abs=0.01)


def test_the_published_saving_of_batch_aware_selection_is_reproduced() -> None:
    assert piggyback_saving(QWEN3_30B, 4, 16) == pytest.approx(0.38, abs=0.005)  # published: 39 % of the layer's time
    assert piggyback_saving(V4_FLASH, 4, 16) == pytest.approx(0.29, abs=0.01)
    assert piggyback_saving(V4_FLASH, 3, 64) == pytest.approx(0.32, abs=0.005)


def test_a_missed_expert_costs_as_much_as_thirteen_layers() -> None:
    assert miss(V4_FLASH) / layer_floor(V4_FLASH, 1) == pytest.approx(13, abs=0.5)


def test_skipping_pays_in_the_middle_and_not_where_everything_is_touched() -> None:
    assert pays(V4_FLASH, 4, 16)
    assert not pays(V4_FLASH, 4, 256)
    assert not pays(MIXTRAL, 1, 32)


def test_the_tables_name_every_model() -> None:
    assert all(name in tables() for name in ("V4-Flash 6 to 4", "Qwen3-30B-A3B 8 to 4", "Mixtral-8x7B 2 to 1"))
