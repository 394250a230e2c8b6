"""How much of what drafts made lately was thrown away, and which may start on the dear tier?"""

import math
import time
from collections.abc import Callable

LEAST = 500.0  # tokens lately, below which the share says nothing; so a stop ends by itself
SAVED = 3.0  # early starts that are saved up


class Waste:
    """Tokens of drafts, kept and wasted. Older ones fade: after a window about a third of them still counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept = self._wasted = 0.0
        self._window, self._at = math.inf, clock()

    def add(self, *, kept: int = 0, wasted: int = 0) -> None:
        self._fade()
        self._kept += kept
        self._wasted += wasted

    def within(self, most: float, window: float) -> bool:
        """Whether the wasted part, over about so many seconds, is at most that."""
        self._window = window
        self._fade()
        made = self._kept + self._wasted
        return made < LEAST or self._wasted <= most * made

    def _fade(self) -> None:
        at = self._clock()
        left = math.exp((self._at - at) / self._window)
        self._kept, self._wasted, self._at = self._kept * left, self._wasted * left, at


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
