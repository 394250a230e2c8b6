"""What did callers use, and what did that cost?   `tiergate usage` reads the shared store's ledger, or logs."""

import csv
import datetime
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.output import Json, encoded, on_one_line, stop, visible
from gateway.cli.store import Redis, on
from gateway.recorded import lines_of
from gateway.store import Line, Store
from gateway.usage import HEADINGS, Asked, LoggedHeading, Row, logged, reported

ROW = "{:<10}  {:<16.16}  {:<16.16}  {:<12.12}  {:<8}  {:<9}  {:>8}  {:>12}  {:>10}  {:>12}  {:>13}"
TITLES = ("day", "caller", "name", "tier", "kind", "estimated", "requests", "prompt", "cached", "completion", "USD")
FORMULA = ("=", "+", "-", "@")  # how it may begin (owasp.org/www-community/attacks/CSV_Injection)


def usage(  # noqa: PLR0913, PLR0917  (typer makes each option a parameter)
    caller: Annotated[str | None, typer.Option(metavar="ID", help="The id that `keys list` shows, or @all.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="YYYY-MM-DD, UTC; included.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="YYYY-MM-DD, UTC; included.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="month, day, caller, tier, kind, or of logs user; repeatable.")
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(help="Of a gateway's log lines in place of the store: a file, or - for stdin; repeatable."),
    ] = None,
    table: Annotated[bool, typer.Option("--csv", help="Print CSV, for a spreadsheet.")] = False,
    json: Json = False,
    redis: Redis = None,
) -> None:
    """Tokens and money by day, caller, tier and kind: answers, and apart the overhead (triage, drafts, shadows).

    Logs have the answers alone, their callers by name, and who asked behind a caller's key (`callers.user`).
    """
    known = [heading for heading in HEADINGS if log or heading != "user"]
    asked = Asked(_day(first), _day(last), [_heading(word, known) for word in by or known[1:]])
    lines, names = (_logged(log, caller), {}) if log else on("usage", redis, lambda store: _read(store, caller))
    found = reported(lines, asked)
    titles = [("user" if log and title == "name" else title) for title in TITLES]
    if json:
        typer.echo(encoded(found))
        return
    rows = [_cells(row, names) for row in found.rows]
    if table:
        written = csv.writer(sys.stdout, lineterminator="\n")
        named = slice(1 if log else 2, 3)  # the columns that hold names, not ids
        written.writerows([titles, *([*row[: named.start], *map(_text, row[named]), *row[3:]] for row in rows)])
        return
    for row in (titles, *rows):
        typer.echo(ROW.format(*row))
    for name, total in (("answers", found.answers), ("overhead", found.overhead))[: 1 if log else 2]:
        typer.echo(f"{name}: {total.usd:.6f} USD, of which estimated {total.estimated_usd:.6f} USD")


async def _read(store: Store, caller: str | None) -> tuple[list[Line], dict[str, str]]:
    """The ledger, and the names of the callers whose keys are in the store, by id."""
    return await store.ledger(caller), {record.id: on_one_line(record.name) for record in await store.list_keys()}


def _logged(files: Sequence[Path], caller: str | None) -> list[Line]:
    """What these logs tell, of all callers or the one of this name. Exits with 1 where one cannot be read."""

    lines = (line for path in files for line in (sys.stdin.buffer if str(path) == "-" else lines_of(path)))
    try:
        found = [line for line in logged(lines) if caller in (None, line.caller)]
    except OSError as error:
        raise stop("usage", f"{error.filename}: {error.strerror}") from None
    if not found:
        whose = "" if caller is None else f" of {visible(caller)}"
        typer.echo(f"tiergate usage: no line tells of an exchange{whose} that is paid for", err=True)
    return found


def _cells(row: Row, names: Mapping[str, str]) -> tuple[str | int, ...]:
    whose = on_one_line(row.caller or "")
    kind = row.kind or ("overhead" if row.overhead else "answer")
    day, estimated = row.day or row.month or "", "estimated" if row.estimated else ""
    headings = (day, whose, names.get(whose) or on_one_line(row.user or ""), row.tier or "", kind, estimated)
    return (*headings, row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens, f"{row.usd:.6f}")


def _text(name: str | int) -> str | int:
    """A name as a cell that no spreadsheet takes for a formula: who makes keys for others lets them choose names."""
    return f"'{name}" if str(name).startswith(FORMULA) else name


def _day(text: str | None) -> str | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise stop("usage", f"{text} is not a day: YYYY-MM-DD") from None


def _heading(word: str, known: Sequence[LoggedHeading]) -> LoggedHeading:
    found = next((heading for heading in known if heading == word), None)
    if found is None:
        raise stop("usage", f"no column is named {word}: {', '.join(known)}")
    return found
