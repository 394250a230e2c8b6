"""Does the cost model give the figures that follow from the published shapes?"""

import pytest

from backends.flashmoe.costmodel import (
    MIXTRAL,
    QWEN3_30B,
    V4_FLASH,
    Shape,
    compute_bound_from,
    distinct,
    layer_bound,
    step_bound,
    tables,
)


@pytest.mark.parametrize(("batch", "experts"), [(1, 6.0), (4, 23.2), (16, 80.8), (64, 200), (128, 244)])
def test_a_batch_touches_this_many_experts_of_v4_flash(batch: int, experts: float) -> None:
    assert distinct(256, 6, batch) == pytest.approx(experts, rel=0.005)


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


def test_dropping_every_routed_expert_makes_a_single_stream_only_half_as_fast_again() -> None:
    assert step_bound(V4_FLASH, 0, 1) == pytest.approx(1.53, abs=0.005)


def test_arithmetic_takes_longer_than_reading_from_49_tokens_an_expert() -> None:
    assert compute_bound_from(V4_FLASH) == pytest.approx(49, abs=0.5)


def test_the_tables_name_every_model() -> None:
    assert all(name in tables() for name in ("V4-Flash 6 to 4", "Qwen3-30B-A3B 8 to 4", "Mixtral-8x7B 2 to 1"))
