"""Which trace does an exchange belong to, and which calls were made for it?   W3C's traceparent, and times."""

import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[ -~]{1,512}")
SAMPLED = 1  # of the flags


class Counted(Protocol):
    """What a Leg looks at of a bill's Usage."""

    prompt: int | None
    cached: int | None
    completion: int | None
    complete: bool


@dataclass(slots=True)
class Leg:
    """One call to a model server. Times are time.perf_counter()'s; `first`: when its answer was known to be one.

    `kind`: as in Bill, when it began. `usage` is its bill's, filled in while the answer passes. `status` is the
    server's, None where no answer began; `error` says why it failed. `ended` is None while it is under way.
    """

    kind: str
    tier: str
    path: str
    model: str
    host: str
    port: int
    usage: Counted
    id: int = field(default_factory=lambda: _id(64))
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    ended: float | None = None
    status: int | None = None
    error: str | None = None


class Trace:
    """A sampled exchange's place in a trace, and the calls made for it. Ids are integers; on the wire they are hex.

    `parent`: the caller's span, None where the trace begins here. `state`: its tracestate, handed on unread.
    `epoch`: nanoseconds since 1970 when time.perf_counter() was 0.
    """

    __slots__ = ("epoch", "id", "legs", "parent", "span", "started", "state")

    def __init__(self, id: int = 0, parent: int | None = None, state: str = "") -> None:  # noqa: A002
        self.id, self.parent, self.state = id or _id(128), parent, state
        self.span = _id(64)
        self.legs: list[Leg] = []
        self.started = time.perf_counter()
        self.epoch = time.time_ns() - time.perf_counter_ns()

    def began(self, leg: Leg) -> bytes:
        """The header lines that tell a model server that its work belongs to `leg`."""
        self.legs.append(leg)
        state = f"tracestate: {self.state}\r\n" if self.state else ""
        return f"traceparent: 00-{self.id:032x}-{leg.id:016x}-01\r\n{state}".encode()


def sampled(headers: Mapping[str, str], ratio: float) -> Trace | None:
    """The trace of a request, None where it is not sampled. A caller's valid traceparent decides that; else `ratio` of
    all requests are sampled."""
    given = headers.get("traceparent")
    found = _PARENT.fullmatch(given) if given else None
    if not found or (found[1] == "00" and found[5]):
        return Trace() if random.random() < ratio else None  # noqa: S311  # nothing to guard
    if not int(found[4], 16) & SAMPLED:
        return None
    state = headers.get("tracestate", "")
    return Trace(int(found[2], 16), int(found[3], 16), state if _STATE.fullmatch(state) else "")


def _id(bits: int) -> int:
    return random.getrandbits(bits) or 1
