"""How far is long work?   Told on stderr, and only to a terminal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


@contextmanager
def reading(files: Sequence[Path]) -> Iterator[Callable[[bytes], None]]:
    """A bar while files are read; what it gives gets each line."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415  as `_bar`

    with _bar(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("reading records", total=sum(path.stat().st_size for path in files if path.is_file()))
        yield (lambda _: None) if bar.disable else lambda line: bar.advance(task, len(line))


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """A count of what nobody knows the end of; what it gives hears of the sum so far."""
    from rich.progress import TextColumn  # noqa: PLC0415  as `_bar`

    with _bar(TextColumn("{task.completed} {task.description}")) as shown:
        task = shown.add_task(what, total=None)
        yield lambda total: shown.update(task, completed=total)


@contextmanager
def working(on: str) -> Iterator[None]:
    """A sign of life while nobody can tell how long it takes."""
    from rich.console import Console  # noqa: PLC0415  as `_bar`

    out = Console(stderr=True)
    if not out.is_terminal:
        yield
        return
    with out.status(on):
        yield


def _bar(*columns: "ProgressColumn") -> "Progress":
    """A bar on stderr, if that is a terminal. rich takes 2 MB of memory, so it is imported only where it is used."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    out = Console(stderr=True)
    return Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
