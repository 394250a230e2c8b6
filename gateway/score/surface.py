"""What can be counted in a prompt?   Measures from 0 to 1 that hold in any language; no word of the prompt is kept.

Counts are made of a text's shape: its characters' kinds, one byte each, between two blanks. All of it is looked at
once, and what is looked for in the shape is so short that it is counted without a regular expression.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache

from gateway.score.question import sampled, split
from gateway.score.remembered import Characters
from gateway.score.words import DENSE, asked

LETTERS = {"a": "a", "A": "A", "I": "A"}  # a and I are English words
SIGNS = {
    ".": ".",
    ",": ",",
    "!?;:": ":",
    "。！？；：、，،؟।": "P",
    "([": "(",
    ")": ")",
    "'": "'",
    "_": "_",
    "=+*/^<>%≤≥≠≈×÷√∑∫±∈→⇒¬∧∨∀∃∂∞": "=",
}
# Of a shape: letters that may stand alone, between what may stand beside them; what makes an identifier.
_LONE = bytes.maketrans(b"XaA0w_:(=-P,)", b"xwwwww      .")
_JOINED = bytes.maketrans(b"xXw_:=-P,).'", b"aA0(        ")
_IDENTIFIERS = b"a(", b"A(", b"0("  # a call, an index, snake_case; beside them camelCase
_NUMBER = re.compile(rb"00*(?:[.,]00*)*")
_SPAN = re.compile(r"\$[^$\n]{1,80}\$")  # of TeX
_COMMAND = re.compile(r"\\[a-zA-Z]{2}")
_WORD = re.compile(r"\w+")
_WORDS = "".join(chr(point) if _WORD.match(chr(point)) else " " for point in range(128)).encode().ljust(256)
# Of a shape, as numbers: those are found in bytes at once, where `in` first tries whether a text is one.
ZERO, POINT, COMMA, COLON, PAUSE, OPEN, EQUALS = b"0.,:P(="
DENSITY = 2.5  # letters of a spaced script that one character of Chinese, Japanese, Korean or Thai stands for
MANY = 63  # lines
LONG = 2048  # characters from which a question counts as long
LOOKUP = 15, 120  # words and characters of a question that only looks a fact up

LOOKS = "whole", "lines", "line", "capitals", "digits", "blanks", "marks"  # of all that is read, not of the question
MEASURES = (
    "length", "clauses", "numbers", "maths", "formula", "code", "options", "task",
    "depth", "program", "short", "fact", "turns", "tools", *LOOKS,
)  # fmt: skip


def _kind(char: str) -> str:
    if char.isspace():
        return " "
    if char.isalnum():
        letter = "0" if char.isdecimal() else "w" if not char.isascii() else "X" if char.isupper() else "x"
        return LETTERS.get(char, letter)
    return next((kind for chars, kind in SIGNS.items() if char in chars), "-")


_KINDS = Characters(_kind)
_ASCII = "".join(_KINDS[point] for point in range(128)).encode().ljust(256)


@lru_cache(maxsize=4096)
def much(amount: float, full: int) -> float:
    """0 for none, 1 for `full` or more, growing with the logarithm: the tenth says less than the first."""
    return round(math.log1p(amount) / math.log1p(full), 4) if amount < full else 1.0


# By count, below what is full.
_FIFTEEN, _PAUSES = ({count: much(count, full) for count in range(full)} for full in (15, 31))
_HALVES = {halves: much(halves / 2, 15) for halves in range(30)}
_THIRDS = {count: round(count / 3, 4) for count in range(3)}


def measures(text: str, turns: int = 1, tools: int = 0) -> Mapping[str, float]:
    """By name, in the order of MEASURES. `turns`: what the user said so far, this included; `tools`: tools offered.

    Long texts are read at their head and tail only, so the time does not grow with the prompt.
    """
    text = sampled(text)
    question, options = split(text)
    question = question.strip() or text
    said, seen = asked(question), shape(question)
    dense = 0 if question.isascii() else sum(map(len, DENSE.findall(question)))
    size = len(question) + (DENSITY - 1) * dense
    halves = notation(question, seen)
    fact = said["fact"] > 0 and len(question) < LOOKUP[1] and words(question) <= LOOKUP[0]
    return {
        "length": much(size, LONG),
        "clauses": _PAUSES.get(pauses(seen), 1.0),
        "numbers": _FIFTEEN.get(numbers(seen), 1.0),
        "maths": _HALVES.get(halves, 1.0),
        "formula": round(min(10 * halves / (size + 20), 1.0), 4) if halves else 0.0,
        "code": _FIFTEEN.get(identifiers(seen), 1.0),
        "options": listed(options) if options else 0.0,
        "task": float("?" not in question and "？" not in question and "؟" not in question),
        "depth": _THIRDS.get(said["depth"], 1.0),
        "program": _THIRDS.get(said["program"], 1.0),
        "short": _THIRDS.get(said["short"], 1.0),
        "fact": float(fact),
        "turns": _FIFTEEN.get(turns - 1, 1.0),
        "tools": _FIFTEEN.get(tools, 1.0),
        **looks(text, seen if question is text else shape(text)),
    }


def looks(text: str, seen: bytes) -> Mapping[str, float]:
    """What kind of text it is: its size, and the parts that kinds of characters have in it, in thousandths."""
    size, lines = len(text), text.count("\n")
    thousandth = max(size, 1) / 1000
    capitals, digits, blanks = seen.count(b"X") + seen.count(b"A"), seen.count(b"0"), seen.count(b" ") - 2
    marks = size - capitals - digits - blanks - seen.count(b"x") - seen.count(b"a") - seen.count(b"w")
    return {
        "whole": much(size, LONG),
        "lines": much(lines, MANY),
        "line": much(size // (lines + 1), LONG),
        "capitals": capitals // thousandth / 1000,
        "digits": digits // thousandth / 1000,
        "blanks": blanks // thousandth / 1000,
        "marks": marks // thousandth / 1000,
    }


def shape(text: str) -> bytes:
    """Kinds: x and X a letter of ASCII, a and A one that is a word, 0 a decimal digit, w another letter or digit; P a
    pause in itself; a sign of SIGNS, - any other, and a blank."""
    kinds = text.encode().translate(_ASCII) if text.isascii() else text.translate(_KINDS).encode()
    return b" " + kinds + b" "


def notation(text: str, seen: bytes) -> int:
    """Signs of maths, in halves: TeX (two signs each), operators, single letters that stand for something (half a sign
    each; none in "A." and "it's", which are an option and English)."""
    tex = 0
    if "$" in text:
        text, tex = _SPAN.subn("$", text)
    if "{" in text:
        tex += text.count("_{") + text.count("^{")
    if "\\" in text:
        tex += len(_COMMAND.findall(text))
    lone = seen.translate(_LONE)
    letters = lone.count(b".x ") if POINT in lone else 0
    if lone.partition(b" x ")[1]:
        letters += lone.replace(b" ", b"  ").count(b" x ")
    return 4 * tex + 2 * (EQUALS in seen and seen.count(b"=")) + letters


def pauses(seen: bytes) -> int:
    """A comma before a digit is none."""
    found = seen.count(b". ") if POINT in seen else 0
    if COLON in seen:
        found += seen.count(b": ")
    if PAUSE in seen:
        found += seen.count(b"P")
    return found + (seen.count(b",") - seen.count(b",0") if COMMA in seen else 0)


def words(text: str) -> int:
    return len(text.encode().translate(_WORDS).split() if text.isascii() else _WORD.findall(text))


def numbers(seen: bytes) -> int:
    return len(_NUMBER.findall(seen)) if ZERO in seen else 0


def identifiers(seen: bytes) -> int:
    joined = seen.translate(_JOINED)
    return joined.count(b"aA") + (sum(map(joined.count, _IDENTIFIERS)) if OPEN in joined else 0)


def listed(options: str) -> float:
    """How much of the options is signs and numbers."""
    seen = shape(options)
    return round(min((4 * notation(options, seen) + 8 * numbers(seen)) / (len(options) + 1), 1.0), 4)
