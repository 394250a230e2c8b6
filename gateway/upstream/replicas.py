"""Which of a tier's servers is asked, and what is known of each?"""

import logging
import math
from collections.abc import Collection

from gateway.http1 import Origin
from gateway.policy import Tier
from gateway.upstream.balance import pick
from gateway.upstream.breaker import Breaker

log = logging.getLogger("gateway")
FRESH = 3.0  # seconds for which a reading of a server's queue is believed


class Signs:
    """Of life, of a server that is looked at again and again. `still`: for how many seconds all looks `found` the same,
    `at`: when the last one began or ended, in the loop's time."""

    def __init__(self) -> None:
        self.found: object = None
        self._since, self.at, self.still = 0.0, -math.inf, 0.0

    def look(self, now: float, gap: float) -> None:
        """A look begins; more than `gap` seconds after the one before they tell nothing together."""
        if now - self.at > gap:
            self.found, self.still = None, 0.0
        self.at = now

    def saw(self, sign: object, since: float, now: float) -> None:
        """What the look found, which has been so `since` then at least."""
        if sign != self.found:
            self.found, self._since = sign, since
        self.still, self.at = now - self._since, now


class Replica:
    """One server. `inflight` counts our open calls to it, of all tiers that it runs. `busy`: until when it wants to be
    left alone, by its last answer."""

    def __init__(self, url: str) -> None:
        self.url, self.origin = url, Origin.parse(url)
        self.breaker, self.signs = Breaker(), Signs()
        self.inflight = self._waiting = self._then = 0
        self._running: int | None = None
        self._read, self.busy = -math.inf, 0.0

    def passed_trial(self) -> None:
        """A call that was a trial was answered."""
        if self.breaker.open:
            log.warning("%s answers again", self.origin.authority)
        self.breaker.close()

    def failed(self, caller: str | None, now: float, trial: bool, why: str) -> None:
        """A call failed; `caller` None: no request can be the cause."""
        open_before = self.breaker.open
        self.breaker.failed(caller, now, trial=trial)
        if self.breaker.open and not open_before:
            log.warning("%s fails and is left alone for a while: %s", self.origin.authority, why)

    def stands_still(self, now: float) -> None:
        """It was looked at, and does nothing: no call needs to find that out."""
        if not self.breaker.open:
            self.breaker.trip(now)
            log.warning("%s stands still and is left alone for a while", self.origin.authority)

    def told(self, waiting: int, now: float, running: int | None = None) -> None:
        """The server told how many requests wait in its queue and, maybe, how many it works on."""
        self._waiting, self._running, self._then, self._read = waiting, running, self.inflight, now

    def waiting(self, now: float) -> int | None:
        """Requests in its queue as it last said; None when that is too long ago."""
        return self._waiting if now - self._read < FRESH else None

    def running(self, now: float) -> int | None:
        """Requests that it works on, likewise."""
        return self._running if now - self._read < FRESH else None

    def expected(self, now: float) -> int | None:
        """`waiting`, plus the calls that we began since that reading, less those that ended: else all would go to the
        server whose queue was the shortest then."""
        waiting = self.waiting(now)
        return None if waiting is None else waiting + self.inflight - self._then


class Replicas:
    """All servers, by URL: a server that runs two tiers is one, and stays what it is when the policy is replaced."""

    def __init__(self) -> None:
        self._known: dict[str, Replica] = {}

    def at(self, url: str) -> Replica:
        found = self._known.get(url)
        if found is None:
            found = self._known[url] = Replica(url)
        return found

    def of(self, tier: Tier) -> list[Replica]:
        return [self.at(url) for url in tier.replicas]

    def choose(self, tier: Tier, key: int, tried: Collection[Replica], now: float) -> Replica | None:
        """The one to ask, `key` as for `pick`; None when all that may be asked were `tried`.

        A tier whose breakers are all open is asked nevertheless: nobody else is left, and it may be well again. So is
        one that is busy, by its own word, where all others are, too.
        """
        left = [replica for replica in self.of(tier) if replica not in tried]
        usable = [replica for replica in left if replica.breaker.lets(now)] or ([] if tried else left)
        usable = [replica for replica in usable if now >= replica.busy] or usable
        if len(usable) < 2:
            return usable[0] if usable else None
        return self.at(pick([one.url for one in usable], *_measure(usable, tier.balance, now), key))

    def down(self, tier: Tier, now: float) -> bool:
        """Every server fails, or is busy."""
        return all(replica.breaker.open or now < replica.busy for replica in self.of(tier))


def waiting(replicas: Collection[Replica], now: float) -> int | None:
    """Requests in the queues of those that say so; None when none does."""
    told = [count for replica in replicas if (count := replica.waiting(now)) is not None]
    return sum(told) if told else None


def queues(replicas: Collection[Replica], now: float) -> tuple[int, int] | None:
    """Requests that are worked on and that wait, of those that say both; None when none does."""
    pairs = [(one.running(now), one.waiting(now)) for one in replicas]
    told = [(running, waits) for running, waits in pairs if running is not None and waits is not None]
    return (sum(running for running, _ in told), sum(waits for _, waits in told)) if told else None


def _measure(replicas: list[Replica], balance: str, now: float) -> tuple[str, dict[str, int]]:
    """How to balance, and the load to do it by. Queues that are not all known cannot be compared."""
    if balance == "least_waiting":
        queues = {replica.url: replica.expected(now) for replica in replicas}
        known = {url: waiting for url, waiting in queues.items() if waiting is not None}
        if len(known) == len(replicas):
            return balance, known
    return balance, {replica.url: replica.inflight for replica in replicas}
