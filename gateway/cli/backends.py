"""Which commands are programs of their own?   `tiergate sim` and `tiergate backends ...`"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

ELSEWHERE = {
    "convert": "backends.checkpoint",
    "revert": "backends.checkpoint",
    "estimate": "backends.flashmoe.estimate",
}


def backends(context: typer.Context) -> None:
    """Model servers and checkpoints: list, command, size, estimate, convert, revert (--help after each)."""
    verb = context.args[0] if context.args else ""
    _become(ELSEWHERE.get(verb, "backends.recipes"), context.args)


def sim(context: typer.Context) -> None:
    """Serve a simulated vLLM; all flags go to it (`tiergate sim --help` lists them)."""
    _become("backends.sim", context.args)


def _become(module: str, arguments: Sequence[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
