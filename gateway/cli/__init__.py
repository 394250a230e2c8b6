"""tiergate: the command line."""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from gateway import __version__

ROOMS = {
    "serve": "serve",
    "demo": "demo",
    "sim": "backends",
    "backends": "backends",
    "usage": "usage",
    "doctor": "doctor",
    "policy": "policies",
    "keys": "keys",
    "config": "settings",
    "cache": "cache",
    "records": "records",
}
# Options of these commands are read by the program that they start.
ALL_FLAGS: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
    "add_help_option": False,
}


class Commands(TyperGroup):
    """Each command is imported when it is asked for: a process that serves has no memory for the others."""

    def __init__(self, **given: Any) -> None:
        named: dict[str, Any] = dict.fromkeys(ROOMS)
        super().__init__(**given | {"commands": named})

    def get_command(self, _: Any, name: str) -> Any:
        if name not in ROOMS:
            return None
        found = getattr(import_module(f"gateway.cli.{ROOMS[name]}"), name)
        if isinstance(found, typer.Typer):
            made: Any = get_group(found)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command(**(ALL_FLAGS if ROOMS[name] == "backends" else {}))(found)
            made = get_command(alone)
        made.name = name
        return made


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_show_locals=False)


def shown(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tiergate {__version__}")
        raise typer.Exit


@app.callback()
def tiergate(
    _version: Annotated[
        bool, typer.Option("--version", callback=shown, is_eager=True, help="Show the program's version and exit.")
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint in front of a fast and a strong model."""


def main() -> None:
    app(prog_name="tiergate")
