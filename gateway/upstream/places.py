"""Who gets a tier's next free place?   A queue by priority, with early refusal."""

import asyncio
import math
from collections import deque

from gateway.errors import Overloaded
from gateway.policy import TierLimits
from gateway.upstream.window import Window

RETRY_AFTER = 1.0  # seconds, when a full tier or server cannot say better
LONGEST_ADVICE = 10.0  # nobody knows the load much later
WEIGHT = 0.05  # of the last gap between two grants, in their moving average
SHUT = 0.5  # seconds for which a queue that lost a place to a higher one accepts nobody while that one waits
SURE = 0.5  # the part of its patience that a request's estimated wait may take: else it is refused at once


class Queue:
    """The waiting requests of one priority, first come first served. `pace`: seconds between two grants, averaged."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.pace = self.last = self.shut = 0.0

    def wait(self, now: float, *, behind: bool) -> float:
        """The seconds that a request which comes now would wait, estimated. `behind`: a higher queue has waiting
        requests, so that this one may stand still, and the time since its last grant counts. Else such a pause only
        means that answers end several at once.
        """
        if behind and now < self.shut:
            return math.inf
        if not self.waiting:
            return 0.0
        return (len(self.waiting) + 1) * (max(self.pace, self._slower(now)) if behind else self.pace)

    def stood(self, now: float) -> None:
        """One gave up; the time since the last grant counts as a gap."""
        self.pace = self._slower(now)

    def moved(self, now: float) -> None:
        """One got its place."""
        self.pace = self._slower(now)
        self.last = now

    def _slower(self, now: float) -> float:
        return self.pace + WEIGHT * (now - self.last - self.pace)


class Places:
    """The calls that a tier has open (`taken`) and who waits to be one of them, by priority, higher first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queues: dict[int, Queue] = {}
        self._limits = TierLimits()  # as last seen
        self._window = Window()
        self.taken = self.queued = 0

    def free(self, limits: TierLimits) -> bool:
        """Take a place if that needs no waiting."""
        if not self.room(limits):
            return False
        self.taken += 1
        return True

    def room(self, limits: TierLimits) -> bool:
        """Whether a place needs no waiting."""
        return not self.queued and self.taken < (self.most(limits) if limits.adaptive else limits.max_inflight)

    async def take(self, limits: TierLimits, priority: int, patience: float) -> None:
        """Return with a place; its holder gives it back. Raises Overloaded at once when the queue is full or its
        length means too long a wait, later when `patience` (seconds) or `queue_timeout` is over.
        """
        self._limits = limits
        if refusal := self.turned_away(limits, priority, patience):
            raise refusal
        if self.free(limits):
            return
        if self.queued >= limits.queue:
            self._displace(priority)
        await self._wait(self._queues.setdefault(priority, Queue()), min(patience, limits.queue_timeout))

    def turned_away(self, limits: TierLimits, priority: int, patience: float) -> Overloaded | None:
        """The refusal that `take` raises at once; None where there is a place, or one worth waiting for."""
        if self.room(limits):
            return None
        if limits.adaptive:
            self._window.missed(self.taken, limits.max_inflight, _now())
        if self.queued:
            self._grant()
        if self.room(limits):
            return None
        expected = self._expected(priority)
        late = expected > SURE * min(patience, limits.queue_timeout)
        full = self.queued >= limits.queue and self._below(priority) is None
        return self.overloaded(expected) if late or full else None

    def give_back(self) -> None:
        """A call has ended."""
        self.taken -= 1
        if self.queued:
            self._grant()

    def most(self, limits: TierLimits) -> int:
        """How many calls may be open."""
        return min(limits.max_inflight, self._window.size) if limits.adaptive else limits.max_inflight

    def told(self, found: tuple[int, int] | None) -> None:
        """The requests that the tier's servers work on and that wait in them, as they tell; None: they do not."""
        if found:
            self._window.told(*found, self.taken, _now())
            self._grant()

    def heard(self, seconds: float) -> None:
        """A stream's first bytes came, so long after it was sent."""
        self._window.heard(seconds, self.taken, _now())
        self._grant()

    def overloaded(self, expected: float = 0.0) -> Overloaded:
        """`expected`: seconds that a place would take."""
        seconds = min(max(RETRY_AFTER, expected), LONGEST_ADVICE)
        return Overloaded(f"Tier '{self._name}' is full.", retry_after=seconds)

    async def _wait(self, queue: Queue, patience: float) -> None:
        loop = asyncio.get_running_loop()
        if not queue.waiting:
            queue.last = loop.time()
        turn: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(patience, self._give_up, queue, turn)
        queue.waiting.append(turn)
        self.queued += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._drop(queue, turn)
            elif not turn.exception():
                self.give_back()  # granted in the moment in which the caller left
            raise
        finally:
            timer.cancel()

    def _grant(self) -> None:
        while self.queued and self.taken < self.most(self._limits):
            queue = self._queues[max(level for level, queue in self._queues.items() if queue.waiting)]
            turn = queue.waiting.popleft()
            self.queued -= 1
            if not turn.done():  # else it was cancelled in this moment
                queue.moved(_now())
                self.taken += 1
                turn.set_result(None)

    def _give_up(self, queue: Queue, turn: "asyncio.Future[None]") -> None:
        if not turn.done():
            self._drop(queue, turn)
            queue.stood(_now())
            turn.set_exception(self.overloaded(queue.pace))

    def _expected(self, priority: int) -> float:
        """Seconds that one of this priority would wait."""
        behind = any(other.waiting for level, other in self._queues.items() if level > priority)
        queue = self._queues.get(priority)
        return queue.wait(_now(), behind=behind) if queue else 0.0

    def _below(self, priority: int) -> Queue | None:
        """The lowest queue in which somebody waits, if it is below `priority`."""
        lowest = min((level for level, queue in self._queues.items() if queue.waiting), default=priority)
        return self._queues[lowest] if lowest < priority else None

    def _displace(self, priority: int) -> None:
        """Send away the last comer of the lowest queue below `priority`, if there is one."""
        queue = self._below(priority)
        if queue is None:
            return
        turn = queue.waiting[-1]
        self._drop(queue, turn)
        queue.shut = _now() + SHUT
        if not turn.done():
            turn.set_exception(self.overloaded())

    def _drop(self, queue: Queue, turn: "asyncio.Future[None]") -> None:
        if turn in queue.waiting:
            queue.waiting.remove(turn)
            self.queued -= 1


def _now() -> float:
    return asyncio.get_running_loop().time()
