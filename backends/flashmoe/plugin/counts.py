"""How many experts were asked, and how many read?

One step of one layer asks the different experts that its router names, and reads those that are left. With experts
spread over devices each device counts them all. The counts live where the model does and are read from a copy, as
asking the device would break the recording of a CUDA graph.
"""

import logging
import threading
import time

import torch
from torch import Tensor

log = logging.getLogger("vllm.flashmoe")


class Counts:
    """Of one process: a row [asked, read] for each layer."""

    def __init__(self, log_s: float) -> None:
        self._log_s = log_s
        self._seen: list[Tensor] = []

    def row(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A layer's counts on its device, and what of them is seen here; the same tensor without an accelerator."""
        if self._log_s and not self._seen:
            threading.Thread(target=self._tell, name="flashmoe counts", daemon=True).start()
        here = torch.zeros(2, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
        self._seen.append(here)
        return (here if device.type == "cpu" else here.to(device)), here

    def total(self) -> tuple[int, int]:
        """Asked and read since the start, over all layers."""
        asked, read = (sum(int(row[at]) for row in self._seen) for at in (0, 1))
        return asked, read

    def _tell(self) -> None:
        """Writes a line each `log_s` seconds in which anything was asked."""
        told = 0
        while True:
            time.sleep(self._log_s)
            asked, read = self.total()
            if asked != told:
                layers = len(self._seen)
                log.info("flashmoe: %d experts read of %d asked (%.3f) in %d layers", read, asked, read / asked, layers)
            told = asked
