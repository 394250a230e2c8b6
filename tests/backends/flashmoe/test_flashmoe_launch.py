"""Is the launch chosen that the shapes ask for?"""

import pytest

from backends.flashmoe.kernels.launch import SHAPES, Format, Shape, choose, most_blocks

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", [Format.BF16, Format.MXFP4])
def test_tiles_cover_the_matrices_evenly(shape: Shape, form: Format, tokens: int) -> None:
    launch = choose(shape, form, tokens)
    assert launch.gate_up.rows == launch.down.rows
    assert shape.inner % launch.gate_up.columns == shape.hidden % launch.gate_up.depth == 0
    assert shape.hidden % launch.down.columns == shape.inner % (launch.down.depth * launch.down.splits) == 0


def test_small_batches_are_split_until_every_program_works() -> None:
    shape = SHAPES["gpt-oss-20b"]
    alone, many = choose(shape, Format.BF16, 1).down, choose(shape, Format.BF16, 64).down
    assert many.splits == 1
    assert choose(SHAPES["qwen3-30b"], Format.BF16, 1, processors=4).down.splits == 1
    assert choose(SHAPES["mixtral"], Format.BF16, 1).down.splits > 1
    assert alone.splits == 1  # 45 steps divide into no two parts


def test_rows_grow_with_what_an_expert_gets() -> None:
    rows = [choose(SHAPES["mixtral"], Format.BF16, tokens).down.rows for tokens in TOKENS]
    assert rows == sorted(rows)
    assert (rows[0], rows[-1]) == (16, 64)


def test_fp8_needs_whole_blocks() -> None:
    with pytest.raises(ValueError, match="no tile"):
        choose(SHAPES["gpt-oss-20b"], Format.FP8, 1)


@pytest.mark.parametrize(("pairs", "experts", "rows", "blocks"), [(6, 256, 16, 6), (600, 256, 16, 277), (64, 2, 16, 5)])
def test_blocks_of_the_worst_spread_have_room(pairs: int, experts: int, rows: int, blocks: int) -> None:
    assert most_blocks(pairs, experts, rows) == blocks
