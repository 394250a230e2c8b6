"""How many of a tier's requests do its servers work on at once?   Found out from how long requests wait in them.

Pure: times come in. After Netflix's gradient limits and Envoy's adaptive concurrency, with two differences: a server's
own queue, where it tells it, says more than any time does; and whether fewer places were better is looked at.
"""

import math
import statistics

FIRST = 64  # places to begin with
PERIOD = 1.0  # seconds between two looks at times to the first byte
ENOUGH = 10  # such times in a period, without which it says nothing
LONGEST = 5.0  # seconds without any after which nothing speaks against more places
FRESH = 3.0  # seconds for which servers that told their queue are taken to tell it again
AGAIN = 20  # looks after which what was taken for well is tried against the least ever found
SEEN = 60.0  # seconds for which, after a stream, others are waited for: a late first byte is no good sign


class Gauge:
    """A figure that grows with the places once they are too many. Up to `tolerance` times the least found is well.

    `power`: how it follows the places, 1 where it grows as they do.
    """

    __slots__ = ("_ever", "_least", "_looks", "_power", "_tolerance", "_top")

    def __init__(self, tolerance: float, power: float, least: float = math.inf) -> None:
        self._tolerance, self._power, self._least = tolerance, power, least
        self._ever, self._looks = least, 0  # the least of all, looks since another was taken for well
        self._top: tuple[int, float] | None = None  # places and figure when it first was too high

    def saw(self, found: float) -> None:
        """This is what it is, however many places are taken."""
        self._least, self._ever = min(self._least, found), min(self._ever, found)

    def fits(self, found: float, size: int) -> int | None:
        """How many places would be well; None when `size` of them are.

        Where fewer places were no better, other callers fill the servers, or prompts got longer: what is found is what
        is well for a while, and all places are given back.
        """
        self.saw(found)
        self._looks += 1
        if self._looks >= AGAIN:
            self._least, self._looks = self._ever, 0
        most = self._tolerance * self._least
        if found <= most:
            self._top = None
            return None
        if self._top and found > self._top[1] * (1 - (1 - size / self._top[0]) / 2):
            fits, self._least, self._looks, self._top = self._top[0], found, 0, None
            return fits
        self._top = self._top or (size, found)
        return max(1, int(size * (most / found) ** (1 / self._power)))


class Window:
    """The places of a tier, at least 1: fewer when requests wait in the servers, more when none does.

    It changes only when places were missed since the last look, and goes up by a step that doubles each time, from 1
    again when it went down. After that nothing is judged before all who are over it have left.
    """

    __slots__ = (
        "_begun", "_heard", "_missed", "_most", "_queue", "_since", "_step", "_times", "_told", "_wait", "size",
    )  # fmt: skip

    def __init__(self) -> None:
        self.size = self._step = self._most = FIRST
        self._queue = Gauge(tolerance=1.1, power=1.0, least=1.0)  # all in the servers, for each that they work on
        # Seconds to the first byte of streams: many running ones make them longer, too, but a queue multiplies them.
        self._wait = Gauge(tolerance=3.0, power=3.0)
        self._times: list[float] = []
        self._missed = False
        self._told = self._heard = -math.inf  # when servers last told a queue, when a stream last began
        self._begun = -math.inf  # from when on calls count: those since the last change
        self._since = 0.0  # when this period began

    def missed(self, taken: int, most: int, now: float) -> None:
        """Somebody found all places taken; there may be `most`."""
        if not self._missed:  # calls from before it were sent to servers that were not yet full: they say too little
            self._begun = now
            self._times.clear()
        self._missed, self._most = True, most
        self.size = min(self.size, most)
        self._look(taken, now)

    def told(self, running: int, waiting: int, taken: int, now: float) -> None:
        """What the servers work on and what waits in them, by their own word."""
        self._told = now
        self._times.clear()
        if self._judges(taken, now):
            self._change(self._queue.fits((running + waiting) / max(1, running), self.size), now)

    def heard(self, seconds: float, taken: int, now: float) -> None:
        """A stream's first bytes came, so many seconds after it was sent."""
        self._heard = now
        if now - self._told > FRESH and now - seconds >= self._begun:
            self._times.append(seconds)
            self._look(taken, now)

    def _look(self, taken: int, now: float) -> None:
        """Is the period over, and what does it say?"""
        self._since = self._since or now
        past, enough = now - self._since, len(self._times) >= ENOUGH
        silent = past >= LONGEST and now - self._heard > SEEN
        if now - self._told <= FRESH or past < PERIOD or not (enough or silent):
            return
        found = statistics.median(self._times) if enough else None
        if found is not None:
            self._wait.saw(found)
        if self._judges(taken, now):
            self._change(self._wait.fits(found, self.size) if found is not None else None, now)
        self._since = now
        self._times.clear()

    def _judges(self, taken: int, now: float) -> bool:
        if taken > self.size:
            self._begun = now
        return self._missed and taken <= self.size

    def _change(self, fits: int | None, now: float) -> None:
        self._missed = False
        if fits is None:
            self.size, self._step = min(self.size + self._step, self._most), min(2 * self._step, self._most)
        else:
            self.size, self._step = fits, 1
        self._begun = now
