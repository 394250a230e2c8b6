"""How do limits, bounds and ledgers look to the scripts?"""

import time
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from gateway.store.contract import HELD
from gateway.store.limits import Bound, Limits, Line

MEASURES = ("requests", "prompt", "cached", "completion", "money")
DAY = 86_400  # seconds
packed = msgspec.msgpack.encode


@lru_cache(maxsize=4096)
def account(caller: str) -> tuple[str, str, str, str]:
    """The names of a caller's account, leases, holds and ledger; they share the hash tag `{caller}`."""
    head = f"tg3:{{{caller}}}:"
    return f"{head}account", f"{head}leases", f"{head}holds", f"{head}ledger"


def wanted(limits: Limits, bound: Bound, lease: str) -> bytes:
    """What ADMIT is told; one word, because each word costs about as much as all that is in this one."""
    money, share = limits.money, limits.share
    return packed((
        *(lease, int(limits.lease * 1e6)),
        *(limits.requests_per_minute, limits.interval, limits.concurrency, limits.tokens_per_minute or 0),
        *((money.nano, int(money.seconds * 1e6), money.degrade) if money else (-1, 0, False)),
        *((share.max, int(share.seconds * 1e6)) if share else (-1, 0)),
        *(bound.prompt, bound.completion, bound.money, bound.tier, bound.cheap, bound.first, int(HELD * 1000)),
    ))  # fmt: skip


def pushed(caller: str, name: str) -> tuple[str, ...]:
    """The names for lines that belong to no lease of the server's: `name`, of this push alone, is remembered."""
    return *account(caller), f"tg3:{{{caller}}}:pushed:{name}"


def settled(lease: str, lines: Sequence[Line] = (), above: bool = False) -> bytes:
    """What SETTLE is told."""
    told = [(e.tier, e.kind, int(e.estimated), e.requests, e.prompt, e.cached, e.completion, e.money) for e in lines]
    return packed((lease, above, told))


def booked(caller: str, flat: Sequence[bytes]) -> list[Line]:
    """A ledger's hash, as HGETALL gives it, as lines."""
    sums: dict[str, dict[str, int]] = {}
    for name, count in zip(flat[::2], flat[1::2], strict=True):
        heading, _, measure = name.decode().rpartition("/")
        sums.setdefault(heading, dict.fromkeys(MEASURES, 0))[measure] = int(count)
    found = []
    for heading, counts in sums.items():
        day, kind, estimated, tier = heading.split("/", 3)
        date = time.strftime("%Y-%m-%d", time.gmtime(int(day) * DAY))
        found.append(msgspec.convert({**counts, "tier": tier, "kind": kind, "estimated": estimated == "1",
                                      "caller": caller, "day": date}, Line))  # fmt: skip
    return sorted(found, key=lambda line: (line.day, line.tier, line.kind, line.estimated))
