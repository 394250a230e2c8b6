"""Is this replica to be asked, or left alone for a while?"""

WINDOW = 10.0  # seconds of calls that are judged together
FAILURES = 5  # in a window, and half of its calls: the replica is left alone
FIRST_REST = 2.0  # seconds until a probe may see whether it is well again
LONGEST_REST = 30.0


class Breaker:
    """Counts what becomes of a replica's calls: transport errors, timeouts and 5xx are failures, all else is none.

    Closed until half of at least FAILURES calls in WINDOW failed, or FAILURES calls in a row; then open for FIRST_REST,
    twice as long each time in a row; then one call goes through as a probe, whose outcome closes it or opens it again;
    the next one goes when it has none after LONGEST_REST. A caller whose own requests break servers opens nothing while
    the same replica answers others, in this window or the one before. `good` counts the calls of this window that were
    answered. Times are in the loop's seconds.
    """

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the breaker: a trial call was answered (or the replica is new)."""
        self.open, self._until = False, 0.0  # where it is open, nobody asks until then
        self._rest = FIRST_REST
        self._awaited = 0.0  # until then no other probe
        self._since, self.good, self._failed = 0.0, 0, 0
        self._before: set[str] = set()  # callers, two at most: whether there is another one is all that counts
        self._answered: set[str] = set()
        self._failing: set[str] = set()

    def _begin(self, now: float) -> None:
        """Another window. Failures since which nothing was answered are taken along: a replica that is seldom asked
        would else never have enough of them."""
        if self.good:
            self._failed, self._failing = 0, set()
        self._since, self.good = now, 0
        self._before, self._answered = self._answered, set()

    def lets(self, now: float) -> bool:
        """Whether a call may go through: always while closed; while open only as the probe, once the rest is over."""
        return not self.open or (now >= self._until and now >= self._awaited)

    def tried(self, now: float) -> None:
        """A trial begins, a call made while the breaker is open: the probe, or one for which there was no better
        replica."""
        self._awaited = now + LONGEST_REST

    def dropped(self) -> None:
        """A trial ended without an outcome."""
        self._awaited = 0.0

    def trip(self, now: float) -> None:
        """Open, whatever was counted: the replica was found to stand still."""
        self.open, self._until = True, now + self._rest

    def passed(self, caller: str) -> None:
        self.good += 1
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
        own = caller is not None and len(self._failing) == 1 and not self._answered | self._before <= self._failing
        if self._failed >= FAILURES and self._failed >= self.good and not own:
            self.trip(now)

    def _fail_again(self, now: float, trial: bool) -> None:
        """Only a trial's failure counts, and only once a rest: calls from before the break fail late."""
        self._awaited = 0.0 if trial else self._awaited
        if trial and now >= self._until:
            self._rest = min(2 * self._rest, LONGEST_REST)
            self._until = now + self._rest
