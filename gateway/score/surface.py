"""What can be counted in a prompt?   Measures from 0 to 1 that hold in any language; no word of the prompt is kept."""

import math
import re
from collections.abc import Mapping

from gateway.score.question import sampled, split
from gateway.score.words import DENSE, asked

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_TEX = re.compile(r"\\[a-zA-Z]{2,}|[_^]\{|\$[^$\n]{1,80}\$")
_OPERATOR = re.compile(r"[=+*/^<>%≤≥≠≈×÷√∑∫±∈→⇒¬∧∨∀∃∂∞]")
_VARIABLE = re.compile(r"\b[b-zB-HJ-Z]\b(?<!'.)(?!['.)])")  # a and I are English words, "A." opens an option
# camelCase, a call, an index, snake_case; by the character that shows it, so that a search may jump to it
_IDENTIFIER = re.compile(r"[A-Z(\[_](?<=[a-z][A-Z]|[^\W_][(\[_])")
_PAUSE = re.compile(r"[.!?;:](?=\s|$)|[。！？；：、，،؟।]|,(?!\d)")
_QUESTION = re.compile(r"[?？؟]")
_WORD = re.compile(r"\w+")
DENSITY = 2.5  # letters of a spaced script that one character of Chinese, Japanese, Korean or Thai stands for
LONG = 2048  # characters from which a question counts as long
LOOKUP = 15, 120  # words and characters of a question that only looks a fact up

MEASURES = (
    "length", "clauses", "numbers", "maths", "formula", "code", "options", "task",
    "depth", "program", "short", "fact", "turns", "tools",
)  # fmt: skip


def measures(text: str, turns: int = 1, tools: int = 0) -> Mapping[str, float]:
    """By name, in the order of MEASURES. `turns`: what the user said so far, this included; `tools`: tools offered.

    Long texts are read at their head and tail only, so the time does not grow with the prompt.
    """
    text = sampled(text)
    question, options = split(text)
    question = question.strip() or text
    said = asked(question)
    dense = 0 if question.isascii() else sum(map(len, DENSE.findall(question)))
    size = len(question) + (DENSITY - 1) * dense
    symbols = notation(question)
    lookup = len(question) < LOOKUP[1] and len(_WORD.findall(question)) <= LOOKUP[0]
    values = (
        much(size, LONG),
        much(count(_PAUSE, question), 31),
        much(count(_NUMBER, question), 15),
        much(symbols, 15),
        min(20 * symbols / (size + 20), 1.0),
        much(count(_IDENTIFIER, question), 15),
        min(8 * (notation(options) + count(_NUMBER, options)) / (len(options) + 1), 1.0) if options else 0.0,
        float(_QUESTION.search(question) is None),
        min(said["depth"] / 3, 1.0),
        min(said["program"] / 3, 1.0),
        min(said["short"] / 3, 1.0),
        float(lookup and said["fact"] > 0),
        much(turns - 1, 15),
        much(tools, 15),
    )
    return {name: round(value, 4) for name, value in zip(MEASURES, values, strict=True)}


def notation(text: str) -> float:
    """Signs of maths: TeX, operators, single letters that stand for something."""
    return 2 * count(_TEX, text) + count(_OPERATOR, text) + 0.5 * count(_VARIABLE, text)


def count(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))


def much(amount: float, full: int) -> float:
    """0 for none, 1 for `full` or more, growing with the logarithm: the tenth says less than the first."""
    return min(math.log1p(amount) / math.log1p(full), 1.0)
