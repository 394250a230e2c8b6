"""Is this replica to be asked, or left alone for a while?"""

WINDOW = 10.0  # seconds of calls that are judged together
FAILURES = 5  # in a window, and half of its calls: the replica is left alone
FIRST_REST = 2.0  # seconds until a probe may see whether it is well again
LONGEST_REST = 30.0


class Breaker:
    """Counts what becomes of a replica's calls: transport errors, timeouts and 5xx are failures, all else is none.

    Closed until half of at least FAILURES calls in WINDOW failed; then open for FIRST_REST, twice as long each time in
    a row; then one call goes through as a probe, whose outcome closes it or opens it again. A caller whose own requests
    break servers opens nothing while the same replica answers others. Times are in the loop's seconds.
    """

    __slots__ = ("_answered", "_failed", "_failing", "_good", "_probing", "_rest", "_since", "_until")

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the breaker: a trial call was answered (or the replica is new)."""
        self._until = 0.0  # open until then; 0.0 is closed
        self._rest = FIRST_REST
        self._probing = False
        self._begin(0.0)

    def _begin(self, now: float) -> None:
        self._since, self._good, self._failed = now, 0, 0
        self._answered: set[str] = set()  # callers, two at most: whether there is another one is all that counts
        self._failing: set[str] = set()

    @property
    def open(self) -> bool:
        return self._until > 0.0

    def lets(self, now: float) -> bool:
        """Whether a call may go through: always while closed; while open only as the probe, once the rest is over."""
        return not self._until or (now >= self._until and not self._probing)

    def asked(self) -> bool:
        """A call begins. Returns whether it is a trial, one made while the breaker is open: the probe, or a call for
        which there was no better replica."""
        if not self._until:
            return False
        self._probing = True
        return True

    def dropped(self) -> None:
        """A trial ended without an outcome."""
        self._probing = False

    def passed(self, caller: str) -> None:
        self._good += 1
        if len(self._answered) < 2:
            self._answered.add(caller)

    def failed(self, caller: str | None, now: float, *, trial: bool) -> None:
        """`caller` None: no request can be the cause, as when no connection came about."""
        if self.open:
            self._fail_again(now, trial)
            return
        if now - self._since > WINDOW:
            self._begin(now)
        self._failed += 1
        if len(self._failing) < 2:
            self._failing.add(caller or "")
        own = caller is not None and len(self._failing) == 1 and not self._answered <= self._failing
        if self._failed >= FAILURES and self._failed >= self._good and not own:
            self._until = now + self._rest

    def _fail_again(self, now: float, trial: bool) -> None:
        """Only a trial's failure counts, and only once a rest: calls from before the break fail late."""
        self._probing = self._probing and not trial
        if trial and now >= self._until:
            self._rest = min(2 * self._rest, LONGEST_REST)
            self._until = now + self._rest
