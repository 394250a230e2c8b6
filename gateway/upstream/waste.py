"""How many tokens of drafts were wasted lately, and may another draft start on the highest tier?"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

LEAST = 500.0  # tokens lately, below which the share tells nothing; so a stop ends by itself
SAVED = 3.0  # early starts that are saved up
REMEMBERED = 4096  # callers, those with the latest drafts
TOGETHER = ""  # in place of a caller: all


@dataclass(slots=True)
class Tally:
    kept: float
    wasted: float
    at: float

    def fade(self, now: float, window: float) -> None:
        left = math.exp((self.at - now) / window)
        self.kept, self.wasted, self.at = self.kept * left, self.wasted * left, now


class Waste:
    """Tokens of drafts, kept and wasted, by caller and in all. They decay: after one window about a third of them still
    counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window = math.inf
        self._tallies: OrderedDict[str, Tally] = OrderedDict()

    def add(self, caller: str, *, kept: int = 0, wasted: int = 0) -> None:
        now, tallies = self._clock(), self._tallies
        for name in (caller, TOGETHER):
            tally = tallies.setdefault(name, Tally(0.0, 0.0, now))
            tally.fade(now, self._window)
            tally.kept += kept
            tally.wasted += wasted
            tallies.move_to_end(name)
        if len(tallies) > REMEMBERED:
            tallies.popitem(last=False)

    def within(self, caller: str, most: float, window: float) -> bool:
        """Whether the wasted part, over about `window` seconds, is at most `most`: of this caller's drafts if they are
        enough to tell, so that one caller's wasted drafts do not stop the others'; else of all drafts."""
        now, self._window = self._clock(), window
        for tally in filter(None, map(self._tallies.get, (caller, TOGETHER))):
            tally.fade(now, window)
            if tally.kept + tally.wasted >= LEAST:
                return tally.wasted <= most * (tally.kept + tally.wasted)
        return True


class Early:
    """Limits early starts on the highest tier: of n requests that are triaged at most share * n + SAVED."""

    def __init__(self) -> None:
        self._left = 0.0

    def may(self, share: float, *, wanted: bool) -> bool:
        """Counts one more triaged request; returns whether it may start early, if that is `wanted`."""
        self._left = min(self._left + share, SAVED)
        if not wanted or self._left < 1.0:
            return False
        self._left -= 1.0
        return True
