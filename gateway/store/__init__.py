"""What do gateway processes count and remember together?   In Redis or Valkey, or alone in memory."""

from gateway.store.contract import (
    ALL,
    HELD,
    OVER,
    SHADOW_ACCOUNT,
    VALUE_LIMIT,
    Kept,
    KeyRecord,
    Lock,
    ServerSetup,
    State,
    Store,
    Taken,
)
from gateway.store.limits import (
    NANO,
    REFUSALS,
    UNLIMITED,
    Admitted,
    Bound,
    Kind,
    Limits,
    Line,
    Mode,
    Money,
    Most,
    Outage,
    Portion,
)
from gateway.store.memory import MemoryStore
from gateway.store.window import Window, resets

__all__ = [
    "ALL", "HELD", "NANO", "OVER", "REFUSALS", "SHADOW_ACCOUNT", "UNLIMITED", "VALUE_LIMIT", "Admitted", "Bound",
    "Kept", "KeyRecord", "Kind", "Limits", "Line", "Lock", "MemoryStore", "Mode", "Money", "Most", "Outage", "Portion",
    "ServerSetup", "State", "Store", "Taken", "Window", "open_store", "resets", "setups", "where",
]  # fmt: skip


# The client for servers is imported only where a store is shared: it takes memory.


def where(url: str) -> str:
    """What may be seen of a store's address: its servers and database, without user, password and options."""
    place, _, options = url.partition("?")
    if "@" in options:  # a password that is not escaped, before them or among them
        return "***"
    return place.partition("://")[2].rpartition("@")[2]


def open_store(url: str | None) -> Store:
    """A MemoryStore for None, else the servers at `url` (gateway/store/address.py). Raises ValueError for another."""
    if url is None:
        return MemoryStore()
    from gateway.store.address import checked  # noqa: PLC0415
    from gateway.store.valkey import RedisStore  # noqa: PLC0415

    return RedisStore(checked(url))


async def setups(url: str) -> list[ServerSetup]:
    """How each server that holds keys is set up. Raises ValueError for an invalid URL, Overloaded where a server does
    not answer."""
    from gateway.store.checkup import asked  # noqa: PLC0415

    return await asked(url)
