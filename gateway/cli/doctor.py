"""What is wrong with the set-up?   `tiergate doctor`"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from gateway.cli.output import Json, unlogged
from gateway.cli.settings import InvalidSettings, read_settings, variable
from gateway.doctor import Finding, Level, error, examine, warning
from gateway.policy import packaged
from gateway.settings import Settings

AS_SERVE = typer.Option(help="As for `serve`.")
ALIKE = 0.8  # of what two names have in common, from 0 to 1
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
    found += misspelt(os.environ)
    with unlogged():
        return found + asyncio.run(examine(settings, settings.policy or packaged(), os.environ))


def misspelt(names: Iterable[str]) -> list[Finding]:
    """A warning for each variable that is spelt nearly as a setting. Other unknown ones may be meant for somebody else,
    such as those that Kubernetes sets.
    """
    known = [*map(variable, Settings.model_fields), "GATEWAY_URL"]
    near = {name: get_close_matches(name.upper(), known, 1, ALIKE) for name in names if name.upper() not in known}
    return [
        warning("settings", f"{name} is no setting", f"{one[0]}, if that is meant") for name, one in near.items() if one
    ]


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
