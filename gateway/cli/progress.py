"""How far is long work?   Told on stderr, and only to a terminal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def reading(files: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A bar while files are read; what it gives hears of each line's length in bytes."""
    out = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("reading records", total=sum(path.stat().st_size for path in files if path.is_file()))
        yield lambda size: bar.advance(task, size)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """A count of what nobody knows the end of; what it gives hears of the sum so far."""
    out = Console(stderr=True)
    with Progress(TextColumn("{task.completed} {task.description}"), console=out, transient=True,
                  disable=not out.is_terminal) as shown:  # fmt: skip
        task = shown.add_task(what, total=None)
        yield lambda total: shown.update(task, completed=total)


@contextmanager
def working(on: str) -> Iterator[None]:
    """A sign of life while nobody can tell how long it takes."""
    out = Console(stderr=True)
    if not out.is_terminal:
        yield
        return
    with out.status(on):
        yield
