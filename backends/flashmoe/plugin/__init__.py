"""Skips experts inside of vLLM, which keeps its own kernels: the entry point `flashmoe` of `vllm.general_plugins`.

Without FLASHMOE_VLLM nothing happens (`settings` says what it holds). With it, vLLM's `RoutedExperts` is replaced, by
vLLM's own registry, by one that asks fewer experts after the router has spoken and before any weight is read.
"""

import logging
import os

from backends.flashmoe.plugin import shape
from backends.flashmoe.plugin.settings import VARIABLE, parse

log = logging.getLogger("vllm.flashmoe")  # below vLLM's own, so that its format and level hold


def register() -> None:
    """Called by vLLM in each of its processes; again is harmless.

    Raises ValueError, which ends the server's start, when FLASHMOE_VLLM cannot be read. A vLLM whose classes have
    another shape than the one this was written for is left as it is, and an error in the log says so.
    """
    settings = parse(os.environ.get(VARIABLE, ""))
    if settings is None:
        return
    if unfit := shape.unfit():
        log.error("flashmoe skips no expert and leaves vLLM as it is: %s", unfit)
        return
    from backends.flashmoe.plugin import layer  # noqa: PLC0415 - its classes exist beside a vLLM that fits only

    layer.install(settings)
