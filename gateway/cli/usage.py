"""What did callers use, and what did that cost?   `tiergate usage` reads the shared store's ledger."""

import csv
import datetime
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from gateway.cli.output import Json, encoded, on_one_line, stop
from gateway.cli.store import Redis, on
from gateway.store import Line, Store
from gateway.usage import HEADINGS, WHOLE, Asked, Heading, Row, reported

ROW = "{:<10}  {:<16.16}  {:<16.16}  {:<12.12}  {:<8}  {:<9}  {:>8}  {:>12}  {:>10}  {:>12}  {:>13}"
TITLES = ("day", "caller", "name", "tier", "kind", "estimated", "requests", "prompt", "cached", "completion", "USD")
FORMULA = ("=", "+", "-", "@")  # how it may begin (owasp.org/www-community/attacks/CSV_Injection)


def usage(  # noqa: PLR0913, PLR0917  (typer makes each option a parameter)
    caller: Annotated[str | None, typer.Option(metavar="ID", help="The id that `keys list` shows, or @all.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="YYYY-MM-DD, UTC; included.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="YYYY-MM-DD, UTC; included.")] = None,
    by: Annotated[list[str] | None, typer.Option(help="month, day, caller, tier or kind; repeatable.")] = None,
    table: Annotated[bool, typer.Option("--csv", help="Print CSV, for a spreadsheet.")] = False,
    json: Json = False,
    redis: Redis = None,
) -> None:
    """Tokens and money by day, caller, tier and kind: answers, and apart the overhead (triage, drafts, shadows)."""
    asked = Asked(_day(first), _day(last), [_heading(word) for word in by] if by else WHOLE)
    lines, names = on("usage", redis, lambda store: _read(store, caller))
    found = reported(lines, asked)
    if json:
        typer.echo(encoded(found))
        return
    if table:
        written = csv.writer(sys.stdout, lineterminator="\n")
        texts = {key_id: _text(name) for key_id, name in names.items()}
        written.writerows([TITLES, *(_cells(row, texts) for row in found.rows)])
        return
    typer.echo(ROW.format(*TITLES))
    for row in found.rows:
        typer.echo(ROW.format(*_cells(row, names)))
    for name, total in (("answers", found.answers), ("overhead", found.overhead)):
        typer.echo(f"{name}: {total.usd:.6f} USD, of which estimated {total.estimated_usd:.6f} USD")


async def _read(store: Store, caller: str | None) -> tuple[list[Line], dict[str, str]]:
    """The ledger, and the names of the callers whose keys are in the store, by id."""
    return await store.ledger(caller), {record.id: on_one_line(record.name) for record in await store.list_keys()}


def _cells(row: Row, names: Mapping[str, str]) -> tuple[str | int, ...]:
    whose = row.caller or ""
    kind = row.kind or ("overhead" if row.overhead else "answer")
    day, estimated = row.day or row.month or "", "estimated" if row.estimated else ""
    headings = (day, whose, names.get(whose, ""), row.tier or "", kind, estimated)
    return (*headings, row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens, f"{row.usd:.6f}")


def _text(name: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula: who makes keys for others lets them choose names."""
    return f"'{name}" if name.startswith(FORMULA) else name


def _day(text: str | None) -> str | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise stop("usage", f"{text} is not a day: YYYY-MM-DD") from None


def _heading(word: str) -> Heading:
    found = next((heading for heading in HEADINGS if heading == word), None)
    if found is None:
        raise stop("usage", f"no column is named {word}: {', '.join(HEADINGS)}")
    return found
