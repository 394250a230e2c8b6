"""Which text does the model generate?"""

import random
import re
from collections.abc import Callable

_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = re.compile(
    r"the|and|for|are|was|were|with|that|this|from|have|has|you|your|our|can|could|would|should|what|when|where"
    r"|which|who|how|why|does|did|not|but|about|into|give|please|write|tell|explain|show|make|using|use|between"
    r"|its|their|there|then|than|some|any|all|one|two|also|just|like|want|need|help",
    re.IGNORECASE,
)
_GREETING = re.compile(
    r"^\s*(hi|hello|hey|thanks?|thank you|good (morning|evening)|你好|привет|hallo|hola|bonjour)\b", re.IGNORECASE
)
_LENGTH = re.compile(r"\b(\d{1,4})\s*(words?|tokens?)\b", re.IGNORECASE)
_SHORT = re.compile(r"\b(one (word|sentence|line)|briefly|short(ly)?|yes or no|capital of|translate)\b", re.IGNORECASE)

_OPENING = (
    "You asked about {topic}.",
    "The question is about {topic}.",
    "Here is what matters for {topic}.",
)
_BODY = (
    "Start with {a}: it decides most of the rest.",
    "The relation between {a} and {b} is the part that is easy to get wrong.",
    "If {a} changes, {b} has to be checked again.",
    "A concrete case helps: take {a} on its own first, then add {b}.",
    "For {b}, the usual approach is to fix one assumption and vary {a}.",
    "Two things limit {a}: its cost and how well {b} is known.",
    "It is worth measuring {a} before deciding on {b}.",
    "When {b} is small, {a} can be handled directly; when it grows, split the work.",
    "Keep {a} apart from {b}, so that either can be replaced.",
    "One check is enough to see whether {a} holds: compare it with {b}.",
)
_CLOSING = (
    "In short: settle {a}, then {b}.",
    "That covers {topic}; ask for more on {a} if it is needed.",
    "So the answer turns on {a}.",
)
_THOUGHT = (
    "The user asks about {topic}.",
    "What is given: {a} and {b}.",
    "First I look at {a}.",
    "If {a} holds then {b} follows, but the converse needs a check.",
    "Let me test that on a small case of {b}.",
    "The small case agrees, so I keep {a}.",
    "An alternative would be to begin with {b}; it leads to the same place.",
    "I should state the assumption on {a} plainly.",
)


def keywords(text: str) -> list[str]:
    """Up to twelve words of `text` that are not common ones, in order; never empty."""
    found = [w for w in _WORD.findall(text[-4000:]) if not _COMMON.fullmatch(w)]
    return list(dict.fromkeys(found))[:12] or ["this"]


def topic(text: str) -> str:
    """The first line of `text`, cut at 80 characters and quoted."""
    line = next((part.strip() for part in text.splitlines() if part.strip()), "this")
    line = line.rstrip("?.! ")
    return f'"{line[:80]}"'


def words_wanted(text: str, hardness: float) -> int:
    """The length of an answer in words; `hardness`: 0 to 1."""
    asked = _LENGTH.search(text)
    if asked:
        return max(1, min(int(asked.group(1)), 4000))
    if _SHORT.search(text):
        return 12
    return int(50 + 250 * hardness + min(len(text), 4000) / 80)


def answer(text: str, model: str, hardness: float, rng: random.Random) -> str:
    """An answer to the last user message `text`, naming the model that gives it."""
    if _GREETING.search(text) and len(text) < 40:
        return f"Hello! This is {model} (simulated). What can I do for you?"
    left, line = words_wanted(text, hardness) - 10, _lines(text, rng)
    said = [line(rng.choice(_OPENING)), f"({model}, simulated.)"]
    left -= sum(len(one.split()) for one in said)
    paragraph = 3
    while left > 0:
        paragraph -= 1
        said.append(line(rng.choice(_BODY)) + ("\n\n" if paragraph == 0 else ""))
        paragraph = paragraph or 4
        left -= len(said[-1].split())
    said.append(line(rng.choice(_CLOSING)))
    return " ".join(said).replace("\n\n ", "\n\n")


def thought(text: str, hardness: float, rng: random.Random) -> str:
    """The reasoning before an answer: 60 words or more, longer with `hardness` (0 to 1)."""
    left, line = 60 + int(240 * hardness), _lines(text, rng)
    said = [line(_THOUGHT[0])]
    left -= len(said[0].split())
    while left > 0:
        said.append(line(rng.choice(_THOUGHT[1:])))
        left -= len(said[-1].split())
    return " ".join(said)


def told(result: str, model: str) -> str:
    """An answer that reports a tool's result."""
    return f"The tool returned: {result[:400]} ({model}, simulated.)"


def _lines(text: str, rng: random.Random) -> Callable[[str], str]:
    """Fills a pattern with what `text` is about."""
    found, about = keywords(text), topic(text)

    def line(pattern: str) -> str:
        a = rng.choice(found)
        b = rng.choice([w for w in found if w != a] or ["the rest"])
        return pattern.format(topic=about, a=a, b=b)

    return line
