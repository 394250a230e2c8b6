"""What is wrong with a policy file, and where?"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to repair. `line` and `column` count from 1; `path` is the dotted path ("" for the file)."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: "
        return place + (f"{self.path}: {self.message}" if self.path else self.message)


class PolicyError(Exception):
    """A file that may not be used. `problems` holds all that was found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = sorted(problems, key=lambda found: (found.line, found.column))
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Path) -> str:
    """("rules", 1, "when") -> "rules.1.when"."""
    return ".".join(map(str, path))


def place_in(text: bytes, offset: int) -> tuple[int, int]:
    """Line and column of the byte at `offset`, from 1; what is not UTF-8 counts as one character each time."""
    before = text[:offset].decode("utf-8", "replace")
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def suggestion(word: str, known: Iterable[str]) -> str:
    """What the writer may have meant: the nearest known word, else the list of all. Letters that look alike, as
    Cyrillic ones do, are spelt out."""
    names = list(known)
    if near := nearest(word, names):
        return f'did you mean "{near}"?{"" if word.isascii() else f" This is {word!a}"}'
    return f"known: {', '.join(names)}" if names else "none is defined"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like this one; None where none is."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)
