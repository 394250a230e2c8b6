"""Which requests did this server get, and how did they end?   For /admin/state."""

import time
from collections import deque
from dataclasses import dataclass, field

from backends.sim.protocol import JSON

KEPT = 200  # requests


@dataclass(slots=True)
class Entry:
    """One request as `/admin/state` shows it. `state`: running, finished, aborted or errored; `phase`: how far it
    came (received, waiting, prefill, decode, done). `*_ms` are milliseconds of the monotonic clock."""

    id: str
    path: str
    headers: JSON
    body: str | None
    kind: str = "answer"
    streamed: bool = False
    thinking: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    state: str = "running"
    phase: str = "received"
    status: int | None = None
    p_complex: float | None = None
    received_ms: float = field(default_factory=lambda: time.monotonic() * 1000)
    first_token_ms: float | None = None
    ended_at: float | None = None
    ended_ms: float | None = None

    def shown(self) -> JSON:
        """The entry as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


class State:
    """The last `KEPT` requests, and counts over all since the start or a reset."""

    def __init__(self, record_bodies: bool) -> None:
        self._record_bodies = record_bodies
        self.reset()

    def reset(self) -> None:
        """Drop requests and counts."""
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._counts: dict[str, int] = {}

    def open(self, request_id: str, path: str, headers: JSON, body: bytes) -> Entry:
        """Begin an entry for a request."""
        kept = body.decode("utf-8", "replace") if self._record_bodies else None
        entry = Entry(request_id, path, headers, kept)
        self._entries.append(entry)
        self._count("received")
        return entry

    def close(self, entry: Entry, state: str) -> None:
        """End an entry and count it under its state and kind; a second call does nothing."""
        if entry.state == "running":
            entry.state, entry.ended_at, entry.ended_ms = state, time.time(), time.monotonic() * 1000
            self._count(state)
            self._count(entry.kind)

    def _count(self, name: str) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1

    def shown(self) -> JSON:
        """Counters and requests, oldest first."""
        names = ("received", "finished", "aborted", "errored", "triage", "answer")
        counters = {name: self._counts.get(name, 0) for name in names}
        return {"counters": counters, "requests": [entry.shown() for entry in self._entries]}
