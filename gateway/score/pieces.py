"""Which tokens are in a text?   As BERT cuts it: lower case, no accents, at blanks and marks, longest piece first."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from gateway.score.remembered import Characters

LONGEST = 100  # characters of a word; a longer one is no token
# Blocks whose characters are words of their own, as BERT has them.
IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
MARKS = "$+<=>^`|~"  # of ASCII, which Unicode calls symbols; BERT calls all of ASCII that is no letter or digit a mark


class Cutter(Protocol):
    """What cuts a text into words, and a word into tokens."""

    def words(self, text: str) -> Sequence[str]: ...

    def cut(self, word: str) -> Sequence[str]: ...


def _clean(char: str) -> str:
    kind = unicodedata.category(char)
    if char in "\t\n\r" or kind[0] == "Z":
        return " "
    if kind == "Mn" or kind[0] == "C" or char == "\ufffd":
        return ""
    if kind[0] == "P" or char in MARKS or any(low <= ord(char) <= high for low, high in IDEOGRAPHS):
        return f" {char} "
    return char.lower()


class Pieces:
    """A vocabulary of whole words, and of pieces that go on (`##ing`)."""

    def __init__(self, vocabulary: Iterable[str], prefix: str) -> None:
        self._known = frozenset(vocabulary)
        self._begun = frozenset(token[:end] for token in self._known for end in range(1, len(token) + 1))
        self._prefix = prefix
        self._map = Characters(_clean)

    def words(self, text: str) -> Sequence[str]:
        return unicodedata.normalize("NFD", text).translate(self._map).split()

    def cut(self, word: str) -> Sequence[str]:
        """The tokens of a word; none where no pieces make it up."""
        if word in self._known or len(word) > LONGEST:
            return [word] if word in self._known else []
        found: list[str] = []
        at, prefix = 0, ""
        while at < len(word):
            piece, end = "", at + 1
            while end <= len(word) and (tried := prefix + word[at:end]) in self._begun:
                piece, end = tried if tried in self._known else piece, end + 1
            if not piece:
                return []
            found.append(piece)
            at, prefix = at + len(piece) - len(prefix), self._prefix
        return found


def tokens(cutter: Cutter, text: str) -> Iterator[str]:
    """The tokens of a text."""
    return chain.from_iterable(map(cutter.cut, cutter.words(text)))


def pieces(told: Mapping[str, Any]) -> tuple[Pieces, Mapping[str, int]]:
    """The tokenizer that a `tokenizer.json` describes, and the number of each token. Raises ValueError for one that is
    not BERT's."""
    model, normalizer = told.get("model") or {}, told.get("normalizer") or {}
    cut = told.get("pre_tokenizer") or {}
    if (model.get("type"), normalizer.get("type"), cut.get("type")) != (
        "WordPiece", "BertNormalizer", "BertPreTokenizer"
    ):  # fmt: skip
        raise ValueError("not BERT's tokenizer: WordPiece, BertNormalizer, BertPreTokenizer")
    if not normalizer.get("lowercase") or normalizer.get("strip_accents") is False:
        raise ValueError("a tokenizer that keeps case or accents")
    numbers = {token: number for token, number in model["vocab"].items() if token != model.get("unk_token")}
    return Pieces(numbers, model.get("continuing_subword_prefix", "##")), numbers
