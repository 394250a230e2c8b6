"""Do the matrix kernels give what torch gives, whatever is skipped, in every format and layout?"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: the kernels are not tested")
from backends.flashmoe.kernels import down, gate_up, weights
from backends.flashmoe.kernels.align import align
from backends.flashmoe.kernels.gate_up import GPT_OSS, SWIGLU, V4, Activation
from backends.flashmoe.kernels.launch import Format, Tile
from backends.flashmoe.policy import SKIPPED

EXPERTS, HIDDEN, INNER = 5, 256, 128
MASKS = ("none", "all but one", "a token", "an expert", "everything")


def asked(tokens: int, mask: str) -> Tensor:
    ids = torch.rand(tokens, EXPERTS).argsort(1)[:, :2].int()
    if mask == "all but one":
        ids[:, 1:] = SKIPPED
    if mask == "a token":
        ids[0] = SKIPPED
    if mask == "an expert":
        ids[ids == ids[-1, 0]] = SKIPPED
    return torch.full_like(ids, SKIPPED) if mask == "everything" else ids.contiguous()


def layer(form: Format, bias: bool) -> tuple[weights.Weights, weights.Weights]:
    up = torch.randn(EXPERTS, 2 * INNER, HIDDEN) / 8
    last = torch.randn(EXPERTS, HIDDEN, INNER) / 8
    biases = (torch.randn(EXPERTS, 2 * INNER), torch.randn(EXPERTS, HIDDEN)) if bias else (None, None)
    return weights.pack(up, form, biases[0]), weights.pack(last, form, biases[1])


def run(hidden: Tensor, ids: Tensor, share: Tensor, act: Activation, matrices: tuple[weights.Weights, weights.Weights],
        splits: int) -> Tensor:  # fmt: skip
    tile = Tile(16, 64, 128 if matrices[0].form is Format.FP8 else 64, 4, 2, 1)
    last = Tile(16, 64, tile.depth, 4, 2, splits)
    blocks = align(ids, EXPERTS, 16)
    inner = gate_up.gate_up(hidden, matrices[0], blocks, act, tile, programs=3)
    return down.down(inner, matrices[1], ids, share, blocks, last, programs=3)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize(
    ("tokens", "act"), [(1, V4), (7, GPT_OSS), (20, SWIGLU)], ids=["1-v4", "7-gpt-oss", "20-plain"]
)
def test_the_kernels_give_what_torch_gives(form: Format, mask: str, tokens: int, act: Activation) -> None:
    torch.manual_seed(tokens)
    matrices = layer(form, bias=act is GPT_OSS)
    hidden, ids = (torch.randn(tokens, HIDDEN) * 3).bfloat16(), asked(tokens, mask)
    share = torch.rand(ids.shape) * (ids >= 0)
    inner = gate_up.reference(hidden, matrices[0], ids, act).bfloat16()
    expected = down.reference(inner, matrices[1], ids, share)
    found = run(hidden, ids, share, act, matrices, splits=1 if form is Format.FP8 else 2)
    assert not found.isnan().any()
    assert (found.float() - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy, where the uncut gate is far below 0
def test_gates_are_cut_where_the_model_cuts_them() -> None:
    torch.manual_seed(0)
    matrices, ids = layer(Format.BF16, bias=False), asked(4, "none")
    hidden, share = (torch.randn(4, HIDDEN) * 40).bfloat16(), torch.ones(4, 2)
    cut, plain = (run(hidden, ids, share, act, matrices, 1).float() for act in (V4, SWIGLU))
    inner = gate_up.reference(hidden, matrices[0], ids, V4).bfloat16()
    expected = down.reference(inner, matrices[1], ids, share)
    assert (cut - expected).norm() <= 0.01 * expected.norm()
    assert (plain - expected).norm() > expected.norm()


def test_what_is_skipped_is_not_read() -> None:
    torch.manual_seed(0)
    (up, last), ids = layer(Format.BF16, bias=False), asked(6, "an expert")
    absent = sorted(set(range(EXPERTS)) - set(ids.reshape(-1).tolist()))
    up.data[absent] = float("nan")
    last.data[absent] = float("nan")
    hidden = torch.randn(6, HIDDEN).bfloat16()
    assert absent
    assert not run(hidden, ids, (ids >= 0).float(), V4, (up, last), 1).isnan().any()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that is allocated holds NaN, and the largest whole numbers, until it is written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("mask", MASKS[1:])
def test_what_was_never_written_is_not_read(mask: str) -> None:
    assert torch.empty(3).isnan().all()
    torch.manual_seed(0)
    matrices, ids = layer(Format.BF16, bias=True), asked(6, mask)
    hidden, share = torch.randn(6, HIDDEN).bfloat16(), torch.rand(ids.shape) * (ids >= 0)
    inner = gate_up.reference(hidden, matrices[0], ids, GPT_OSS).bfloat16()
    expected = down.reference(inner, matrices[1], ids, share)
    assert (run(hidden, ids, share, GPT_OSS, matrices, 2).float() - expected).norm() <= 0.01 * expected.norm()


def test_parts_are_summed_to_the_same_bits() -> None:
    torch.manual_seed(0)
    matrices, ids = layer(Format.BF16, bias=False), asked(6, "none")
    hidden, share = torch.randn(6, HIDDEN).bfloat16(), torch.rand(6, 2)
    first, again = (run(hidden, ids, share, V4, matrices, 2) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(("form", "error"), [(Format.BF16, 0.003), (Format.FP8, 0.04), (Format.MXFP4, 0.16)])
def test_a_format_loses_what_its_bits_cannot_hold(form: Format, error: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 256, 256)
    lost = (weights.dense(weights.pack(values, form)) - values).norm() / values.norm()
    assert 0.3 * error < lost < error


def test_every_value_of_mxfp4_comes_back() -> None:
    values = torch.tensor([*weights.FP4, *(-value for value in weights.FP4)]).repeat(1, 4, 4) * 2.0**-9
    assert torch.equal(weights.dense(weights.pack(values, Format.MXFP4)), values)
    with pytest.raises(ValueError, match="up to 12"):
        weights.pack(torch.full((1, 1, 32), 13.0), Format.MXFP4)
