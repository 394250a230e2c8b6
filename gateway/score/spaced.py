"""Which tokens are in a text?   Of a vocabulary that marks where words begin (SentencePiece), the longest first.

The vocabulary's own merges cut some words otherwise; what a calibration makes of the tokens is the same (LOG.md).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

START = "▁"  # stands for a blank
# Letters of Latin, Greek and Cyrillic make words; of other scripts, most tokens are one character.
_WORD = re.compile(r"▁?[A-Za-z\u00c0-\u052f]+|▁?[^\w\s▁]|▁+|[\s\S]")


class Spaced:
    """A vocabulary of words with the blank before them, of parts of words, and of each byte for what is in neither."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self._known = frozenset(vocabulary)
        self._begun = frozenset(token[:end] for token in self._known for end in range(1, len(token) + 1))

    def words(self, text: str) -> Sequence[str]:
        return _WORD.findall(START + text.replace(" ", START))

    def cut(self, word: str) -> Sequence[str]:
        """The tokens of a word."""
        found: list[str] = []
        at = 0
        while at < len(word):
            piece, end = "", at + 1
            while end <= len(word) and (tried := word[at:end]) in self._begun:
                piece, end = tried if tried in self._known else piece, end + 1
            found += [piece] if piece else map("<0x{:02X}>".format, word[at].encode("utf-8", "surrogatepass"))
            at += len(piece) or 1
        return found


def spaced(model: Mapping[str, Any]) -> tuple[Spaced, Mapping[str, int]]:
    """The tokenizer that the `model` of a `tokenizer.json` describes, and the number of each token. Raises ValueError
    for one whose vocabulary is not of this form."""
    numbers: Mapping[str, int] = model["vocab"]
    if (
        not model.get("byte_fallback")
        or START not in numbers
        or any(f"<0x{at:02X}>" not in numbers for at in range(256))
    ):
        raise ValueError("not SentencePiece's vocabulary: blanks as \u2581, and each byte")
    return Spaced(numbers), numbers
