"""What did callers use, and what did that cost?   `tiergate usage` reads the shared store's ledger."""

import re
from typing import Annotated, Any

import typer

from gateway.cli.store import Json, Redis, encoded, on, stop
from gateway.store import NANO, Line

ROW = "{:<10}  {:<16.16}  {:<12.12}  {:<7}  {:<9}  {:>8}  {:>12}  {:>10}  {:>12}  {:>13}"
TITLES = ("day", "caller", "tier", "kind", "", "calls", "prompt", "cached", "completion", "USD")
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def usage(
    caller: Annotated[str | None, typer.Option(metavar="ID", help="The id that `keys list` shows; else all.")] = None,
    day: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="One day, UTC; else all.")] = None,
    json: Json = False,
    redis: Redis = None,
) -> None:
    """Tokens and money by caller, tier and day: answers, and apart the overhead (triage, drafts thrown away)."""
    if day is not None and not DAY.fullmatch(day):
        raise stop("usage", "a day is YYYY-MM-DD")
    found = [line for line in on("usage", redis, lambda store: store.ledger(caller)) if day in (None, line.day)]
    if json:
        typer.echo(encoded([shown(line) for line in found]))
        return
    typer.echo(ROW.format(*TITLES))
    for line in found:
        told = shown(line)
        counts = (line.requests, line.prompt, line.cached, line.completion, f"{told['usd']:.6f}")
        said = "estimated" if line.estimated else ""
        typer.echo(ROW.format(line.day, line.caller, line.tier, line.kind, said, *counts))
    for name, kinds in (("answers", ("answer",)), ("overhead", ("triage", "draft"))):
        typer.echo(f"{name}: {sum(line.money for line in found if line.kind in kinds) / NANO:.6f} USD")


def shown(line: Line) -> dict[str, Any]:
    told: dict[str, Any] = {"day": line.day, "caller": line.caller, "tier": line.tier, "kind": line.kind}
    told |= {"estimated": line.estimated, "requests": line.requests, "prompt_tokens": line.prompt}
    told |= {"cached_tokens": line.cached, "completion_tokens": line.completion, "usd": line.money / NANO}
    return told
