"""Can one CUDA graph replay whatever is skipped? It can if nothing that the host does depends on what the device holds.

There is no GPU here, so all that the host asks of torch is watched, while Triton's interpreter reads the memory itself.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

pytest.importorskip("triton", reason="triton is not installed: the kernels are not tested")
from backends.flashmoe.kernels import align, down, gate_up, route
from backends.flashmoe.kernels.gate_up import SWIGLU
from backends.flashmoe.kernels.launch import Format, Tile
from backends.flashmoe.kernels.route import Rule
from backends.flashmoe.kernels.weights import Weights, pack

EXPERTS, HIDDEN, INNER, TOKENS, TOP = 8, 128, 64, 9, 3
TILE = Tile(rows=16, columns=64, depth=64, warps=4, stages=2, splits=1)
READING = {
    *("item", "tolist", "numpy", "cpu", "to", "type", "equal", "allclose", "is_nonzero", "split", "tensor_split"),
    *("nonzero", "argwhere", "unique", "unique_consecutive", "bincount", "masked_select", "repeat_interleave"),
    *(
        "__array__",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__len__",
        "__contains__",
        "__iter__",
        "__format__",
    ),
}


class Watched(TorchFunctionMode):
    """What the host asks of torch, in order; it may not ask for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", str(function))
        assert name not in READING, f"the host reads a value: {name}"
        answer = function(*args, **(kwargs or {}))
        self.done.append(f"{name} {tuple(answer.shape) if isinstance(answer, Tensor) else ''}")
        return answer


def asked(run: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """The answer of a run, and all that the host did for it."""
    with Watched() as watched:
        answer = run()
    return answer, watched.done


@pytest.fixture(scope="module")
def matrices() -> tuple[Weights, Weights]:
    torch.manual_seed(0)
    first, last = torch.randn(EXPERTS, 2 * INNER, HIDDEN) / 8, torch.randn(EXPERTS, HIDDEN, INNER) / 8
    packed = (pack(first, Format.BF16), pack(last, Format.BF16))
    return packed[0], packed[1]


def layer(matrices: tuple[Weights, Weights], hidden: Tensor, ids: Tensor, share: Tensor, blocks: Any) -> Tensor:
    inner = gate_up.gate_up(hidden, matrices[0], blocks, SWIGLU, TILE, programs=3)
    return down.down(inner, matrices[1], ids, share, blocks, TILE, programs=3)


@pytest.mark.parametrize("rule", [Rule(TOP), Rule(TOP, share=0.6, piggyback=True)], ids=["top-k", "share, piggyback"])
def test_the_host_does_the_same_whatever_is_skipped(rule: Rule, matrices: tuple[Weights, Weights]) -> None:
    hidden, logits = torch.randn(TOKENS, HIDDEN).bfloat16(), torch.randn(TOKENS, EXPERTS)
    bias = torch.zeros(EXPERTS)

    def run(kept: int) -> tuple[Tensor, list[str]]:
        budget = torch.full((TOKENS,), kept, dtype=torch.int32)

        def once() -> Tensor:
            routed = route.route(logits, bias, budget, rule, TILE.rows)
            return layer(matrices, hidden, routed.ids, routed.weights, routed.blocks)

        return asked(once)

    whole, one, none = run(TOP), run(1), run(0)
    assert len(whole[1]) > 10
    assert whole[1] == one[1] == none[1]
    assert not torch.equal(whole[0], one[0])
    assert not none[0].any()


@pytest.mark.parametrize("tokens", [TOKENS, 300])
def test_the_host_lays_blocks_by_the_same_steps_whatever_is_skipped(tokens: int) -> None:
    every = torch.rand(tokens, EXPERTS).argsort(1)[:, :TOP].int().contiguous()
    some = every.masked_fill(torch.rand(tokens, TOP) < 0.7, -1)

    def run(ids: Tensor) -> tuple[Tensor, list[str]]:
        return asked(lambda: align.align(ids, EXPERTS, TILE.rows).work)

    runs = [run(every), run(some), run(torch.full_like(every, -1))]
    assert runs[0][1] == runs[1][1] == runs[2][1]
    assert len({tuple(work.tolist()) for work, _ in runs}) > 1
    assert runs[2][0].tolist() == [0, 0]


@pytest.mark.parametrize("read", [Tensor.tolist, lambda work: work[0].item(), lambda work: int(work[0]), any])
def test_a_value_that_the_host_reads_is_noticed(read: Callable[[Tensor], Any]) -> None:
    ids = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    with pytest.raises(AssertionError, match="the host reads a value"):
        asked(lambda: read(align.align(ids, EXPERTS, TILE.rows).work))
