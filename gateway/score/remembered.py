"""How are results by character and by word cached?   So that most of a text costs no more than look-ups."""

from collections.abc import Callable
from typing import TypeVar

CHARACTERS = 20_000
WORDS, LONGEST = 20_000, 32  # words, and characters of one

T = TypeVar("T")


class Characters(dict[int, str]):
    """By character what `of` makes of it, as `str.translate` asks; the first CHARACTERS that come are remembered."""

    def __init__(self, of: Callable[[str], str]) -> None:
        super().__init__()
        self._of = of

    def __missing__(self, point: int) -> str:
        found = self._of(chr(point))
        if len(self) < CHARACTERS:
            self[point] = found
        return found


class Words(dict[str, T]):
    """By word what `of` makes of it. Up to WORDS are remembered, then others."""

    def __init__(self, of: Callable[[str], T]) -> None:
        super().__init__()
        self._of = of

    def __missing__(self, word: str) -> T:
        found = self._of(word)
        if len(self) >= WORDS:
            self.clear()
        if len(word) <= LONGEST:
            self[word] = found
        return found
