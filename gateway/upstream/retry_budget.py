"""May a failed call be retried?   Retries stay a small part of the calls, even when all calls fail."""

RATIO = 0.1  # retries for each first call
TRICKLE = 0.05  # retries a second, for a gateway that is rarely asked
MOST = 5.0  # retries that are saved up


class RetryBudget:
    """Of one tier. Over a minute with `n` first calls there are at most 0.1 n + 8 retries. Times in seconds."""

    def __init__(self) -> None:
        self._left, self._at = MOST, 0.0

    def earn(self) -> None:
        """A first call begins."""
        if self._left < MOST:
            self._left += RATIO

    def spend(self, now: float) -> bool:
        """Take one retry; False when none is left."""
        self._left = min(MOST, self._left + TRICKLE * (now - self._at))
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
