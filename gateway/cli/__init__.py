"""tiergate: the command line."""

import codecs
import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from gateway import __version__
from gateway.cli.command import command

# Where a command is, and its first words: `tiergate --help` and completions import none.
ROOMS = {
    "serve": ("serve", "Serve the gateway."),
    "demo": (
        "demo",
        "Show it: simulated tiers, a Valkey, the gateway and a dozen prompts; stays up until Ctrl-C.",
    ),
    "sim": ("backends", "Serve a simulated vLLM; all flags go to it (`tiergate sim --help` lists them)."),
    "backends": (
        "backends",
        "Model servers and checkpoints: list, command, size, estimate, convert, revert (--help after each).",
    ),
    "usage": (
        "usage",
        "Tokens and money by day, caller, tier and kind: answers, and apart the overhead (triage, drafts, shadows).",
    ),
    "doctor": (
        "doctor",
        (
            "Look at policy, store, tiers, clocks, keys and ports as `serve` would find them; "
            "each finding with its repair."
        ),
    ),
    "policy": ("policies", "Check, explain and compare policy files, put them in force, learn from records."),
    "keys": ("keys", "API keys, kept as keyed hashes in the shared store or in a file."),
    "config": ("settings", "Settings of this program; what is routed where stands in the policy."),
    "cache": ("cache", "Answers and verdicts that are remembered in the shared store."),
    "records": (
        "records",
        "Print the decisions that `record.stream` keeps in the shared store, as JSON lines, the oldest first.",
    ),
}


class Commands(TyperGroup):
    """Each command is imported when it is asked for: a process that serves has no memory for the others."""

    def __init__(self, **given: Any) -> None:
        named: dict[str, Any] = dict.fromkeys(ROOMS)
        super().__init__(**given | {"commands": named})

    def get_command(self, _: Any, name: str) -> Any:
        """Its name and what is said of it."""
        return TyperCommand(name, help=ROOMS[name][1]) if name in ROOMS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, which is called or completed."""
        name, known, rest = super().resolve_command(ctx, args)
        return name, command(ROOMS[name][0], name) if name and known else None, rest


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


def spelt(error: UnicodeError) -> tuple[str, int]:
    """What cannot be printed, as JSON has it."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)), error.end


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in another script must not end a command
        codecs.register_error("spelt", spelt)
        sys.stdout.reconfigure(errors="spelt")
    app(prog_name="tiergate")
