"""What may a caller do while the store does not answer?"""

from msgspec.structs import replace

from gateway.errors import Overloaded
from gateway.store.circuit import PAUSE
from gateway.store.limits import UNLIMITED, Limits, Mode, Money


def alone(limits: Limits, processes: int) -> Limits:
    """The limits that this process, one of so many, applies by itself; each as `limits.outage` says.

    local   this process's share: the limit divided by the processes, rounded up. A share of requests stays as it is.
    allow   there is no limit.
    deny    Overloaded, if the caller has the limit; a denied share is the first tier only.
    """
    modes, money, share = limits.outage, limits.money, limits.share
    requests = _own(modes.requests, limits.requests_per_minute, processes)
    concurrency = _own(modes.concurrency, limits.concurrency, processes)
    tokens = _own(modes.tokens, limits.tokens_per_minute, processes)
    nano = _own(modes.money, money.nano if money else None, processes)
    if share and modes.share != "local":
        share = None if modes.share == "allow" else replace(share, max=0.0)
    return Limits(
        requests or UNLIMITED,
        concurrency or UNLIMITED,
        limits.lease,
        tokens,
        Money(nano, money.window, money.degrade) if money and nano is not None else None,
        share,
        modes,
    )


def _own(mode: Mode, limit: int | None, processes: int) -> int | None:
    if limit is None or mode == "allow":
        return None
    if mode == "local":
        return -(-limit // processes)
    raise unavailable("The store does not answer, and a limit of yours may not be spent unseen.")


def unavailable(message: str = "the store does not answer") -> Overloaded:
    return Overloaded(message, code="store_unavailable", retry_after=PAUSE)
