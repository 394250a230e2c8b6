"""How do other processes know that this one is alive?   It renews its leases and announces itself."""

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from gateway.store.address import Door
from gateway.store.pipeline import FAULTS
from gateway.store.repair import asked
from gateway.store.scripts import ANNOUNCE, RENEW
from gateway.store.words import key_names

PROCESSES = b"tg1:processes"  # a sorted set of processes by the server's time of their last word
BEAT = 2.0  # seconds between two announcements of a process
LAST = 3  # beats after which a silent process is taken for dead
RENEWALS = 3  # times that a lease is renewed before it would end


class Beat:
    """Renews the leases that this process holds, and counts the processes on the store; calls `each` with every beat.
    Begins with the first use.
    """

    def __init__(self, door: Door, process: str, each: Callable[[], None]) -> None:
        self._door, self._process, self._each = door, process, each
        self._held: dict[float, dict[str, str]] = {}  # by their length in seconds: lease -> caller
        self._tasks: list[asyncio.Task[None]] = []
        self._seen: deque[int] = deque([1], maxlen=LAST)

    @property
    def processes(self) -> int:
        """The most that were seen in the last LAST beats: after an outage not all announce themselves at once."""
        return max(self._seen)

    def begin(self) -> None:
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._announce()))

    def hold(self, lease: str, caller: str, seconds: float) -> None:
        """Renew the lease until it is dropped."""
        held = self._held.get(seconds)
        if held is None:
            held = self._held[seconds] = {}
            self._tasks.append(asyncio.create_task(self._keep_renewing(seconds)))
        held[lease] = caller

    def drop(self, lease: str) -> None:
        for held in self._held.values():
            held.pop(lease, None)

    async def _announce(self) -> None:
        while True:
            with contextlib.suppress(*FAULTS):
                gone = int(BEAT * LAST * 1e6)
                self._seen.append(await asked(self._door, b"EVAL", ANNOUNCE, 1, PROCESSES, self._process, gone))
            self._each()
            await asyncio.sleep(BEAT)

    async def _keep_renewing(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds / RENEWALS)
            self._renew(seconds)

    def renew(self) -> None:
        """Renew all leases now, so that none that outlived an outage ends right after it."""
        for seconds in self._held:
            self._renew(seconds)

    def _renew(self, seconds: float) -> None:
        """One command a caller."""
        callers = defaultdict(list)
        for lease, caller in self._held[seconds].items():
            callers[caller].append(lease)
        for caller, leases in callers.items():
            reply = self._door.put(b"EVAL", RENEW, 1, key_names(caller).names.all[1], int(seconds * 1e6), *leases)
            reply.add_done_callback(answered)

    async def close(self) -> None:
        """Stop. Leases that are still held end at their deadline."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._door.put(b"ZREM", PROCESSES, self._process).add_done_callback(answered)


def answered(reply: asyncio.Future[Any]) -> bool:
    """Whether a reply came; a failure is nobody's to hear."""
    return not reply.cancelled() and reply.exception() is None
