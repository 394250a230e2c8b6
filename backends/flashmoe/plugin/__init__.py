"""Skips experts inside of vLLM, with vLLM's own kernels: the entry point `flashmoe` of `vllm.general_plugins`.

Without FLASHMOE_VLLM nothing happens (its values: `settings`). With it, vLLM's `RoutedExperts` is replaced, through
vLLM's registry, by a subclass that masks slots between the router and the kernels that read the experts' weights.
"""

import importlib
import logging
import os
from typing import Any

from backends.flashmoe.plugin import shape, shared
from backends.flashmoe.plugin.settings import VARIABLE, parse

log = logging.getLogger("vllm.flashmoe")  # below vLLM's own, so that its format and level hold


def register() -> None:
    """Called by vLLM in each of its processes; safe to call twice.

    Raises ValueError, which ends the server's start, when FLASHMOE_VLLM is invalid. A vLLM whose classes have another
    interface than the one this was written for is left as it is, and an error is logged.
    """
    settings = parse(os.environ.get(VARIABLE, ""))
    if settings is None:
        return
    shared.folder()
    if settings.decisions:
        _open_decisions()
    if unfit := shape.unfit():
        log.error("flashmoe skips no expert and leaves vLLM as it is: %s", unfit)
        return
    from backends.flashmoe.plugin import layer  # noqa: PLC0415 - its classes exist beside a vLLM that fits only

    layer.install(settings)


def _open_decisions() -> None:
    """Enables vLLM's decisions endpoint for DeepSeek V4, by the log-probabilities of the first token, as for Qwen3."""
    known: Any = next(filter(None, map(_module, shape.STRATEGIES)), None)
    if not hasattr(known, "READ_STRATEGIES") or not hasattr(known, "NextTokenStrategy"):
        log.error("flashmoe opens no decisions for DeepSeek V4: this vLLM has them elsewhere than 0.32.0 and 0.33.0")
        return
    known.READ_STRATEGIES.setdefault("DeepseekV4ForCausalLM", known.NextTokenStrategy)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
