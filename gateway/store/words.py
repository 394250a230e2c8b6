"""How are commands packed, and what arguments do the scripts take and return?"""

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import msgspec

from gateway.store.contract import HELD
from gateway.store.limits import Bound, Kind, Limits, Line
from gateway.store.opening import Word
from gateway.store.scripts import Script, word
from gateway.store.window import date_of, length_of

LONG = 1024  # bytes; the length prefixes of shorter arguments are prepared
SIZES = tuple(b"\r\n$%d\r\n" % size for size in range(LONG))
MEASURES = ("requests", "prompt", "cached", "completion", "money")
ACCOUNTS = b"tg[35]:{*}:*"  # the names of all accounts, leases and ledgers
_packed = msgspec.msgpack.encode


class Names(msgspec.Struct, frozen=True):
    """Names of keys, all with one hash tag, and the same packed as arguments of a command."""

    all: tuple[bytes, ...] = ()
    packed: bytes = b""


class KeyNames(msgspec.Struct, frozen=True):
    """The names of a caller's keys; they share the hash tag `{caller}`. `names`: its account, leases and ledger.
    `entry`: the prefix of the keys of cached values, and of the locks on making them."""

    names: Names
    entry: bytes


@lru_cache(maxsize=4096)
def key_names(caller: str) -> KeyNames:
    tag = f"{{{caller}}}:".encode()
    names = (b"tg5:%baccount" % tag, b"tg5:%bleases" % tag, b"tg3:%bledger" % tag)
    return KeyNames(Names(names, b"".join(map(word, names))), b"tg1:%bentry:" % tag)


def run(script: Script, names: Names, more: tuple[bytes, ...]) -> bytes:
    """The packed command that runs a script by its hash; `more` are further keys, then the script's arguments.

    Built from prepared parts: packing by redis-py or hiredis takes four times as long.
    """
    parts = [script.heads[len(names.all) + len(more) - script.words], names.packed]
    for one in more:
        size = len(one)
        parts += SIZES[size] if size < LONG else b"\r\n$%d\r\n" % size, one
    parts.append(b"\r\n")
    return b"".join(parts)


def whole(script: Script, names: Names, more: tuple[bytes, ...]) -> tuple[Word, ...]:
    """The same command with the script's text, for a server that does not know its hash; not packed."""
    words = *names.all, *more
    return b"EVAL", script.text, len(words) - script.words, *words


def names_in(command: tuple[Word, ...]) -> list[bytes]:
    """The names of keys in a command that is not packed: those of a script, else the first word after its own."""
    names = command[3 : 3 + int(command[2])] if command[0] == b"EVAL" else command[1:2]
    return [name if isinstance(name, bytes) else str(name).encode() for name in names]


def packed(*values: object) -> bytes:
    """At most 15 values in MessagePack, behind each other: a server is slower to read them as an array."""
    return _packed(values)[1:]


@lru_cache(maxsize=256)
def milliseconds(seconds: float) -> bytes:
    """A key's time to live in milliseconds, at least 1."""
    return b"%d" % max(1, int(seconds * 1000))


def wanted(limits: Limits, bound: Bound, lease: str) -> bytes:
    """The argument of ADMIT."""
    return _limits(limits) + packed(
        lease, bound.prompt, bound.completion, bound.money, bound.tier, bound.cheap, bound.first
    )


@lru_cache(maxsize=4096)
def _limits(limits: Limits) -> bytes:
    money, share = limits.money, limits.share
    return packed(
        *(int(limits.lease * 1e6), limits.requests_per_minute, limits.interval, limits.concurrency),
        *(limits.tokens_per_minute or 0,),
        *((money.nano, length_of(money.window), money.degrade) if money else (-1, 0, False)),
        *((share.max, int(share.seconds * 1e6)) if share else (-1, 0)),
        int(HELD * 1000),
    )  # fmt: skip


def pushed(caller: str, name: str) -> bytes:
    """A key by which the server knows, for a day, that it has booked these lines: they belong to no lease of its own,
    and may be sent twice. `name` is of these lines alone."""
    return f"tg3:{{{caller}}}:pushed:{name}".encode()


def settled(lease: str, lines: Sequence[Line] = (), above: bool = False) -> bytes:
    """The argument of SETTLE."""
    return packed(lease, above, lines)


def booked(caller: str, flat: Sequence[bytes]) -> list[Line]:
    """A ledger's hash, as HGETALL gives it, as lines."""
    sums: dict[str, dict[str, int]] = {}
    for name, count in zip(flat[::2], flat[1::2], strict=True):
        heading, _, measure = name.decode().rpartition("/")
        sums.setdefault(heading, dict.fromkeys(MEASURES, 0))[measure] = int(count)
    found = []
    for heading, counts in sums.items():
        day, kind, estimated, tier = heading.split("/", 3)
        line = Line(tier, cast("Kind", kind), estimated == "1", **counts, caller=caller, day=date_of(int(day)))
        found.append(line)
    return sorted(found, key=lambda line: (line.day, line.tier, line.kind, line.estimated))
