"""How many experts were asked for, and how many were read?

Asked: the distinct experts that a layer's router selects in a step; read: those left after skipping. Both are summed
over layers and steps. With expert parallelism each device counts all experts. The counts are on the model's device and
are copied to the host without waiting, as synchronising is not allowed while a CUDA graph is captured.
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
TOLD_S = 1.0  # seconds between two reports to the other processes


class Counts:
    """The counts of one process: a row [asked, read] for each layer."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def row(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A layer's counts [2] int64 on its device, and their copy on the host; on a CPU both are the same tensor."""
        here = torch.zeros(2, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
        self._seen.append(here)
        return (here if device.type == "cpu" else here.to(device)), here

    def figures(self) -> dict[str, Any]:
        """`layers`, and `asked` and `read` since the start over all of them."""
        asked, read = (sum(int(row[at]) for row in self._seen) for at in (0, 1))
        return {"layers": len(self._seen), "asked": asked, "read": read}


def publish(worker: str, figures: Callable[[], dict[str, Any]], log_s: float) -> None:
    """Starts a thread, for as long as the process lives, that shares a worker's figures with the server's other
    processes when they change, and logs them every `log_s` seconds if new experts were asked for; 0: never."""
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
    """Logs the figures unless `asked` is still `logged`. Returns `asked`."""
    asked, read = now["asked"], now["read"]
    if asked != logged:
        part = read / asked
        log.info("flashmoe: %d experts read of %d asked (%.3f) in %d layers", read, asked, part, now["layers"])
    return asked
