"""How many calls may a tier have open, so that few wait inside its servers?   An adaptive concurrency limit.

Pure: times are passed in. Like Netflix's gradient limits and Envoy's adaptive concurrency, with two differences: where
a server tells its own queue, that is used rather than latency; and it is checked whether fewer places did help.
"""

import math
import statistics

FIRST = 64  # places to begin with
PERIOD = 1.0  # seconds between two looks at times to the first byte
ENOUGH = 10  # such times in a period, without which it says nothing
LONGEST = 5.0  # seconds without such times after which more places are tried
FRESH = 3.0  # seconds since a server told its queue in which latency is ignored
AGAIN = 20  # looks after which the lowest figure ever found is the reference again
SEEN = 60.0  # seconds since a stream's first byte in which silence is taken for slowness, not for idleness


class Gauge:
    """A figure that grows once there are too many places; up to `tolerance` times its lowest value is acceptable.

    `power`: how it grows with the places: as their `power`th power, 1 for in proportion.
    """

    def __init__(self, tolerance: float, power: float, least: float = math.inf) -> None:
        self._tolerance, self._power, self._least = tolerance, power, least
        self._ever, self._looks = least, 0  # the least of all, looks since another was taken for well
        self._top: tuple[int, float] | None = None  # places and figure when it first was too high

    def saw(self, found: float) -> None:
        """A value that was found, however many places were taken then."""
        self._least, self._ever = min(self._least, found), min(self._ever, found)

    def fits(self, found: float, size: int) -> int | None:
        """How many places would be acceptable for the value `found`; None when the present `size` is.

        Where fewer places did not lower the value, something else raised it: other clients of the servers, or longer
        prompts. Then `found` is the reference for a while, and the places that were taken away come back.
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
    """The limit itself (`size`), at least 1: lower when requests wait in the servers, higher when none does.

    It changes only if some request found no place since the last change. It rises by a step that doubles each time and
    is 1 again after a fall. After a fall nothing is judged until no more calls are open than it allows.
    """

    def __init__(self) -> None:
        self.size = self._step = self._most = FIRST
        self._queue = Gauge(tolerance=1.1, power=1.0, least=1.0)  # all in the servers, for each that they work on
        # Seconds to the first byte of streams: many running ones make them longer, too, but a queue multiplies them.
        self._wait = Gauge(tolerance=3.0, power=3.0)
        self._times: list[float] = []
        self._missed = False
        self._told = self._heard = -math.inf  # when servers last told a queue, when a stream last began
        self._begun = -math.inf  # calls count that began after this, the last change
        self._since = 0.0  # when this period began

    def missed(self, taken: int, most: int, now: float) -> None:
        """A request found all places taken; `most` is the operator's limit for them."""
        if not self._missed:  # calls from before it were sent to servers that were not yet full: they say too little
            self._begun = now
            self._times.clear()
        self._missed, self._most = True, most
        self.size = min(self.size, most)
        self._look(taken, now)

    def told(self, running: int, waiting: int, taken: int, now: float) -> None:
        """The servers told how many requests they work on and how many wait in them."""
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
        """If the period is over: change the size by its median time to the first byte."""
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
