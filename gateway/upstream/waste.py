"""How much of what drafts made lately was thrown away, and which may start on the dear tier?"""

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
    """Tokens of drafts, kept and wasted, of each caller and of all together. Older ones fade: after a window about a
    third of them still counts."""

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
        """Whether the wasted part, over about so many seconds, is at most that: of the caller's drafts where they are
        enough to tell, so that one whose drafts come to nothing stops nobody else's; else of all."""
        now, self._window = self._clock(), window
        for tally in filter(None, map(self._tallies.get, (caller, TOGETHER))):
            tally.fade(now, window)
            if tally.kept + tally.wasted >= LEAST:
                return tally.wasted <= most * (tally.kept + tally.wasted)
        return True


class Early:
    """Limits early starts on the highest tier: of n judged requests at most share * n + SAVED may start it before their
    verdict."""

    def __init__(self) -> None:
        self._left = 0.0

    def may(self, share: float, *, wanted: bool) -> bool:
        """One more is judged; whether it may, if that is wanted."""
        self._left = min(self._left + share, SAVED)
        if not wanted or self._left < 1.0:
            return False
        self._left -= 1.0
        return True
