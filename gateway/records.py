"""What was decided, and what came of it?   The newest decisions in memory; more in a file or a stream of the store."""

import asyncio
import contextlib
import errno
import logging
import os
import select
import time
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple, Protocol

import msgspec

from gateway.errors import NotFound
from gateway.kept import KeptDecision, to_keep
from gateway.policy import Policy, Recording
from gateway.recorded import RETRY, LateOutcome, Outcome, Record, Recorded
from gateway.store import Store
from gateway.turns import conversation
from gateway.types import Caller, ChatRequest, Decision

FILE_BYTES = 64 << 20  # a longer file becomes FILE.1 and a fresh one begins: two of them are the most there is
WAITING = 10_000  # lines that wait to be written; while so many wait, further ones are lost, and counted in the log
PAUSE = 0.05  # seconds that lines gather before they are written together
TOGETHER = 200  # lines that are sent to the store at once, so that admissions need not wait for all of an outage
PATIENCE = 1.0  # seconds that a pipe whose reader stands still is waited for
LOOKS = (0.0, 0.05, 0.1, 0.2)  # seconds before each look for the decision that an outcome is of
log = logging.getLogger("gateway")
_draw = SystemRandom().random
_LINE = msgspec.json.Decoder(Recorded)


class Due(NamedTuple):
    """A line to be written. `id`: of a decision that other processes shall know of; None for an outcome."""

    line: bytes
    caller: str
    id: str | None
    rules: Recording


class DecisionWatcher(Protocol):
    """Gets each recorded decision, and each decision of this process that got its first outcome."""

    def decided(self, decision: Decision, policy: Policy) -> None: ...

    def judged(self, one: Recorded, policy: Policy) -> None: ...


class Records:
    """The process's records. `path` is a file of this process alone; None: no file.

    No request waits for them: lines are written in the background; those for the stream wait for a store that is down.
    `lost` counts those that could not be written; `failing`: the file takes none.
    """

    def __init__(self, store: Store, path: Path | None = None, watch: DecisionWatcher | None = None) -> None:
        self._store, self._path, self._watch = store, path, watch
        self._ring: OrderedDict[tuple[str, str], KeptDecision] = OrderedDict()
        self._due: list[Due] = []
        self._unshared: list[Due] = []  # for the stream
        self._writing: asyncio.Task[None] | None = None
        self.failing = self._ending = False
        self.lost = 0

    def keep(self, record: Record, policy: Policy, request: ChatRequest | None = None) -> None:
        """Record a decision, if `policy` says so. A cached or coalesced answer has none of its own. The conversation of
        `request` is named only where the line is written: that takes 6 us (2026-11-23)."""
        decision, rules = record.decision, policy.record
        if not decision or record.cache == "coalesced" or not record.caller:
            return
        if rules.decisions < 1 and _draw() >= rules.decisions:
            return
        if self._watch:
            self._watch.decided(decision, policy)
        ring, name, kept = self._ring, (record.caller.id, record.id), to_keep(record, record.caller, decision, policy)
        if name in ring:
            ring.move_to_end(name)
        ring[name] = kept
        while len(ring) > rules.keep:
            ring.popitem(last=False)
        if self._path is not None or self._shares(rules):
            kept.conversation = conversation(request, policy) if request else ""
            self._put(Due(kept.line(), record.caller.id, record.id, rules))

    def holds(self, caller: Caller, request_id: str) -> bool:
        """Whether a decision of this process can still be judged here."""
        return (caller.id, request_id) in self._ring

    def recent(self, most: int, after: float = 0.0) -> list[bytes]:
        """The newest lines of answers that ended after that time (Unix seconds), `most` at most, the newest last. Takes
        long for many: call it in a thread."""
        kept = list(self._ring.values())[-most:]
        newer = kept[bisect_right(kept, after, key=lambda one: round(one.at, 3)) :]
        return [one.line() for one in newer]

    async def judge(self, caller: Caller, request_id: str, outcome: Outcome, policy: Policy) -> None:
        """Attach an outcome to a decision of this caller; a later one takes the place of an earlier one, as
        `Outcome.over` says.

        A caller may be faster than the record of its answer, which is waited for. Raises NotFound for a request that is
        not this caller's, not recorded, or too old.
        """
        for seconds in LOOKS:
            await asyncio.sleep(seconds)
            if await self._attached((caller.id, request_id), outcome, policy):
                break
        else:
            raise _unknown(request_id)
        if self._path is not None or self._shares(policy.record):
            late = LateOutcome(id=request_id, caller=caller.id, at=time.time(), outcome=outcome)
            self._put(Due(msgspec.json.encode(late), caller.id, None, policy.record))

    async def _attached(self, name: tuple[str, str], outcome: Outcome, policy: Policy) -> bool:
        """Attaches the outcome; True also where the decision is known to be another process's."""
        kept, rules = self._ring.get(name), policy.record
        if kept is None:
            return self._shares(rules) and await self._store.recall(name[0], _mark(name[1])) is not None
        if kept.at + rules.feedback < time.time():
            return False
        known, kept.outcome = kept.outcome, outcome.over(kept.outcome)
        if self._watch and (known is None or known.source == RETRY):  # a retry is told to no watcher
            self._watch.judged(_LINE.decode(kept.line()), policy)
        return True

    async def close(self) -> None:
        """Writes what is due; a store that is down is not waited for."""
        self._ending = True
        while self._writing and not self._writing.done():
            await asyncio.wait([self._writing])

    def _put(self, due: Due) -> None:
        if len(self._due) >= WAITING:
            self.lost += 1
            return
        self._due.append(due)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._due or (self._unshared and not self._ending):
            await asyncio.sleep(PAUSE)
            batch, self._due = self._due, []
            if batch and self._path is not None:
                await asyncio.to_thread(self._append, self._path, batch)
            self._unshared += [due for due in batch if self._shares(due.rules)]
            while self._unshared and await self._shared(self._unshared[:TOGETHER]):
                del self._unshared[:TOGETHER]
            self.lost += max(0, len(self._unshared) - WAITING)
            del self._unshared[:-WAITING]

    def _shares(self, rules: Recording) -> bool:
        return rules.stream is not None and self._store.state != "memory"

    def _append(self, path: Path, batch: list[Due]) -> None:
        try:
            append(path, [due.line for due in batch])
        except OSError as error:
            self.lost += len(batch)
            if not self.failing:
                log.warning("records: %s cannot be written (%s): decisions are lost", path, error.strerror)
            self.failing = True
        else:
            if self.failing:
                log.warning("records: %s is written again; %d lost so far", path, self.lost)
            self.failing = False

    async def _shared(self, batch: list[Due]) -> bool:
        """Whether the store has the lines, as `note` says."""
        if not await self._store.note([due.line for due in batch], batch[-1].rules.stream or 1):
            return False
        known = [(due.caller, _mark(due.id), due.rules.feedback) for due in batch if due.id is not None]
        await asyncio.gather(*(self._store.remember(caller, mark, b"1", ttl) for caller, mark, ttl in known))
        return True


def append(path: Path, lines: list[bytes], patience: float = PATIENCE) -> None:
    """Write lines to the end of the file, readable by its owner; a full file makes room. Raises OSError where not all
    of them fit, and writes none: a cut line would make the file unreadable. A pipe keeps what it took until nobody
    read it for `patience` seconds."""
    text = b"".join(line + b"\n" for line in lines)
    how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK  # a pipe without a reader is not waited for
    file = os.open(path, how, 0o600)
    try:
        before = end = os.fstat(file).st_size
        try:
            while end - before < len(text):
                end += _taken(file, text[end - before :], patience)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, before)
            raise
    finally:
        os.close(file)
    if end > FILE_BYTES:
        path.replace(f"{path}.1")


def _taken(file: int, text: bytes, patience: float) -> int:
    """How many bytes the file takes. Raises OSError."""
    ready = select.poll()
    ready.register(file, select.POLLOUT)
    if not ready.poll(patience * 1000):
        raise TimeoutError(errno.ETIMEDOUT, "nobody reads this pipe")
    return os.write(file, text)


def _mark(request_id: str) -> bytes:
    return b"record:" + request_id.encode()


def _unknown(request_id: str) -> NotFound:
    told = f"No decision of yours is recorded under {request_id[:128]!r}, or its time for feedback is over."
    return NotFound(told, param="request_id", code="request_not_found")
