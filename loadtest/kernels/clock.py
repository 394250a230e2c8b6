"""How long does a call take?   CUDA events around replays of a CUDA graph; the wall clock without a GPU."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from loadtest.kernels.plan import repeats

Call = Callable[[], Any]
WARM = 3  # replays before the first that counts


@dataclass(frozen=True, slots=True)
class Timing:
    """`seconds`: the median time of one call; `noise`: the relative difference of the medians of both halves."""

    seconds: float
    noise: float
    runs: int


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(calls: Sequence[Call], graphed: bool = True) -> Timing:
    """Of one of the calls, which are made one after the other. `graphed`: recorded once and replayed, on a GPU."""
    if device().type == "cpu":
        return _on_cpu(calls)
    if graphed:
        return _on_gpu(recorded(calls).replay, len(calls))
    for call in calls:  # what is compiled at its first call is so for every routing
        call()
    return _on_gpu(lambda: [call() for call in calls], len(calls))


def recorded(calls: Sequence[Call]) -> Any:
    """A CUDA graph of the calls. Each has run before, so that nothing is compiled while it is recorded."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def spread(times: Sequence[float], calls: int) -> Timing:
    """From the seconds of whole rounds of so many calls."""
    half = len(times) // 2
    whole = median(times)
    apart = abs(median(times[:half]) - median(times[half:])) if half else 0.0
    return Timing(whole / calls, apart / whole if whole else 0.0, len(times))


def _on_gpu(go: Call, calls: int) -> Timing:
    for _ in range(WARM):
        first = _event(go)
    return spread([_event(go) for _ in range(repeats(first))], calls)


def _event(go: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    go()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _on_cpu(calls: Sequence[Call]) -> Timing:
    began = time.perf_counter()
    for call in calls:
        call()
    return Timing((time.perf_counter() - began) / len(calls), 0.0, 1)
