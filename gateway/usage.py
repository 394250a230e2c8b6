"""What did callers use, and what did that cost?   The ledger, or lines of the log, summed; pure."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from gateway.errors import UNREADABLE
from gateway.store import NANO, SHADOW_ACCOUNT, Line

Heading = Literal["month", "day", "caller", "tier", "kind"]
LoggedHeading = Literal[Heading, "user"]
HEADINGS: tuple[LoggedHeading, ...] = ("month", "day", "caller", "user", "tier", "kind")
WHOLE: tuple[Heading, ...] = ("day", "caller", "tier", "kind")  # they tell apart all lines of the ledger


class Booked(msgspec.Struct, frozen=True, gc=False):
    """What a caller pays for in one exchange, as in the ledger: tokens, and US dollars. `estimated`: no server counted
    it."""

    tier: str
    usd: float
    prompt: int
    cached: int
    completion: int
    estimated: bool = False


class Logged(msgspec.Struct):
    """The part of an exchange's log line that tells who paid for what."""

    at: Annotated[float, msgspec.Meta(ge=0, lt=1e11)]
    booked: Booked
    caller: str | None = None
    user: str | None = None


class UserLine(Line, frozen=True, array_like=True, gc=False):
    """The same as a ledger's line, of one who asked behind the caller's key; "": the log does not say who."""

    user: str = ""


_LOGGED = msgspec.json.Decoder(Logged)


@dataclass(frozen=True, slots=True)
class Asked:
    """Which part of the ledger to report. `first` and `last` are days (YYYY-MM-DD, UTC), both included; None: no bound.

    `by`: what to group by, in any order; empty: the totals alone.
    """

    first: str | None = None
    last: str | None = None
    by: Sequence[LoggedHeading] = WHOLE


@dataclass(frozen=True, slots=True)
class Row:
    """A sum of ledger lines. A heading that is not grouped by is None.

    `overhead`: the operator's cost (triage, drafts thrown away, answers made to compare), which no caller pays.
    `estimated`: no server counted it. `prompt_tokens` includes `cached_tokens`. Of the ledger no `user` is told.
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
    user: str | None = None
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


def booked(lines: Iterable[Line]) -> Booked | None:
    """What the caller pays for of an exchange's ledger lines; None: for nothing."""
    tier, money, prompt, cached, completion, estimated = "", 0, 0, 0, 0, False
    for line in lines:
        if line.kind == "answer":
            tier, money, estimated = line.tier, money + line.money, estimated or line.estimated
            prompt, cached, completion = prompt + line.prompt, cached + line.cached, completion + line.completion
    return Booked(tier, money / NANO, prompt, cached, completion, estimated) if tier else None


def logged(lines: Iterable[bytes]) -> list[Line]:
    """What the exchanges that these lines of a log tell of come to; their callers are told by name. What a collector
    wrote before an exchange, such as the labels of its pod, is passed over, and so are lines of other kinds, and an
    exchange for which nobody paid."""
    sums: dict[tuple[str, str, str, str, bool], list[int]] = {}
    for line in lines:
        if one := _read(line):
            day, had = time.strftime("%Y-%m-%d", time.gmtime(one.at)), one.booked
            key = (had.tier, one.caller or "", day, one.user or "", had.estimated)
            more = (had.prompt, had.cached, had.completion, round(had.usd * NANO), 1)
            sums[key] = [a + b for a, b in zip(sums.get(key, (0,) * 5), more, strict=True)]
    return [
        UserLine(tier, "answer", estimated, prompt, cached, completion, money, requests, caller, day, user)
        for (tier, caller, day, user, estimated), (prompt, cached, completion, money, requests) in sums.items()
    ]


def _read(line: bytes) -> Logged | None:
    try:
        return _LOGGED.decode(line[line.find(b'{"') :])
    except UNREADABLE:
        return None


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


def _told(line: Line, heading: LoggedHeading) -> str:
    """The line's value under a heading; the kind of answers that were made for comparison is "shadow"."""
    if heading == "month":
        return line.day[:7]
    found: str = getattr(line, heading, "")
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
