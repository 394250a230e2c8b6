"""Which command is in a room?   Its room is imported when it is asked for."""

from importlib import import_module
from typing import Any

import typer
from typer.main import get_command, get_group

# Options of these commands are read by the program that they start.
ALL_FLAGS: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
    "add_help_option": False,
}


def command(room: str, name: str) -> Any:
    """The command of that name: a group, or one that a function is."""
    found = getattr(import_module(f"gateway.cli.{room}"), name)
    if isinstance(found, typer.Typer):
        made: Any = get_group(found)
    else:
        alone = typer.Typer(add_completion=False)
        alone.command(**(ALL_FLAGS if room == "backends" else {}))(found)
        made = get_command(alone)
    made.name = name
    return made
