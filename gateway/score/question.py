"""Which part of a prompt is the question?

A prompt may open with worked examples and end with options to choose from. Both make it long without making it hard.
"""

import re

HEAD, TAIL = 800, 1600  # characters that are read of a longer prompt: what is asked stands at either end
# Each with the end of the line before, so that a search may jump from line to line.
_OPTION = re.compile(r"\n[ \t]*\(?([A-Ja-j])[.):][ \t]*(?=\S)")
_LABEL = re.compile(r"\n([^\W\d_][\w ]{0,20})[:：]")
EXAMPLES = 3  # times that a line's label comes back before what it heads counts as worked examples


def sampled(text: str) -> str:
    """Head and tail of a long text; a short one as it is."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def split(text: str) -> tuple[str, str]:
    """The question and its options ("" when it has none); worked examples before it are left out."""
    if "\n" not in text:
        return text, ""
    lines = f"\n{text}"  # where a match begins in it, a line of the text does
    marks = list(_OPTION.finditer(lines))
    first = len(marks) - 1
    while first > 0 and marks[first - 1][1].lower() < marks[first][1].lower():
        first -= 1
    if len(marks) - first < 2:
        return text[_after_examples(lines) :], ""
    start = marks[first].start()
    asked = text[:start].rstrip()
    return (asked.rsplit("\n\n", 1)[-1] if first >= 2 else asked), text[start:]


def _after_examples(lines: str) -> int:
    """Where the last of the labels stands that come back again and again ("Q: ... A: ... Q: ..."), else 0."""
    if lines.count(":") + lines.count("：") < EXAMPLES:
        return 0
    starts: dict[str, list[int]] = {}
    for found in _LABEL.finditer(lines):
        starts.setdefault(found[1], []).append(found.start())
    most = max(starts.values(), key=len, default=[])
    return most[-1] if len(most) >= EXAMPLES else 0
