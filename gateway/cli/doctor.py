"""What is wrong with the set-up?   `tiergate doctor`"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from gateway.cli.output import Json, unlogged
from gateway.cli.settings import InvalidSettings, misspelt, read_settings, variable
from gateway.doctor import Finding, Level, error, examine, warning
from gateway.policy import packaged

AS_SERVE = typer.Option(help="As for `serve`.")
MARKS: dict[Level, str] = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "error": "[bold red]error[/]  "}


def doctor(  # noqa: PLR0913, PLR0917  each is a flag
    policy: Annotated[Path | None, AS_SERVE] = None,
    host: Annotated[str | None, AS_SERVE] = None,
    port: Annotated[int | None, AS_SERVE] = None,
    redis: Annotated[str | None, typer.Option("--redis", metavar="URL", help=AS_SERVE.help)] = None,
    keys: Annotated[Path | None, AS_SERVE] = None,
    workers: Annotated[int | None, AS_SERVE] = None,
    http: Annotated[str | None, AS_SERVE] = None,
    json: Json = False,
) -> None:
    """Look at policy, store, tiers, clocks, keys and ports as `serve` would find them; each finding with its repair.

    Exit status 1 when the gateway would not start, or not serve. Nothing is changed; model servers are asked some ten
    short questions, as at the start of `serve`.
    """
    where = {"policy": policy, "host": host, "port": port, "redis_url": redis}
    found = findings({**where, "keys_file": keys, "workers": workers, "http": http})
    if json:
        typer.echo(msgspec.json.encode([one._asdict() for one in found]))
    else:
        draw(found, Console(highlight=False, soft_wrap=True))
    raise typer.Exit(int(any(one.level == "error" for one in found)))


def findings(flags: dict[str, object]) -> list[Finding]:
    """All findings. A setting that fails its check is one, and its default is used for the rest."""
    found = []
    try:
        settings = read_settings(flags)
    except InvalidSettings as wrong:
        found = [mistake(variable(name), told) for name, told in wrong.problems.items()]
        settings = read_settings(flags, wrong.problems)
    found += [warning("settings", told, f"{meant}, if that is meant") for told, meant in misspelt(os.environ)]
    with unlogged():
        return found + asyncio.run(examine(settings, settings.policy or packaged(), os.environ))


def mistake(name: str, told: str) -> Finding:
    """A setting's error as a finding. What `told` has after its last semicolon is the repair."""
    what, mark, fix = told.rpartition("; ")
    return error("settings", f"{name}: {what if mark else told}", fix if mark else "correct it")


def draw(found: Sequence[Finding], out: Console) -> None:
    for one in found:
        out.print(f"{MARKS[one.level]} {escape(f'{one.about}: {one.told}')}")
        if one.fix:
            out.print(f"        [dim]->[/] {escape(one.fix)}")
    errors, warnings = (sum(one.level == level for one in found) for level in ("error", "warning"))
    out.print(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
