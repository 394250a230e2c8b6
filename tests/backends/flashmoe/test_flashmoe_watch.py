"""Does the guard inside of vLLM look at the model that is served, and at whole outputs? Without vLLM."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from backends.flashmoe.plugin.settings import Looks
from backends.flashmoe.plugin.watch import Watch

CPU = torch.device("cpu")


def watching(every: int, *layers: str) -> Watch:
    watch = Watch(Looks(0.2, every), CPU, lambda part: part)
    for layer in layers:
        watch.joined(layer)
    return watch


def forward(watch: Watch, *layers: str) -> list[bool]:
    """Whether each layer is compared in one forward."""
    step = object()
    return [watch.looking(layer, step) for layer in layers]


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_each_so_many_steps_the_served_model_is_compared_however_many_tokens_are_drafted(drafts: int) -> None:
    watch = watching(8, "layers.0", "layers.1", "draft.0")
    served, drafted = [], []
    for _ in range(64):
        served.append(forward(watch, "layers.0", "layers.1"))
        drafted += [forward(watch, "draft.0") for _ in range(drafts)]
    assert served == [[step % 8 == 0] * 2 for step in range(1, 65)]
    assert not any(map(any, drafted))
    assert watch.figures()["steps"] == 64


def test_a_draft_that_runs_first_or_alone_is_no_step() -> None:
    watch = watching(1, "layers.0", "draft.0")
    assert forward(watch, "draft.0") == [False]
    assert forward(watch, "layers.0") == [True]
    assert forward(watch, "draft.0") == forward(watch, "draft.0") == [False]
    assert watch.figures()["steps"] == 1


def ranks(parts: Tensor) -> list[float]:
    """The strain of each rank's guard where the ranks have `parts` [R, 2, N, H] of the outputs with and without
    skipping."""
    count = len(parts)
    given: list[Tensor] = [parts[0, 0]] * count
    meet = Barrier(count, timeout=60)

    def ranked(rank: int) -> float:
        def summed(mine: Tensor) -> Tensor:
            given[rank] = mine
            meet.wait()
            whole = torch.stack(given).sum(0)
            meet.wait()
            return whole

        watch = Watch(Looks(0.2, 1), CPU, summed)
        watch.look(0, *parts[rank])
        return watch.figures()["strain"]

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ranked, range(count)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ranks_that_each_have_a_part_find_the_distance_that_one_would(count: int) -> None:
    chance = torch.Generator().manual_seed(0)
    skipped, whole = torch.randn(2, 5, 64, generator=chance)
    parts = torch.randn(count, 2, 5, 64, generator=chance) * 4  # that cancel out but for the outputs
    parts[-1] += torch.stack((skipped, whole)) - parts.sum(0)
    alone, together = ranks(torch.stack((skipped, whole))[None]), ranks(parts)
    assert together == pytest.approx(alone * count, rel=1e-3)
    assert len(set(together)) == 1
