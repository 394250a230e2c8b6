"""How hard does a prompt look, without asking a model?

The score is not fitted to outcomes: it is a weighted sum of measures of the prompt that go with hard questions. A
calibration fits weights of the same measures to the outcomes of one's own traffic.
"""

import math
from collections.abc import Mapping

import msgspec

from gateway.fields import Fields, Message
from gateway.score.axes import NAMES as AXES
from gateway.score.axes import Axes
from gateway.score.question import sampled
from gateway.score.surface import LOOKS, MEASURES, measures
from gateway.score.table import EMBEDDED, HEAD, Table
from gateway.score.table import read as read_table
from gateway.user_words import own, speaks

__all__ = [
    "AXES", "EMBEDDED", "HEAD", "LOOKS", "MEASURES", "Axes", "Score", "Table", "read_table", "reasons", "score",
    "score_text",
]  # fmt: skip

# Up: parts to keep in mind, exact steps, a program to write. Down: a wish to be short, a question for one fact.
# All count alike: weights fitted to three sets of labelled prompts were worse on the fourth (LOG.md). How much turns
# and tools say was not measured, so they say little. Which looks are hard depends on the traffic: they are there for
# calibrations, and say nothing here.
WEIGHTS = {name: 1.0 for name in MEASURES if name not in LOOKS} | {
    "short": -1.0, "fact": -1.0, "turns": 0.3, "tools": 0.3,
}  # fmt: skip
MIDDLE = 2.0  # the weighted sum that scores 0.5
STEEP = 1.5
FOLLOW_UP = 40  # bytes: a turn this short ("yes, do it") is read together with the turn before it
REASONS = 3


class Score(msgspec.Struct, frozen=True):
    """`value` from 0 (looks simple) to 1; `measures` holds no prompt text and may be recorded."""

    value: float
    measures: Mapping[str, float]


def score(fields: Fields, table: Table | Axes | None = None) -> Score:
    """The score of a chat's last user turn, or of a completion's prompt. Bounded time for any body."""
    said = [message for message in fields.messages or () if speaks(message)]
    text = _asked(said) or "\n".join(fields.texts())
    return score_text(text, turns=max(len(said), 1), tools=len(fields.tools or ()), table=table)


def score_text(text: str, turns: int = 1, tools: int = 0, table: Table | Axes | None = None) -> Score:
    """The score of what a user says: by a `Table` that knows a word of it, else by what shows on its surface. `turns`
    and `tools` as in `measures`."""
    found = measures(text, turns, tools)
    total = 0.0
    for name, weight in WEIGHTS.items():
        if value := found[name]:
            total += weight * value
    seen = 1 / (1 + math.exp(STEEP * (MIDDLE - total)))
    if not table:
        return Score(seen, found)
    known = table.measures(sampled(text))
    return Score(known.get(EMBEDDED, seen), {**found, **known})


def reasons(found: Mapping[str, float]) -> tuple[str, ...]:
    """The measures that moved the score most, the strongest first; "-" before one that made it lower. A table's score
    has no other reason than itself."""
    if EMBEDDED in found:
        return (EMBEDDED,)
    parts = {name: WEIGHTS[name] * value for name, value in found.items() if value and name in WEIGHTS}
    loudest = sorted(parts, key=lambda name: -abs(parts[name]))[:REASONS]
    return tuple(name if parts[name] > 0 else f"-{name}" for name in loudest)


def _asked(said: list[Message]) -> str:
    """The last user turn; a follow-up together with the turn that it follows."""
    last = "\n".join(own(said[-1])) if said else ""
    if len(said) > 1 and len(last) <= FOLLOW_UP and len(last.encode("utf-8", "surrogatepass")) <= FOLLOW_UP:
        return "\n".join([*own(said[-2]), last])
    return last
