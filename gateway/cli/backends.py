"""How are the tiers' own servers started, and how many does a load take?   `tiergate backends ...`"""

import os
import sys

import typer


def backends(context: typer.Context) -> None:
    """Commands for the tiers' own servers, and what they take: list, command, size (--help after each)."""
    os.execv(sys.executable, [sys.executable, "-m", "backends.recipes", *context.args])  # noqa: S606
