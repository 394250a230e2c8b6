"""What did callers use, and what did that cost?   The ledger, summed; pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gateway.store import NANO, SHADOW_ACCOUNT, Line

Heading = Literal["month", "day", "caller", "tier", "kind"]
HEADINGS: tuple[Heading, ...] = ("month", "day", "caller", "tier", "kind")
WHOLE = HEADINGS[1:]  # they tell apart all lines of the ledger


@dataclass(frozen=True, slots=True)
class Asked:
    """Which part of the ledger to report. `first` and `last` are days (YYYY-MM-DD, UTC), both included; None: no bound.

    `by`: what to group by, in any order; empty: the totals alone.
    """

    first: str | None = None
    last: str | None = None
    by: Sequence[Heading] = WHOLE


@dataclass(frozen=True, slots=True)
class Row:
    """A sum of ledger lines. A heading that is not grouped by is None.

    `overhead`: the operator's cost (triage, drafts thrown away, answers made to compare), which no caller pays.
    `estimated`: no server counted it. `prompt_tokens` includes `cached_tokens`.
    """

    overhead: bool
    estimated: bool
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usd: float
    month: str | None = None
    day: str | None = None
    caller: str | None = None
    tier: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of all answers, or of all overhead; `estimated_usd` is the part of `usd` that no server counted."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usd: float
    estimated_usd: float


@dataclass(frozen=True, slots=True)
class Report:
    rows: list[Row]
    answers: Total
    overhead: Total


def reported(lines: Iterable[Line], asked: Asked) -> Report:
    """The lines of the days asked for, grouped and summed; rows are sorted by HEADINGS."""
    chosen = [line for line in lines if (asked.first or "") <= line.day <= (asked.last or "9999")]
    groups: dict[tuple[str | bool, ...], list[Line]] = {}
    for line in chosen:
        told = [_told(line, heading) if heading in asked.by else "" for heading in HEADINGS]
        groups.setdefault((*told, _overhead(line), line.estimated), []).append(line)
    rows = [_row(groups[key], asked) for key in sorted(groups)]
    answers, overhead = ([line for line in chosen if _overhead(line) is side] for side in (False, True))
    return Report(rows, _total(answers), _total(overhead))


def _told(line: Line, heading: Heading) -> str:
    """The line's value under a heading; the kind of answers that were made for comparison is "shadow"."""
    if heading == "month":
        return line.day[:7]
    found: str = getattr(line, heading)
    return "shadow" if heading == "kind" and line.caller == SHADOW_ACCOUNT else found


def _overhead(line: Line) -> bool:
    return _told(line, "kind") != "answer"


def _row(lines: Sequence[Line], asked: Asked) -> Row:
    first = lines[0]
    headings: dict[str, Any] = {heading: _told(first, heading) for heading in asked.by}
    return Row(_overhead(first), first.estimated, *_tokens(lines), _usd(lines), **headings)


def _total(lines: Sequence[Line]) -> Total:
    return Total(*_tokens(lines), _usd(lines), _usd([line for line in lines if line.estimated]))


def _tokens(lines: Sequence[Line]) -> tuple[int, int, int, int]:
    """Requests, prompt, cached and completion tokens."""
    columns = zip(*((line.requests, line.prompt, line.cached, line.completion) for line in lines), strict=True)
    requests, prompt, cached, completion = map(sum, columns) if lines else (0, 0, 0, 0)
    return requests, prompt, cached, completion


def _usd(lines: Sequence[Line]) -> float:
    return sum(line.money for line in lines) / NANO
