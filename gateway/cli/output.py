"""How does a command print, and how does it end when something is wrong?"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import msgspec
import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def stop(command: str, message: str, status: int = 1) -> typer.Exit:
    """Prints the message on stderr; the exit is for the caller to raise."""
    typer.echo(f"tiergate {command}: {visible(message)}", err=True)
    return typer.Exit(status)


@contextmanager
def unlogged() -> Iterator[None]:
    """Warnings for a gateway's log stay unsaid: the command tells what is wrong in words of its own."""
    log = logging.getLogger("gateway")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def visible(text: str) -> str:
    """Text of a file or a server for a terminal: what could steer that is spelt out, such as `\\x1b`."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def on_one_line(text: str) -> str:
    """The same where lines matter, as in a table of what others named."""
    return visible(text).replace("\n", "\\n")


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines whose cells stand below each other, each line whole however wide the terminal is, so that it can be
    searched and cut."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def encoded(value: object) -> str:
    """As JSON."""
    return msgspec.json.encode(value).decode()


def date(seconds: float) -> str:
    """Unix seconds as ISO 8601, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
