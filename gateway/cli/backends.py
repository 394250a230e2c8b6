"""How are the tiers' own servers started, and how are checkpoints made?   `tiergate backends ...`"""

import os
import sys

import typer

ELSEWHERE = {
    "convert": "backends.checkpoint",
    "revert": "backends.checkpoint",
    "estimate": "backends.flashmoe.estimate",
}


def backends(context: typer.Context) -> None:
    """The tiers' own servers and checkpoints: list, command, size, estimate, convert, revert (--help after each)."""
    verb = context.args[0] if context.args else ""
    module = ELSEWHERE.get(verb, "backends.recipes")
    os.execv(sys.executable, [sys.executable, "-m", module, *context.args])  # noqa: S606
