"""How many experts were asked, and how many read?

One step of one layer asks the different experts that its router names, and reads those that are left. With experts
spread over devices each device counts them all. The counts live where the model does and are read from a copy, as
asking the device would break the recording of a CUDA graph.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backends.flashmoe.plugin.shared import tell

log = logging.getLogger("vllm.flashmoe")
TOLD_S = 1.0  # seconds between two tellings


class Counts:
    """Of one process: a row [asked, read] for each layer."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def row(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A layer's counts on its device, and what of them is seen here; the same tensor without an accelerator."""
        here = torch.zeros(2, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
        self._seen.append(here)
        return (here if device.type == "cpu" else here.to(device)), here

    def figures(self) -> dict[str, Any]:
        """Asked and read since the start, over all layers."""
        asked, read = (sum(int(row[at]) for row in self._seen) for at in (0, 1))
        return {"layers": len(self._seen), "asked": asked, "read": read}


def publish(worker: str, figures: Callable[[], dict[str, Any]], log_s: float) -> None:
    """Tells the server's other processes a worker's figures whenever they change, and the log each `log_s` seconds in
    which an expert was asked; 0: never. For as long as the process lives."""
    threading.Thread(target=_publish, args=(worker, figures, log_s), name="flashmoe figures", daemon=True).start()


def _publish(worker: str, figures: Callable[[], dict[str, Any]], log_s: float) -> None:
    before: dict[str, Any] = {}
    logged, due = 0, time.monotonic() + log_s
    while True:
        time.sleep(TOLD_S)
        now = figures()
        if now != before:
            tell(worker, now)
            before = now
        if log_s and time.monotonic() >= due:
            due += log_s
            logged = _log(now, logged)


def _log(now: dict[str, Any], logged: int) -> int:
    """Writes the line, unless nothing was asked since `logged` were."""
    asked, read = now["asked"], now["read"]
    if asked != logged:
        part = read / asked
        log.info("flashmoe: %d experts read of %d asked (%.3f) in %d layers", read, asked, part, now["layers"])
    return asked
