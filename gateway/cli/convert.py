"""How is a checkpoint with fewer experts a token made?   `tiergate backends convert`"""

import os
import sys

import typer

backends = typer.Typer(help="What needs to know the model.", no_args_is_help=True)
ANY = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@backends.callback()
def main() -> None:
    """What needs to know the model."""


@backends.command(context_settings=ANY)
def convert(context: typer.Context) -> None:
    """Make a V4 checkpoint with fewer experts a token, of links and a few megabytes (--help lists its flags)."""
    _checkpoint("convert", context)


@backends.command(context_settings=ANY)
def revert(context: typer.Context) -> None:
    """Make the checkpoint again that another was converted from."""
    _checkpoint("revert", context)


def _checkpoint(verb: str, context: typer.Context) -> None:
    os.execv(sys.executable, [sys.executable, "-m", "backends.checkpoint", verb, *context.args])  # noqa: S606
