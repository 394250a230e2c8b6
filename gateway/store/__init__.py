"""What do gateway processes count or remember together?"""

from gateway.store.address import checked
from gateway.store.checkup import ServerSetup, setups
from gateway.store.contract import ALL, HELD, OVER, SHADOW, VALUE_LIMIT, KeyRecord, State, Store, Taken, Turn
from gateway.store.limits import (
    NANO,
    UNLIMITED,
    Admitted,
    Bound,
    CappedBy,
    Kind,
    Level,
    Limits,
    Line,
    Mode,
    Money,
    Outage,
    Portion,
)
from gateway.store.memory import MemoryStore
from gateway.store.valkey import RedisStore

__all__ = [
    "ALL",
    "HELD",
    "NANO",
    "OVER",
    "SHADOW",
    "UNLIMITED",
    "VALUE_LIMIT",
    "Admitted",
    "Bound",
    "CappedBy",
    "KeyRecord",
    "Kind",
    "Level",
    "Limits",
    "Line",
    "MemoryStore",
    "Mode",
    "Money",
    "Outage",
    "Portion",
    "RedisStore",
    "ServerSetup",
    "State",
    "Store",
    "Taken",
    "Turn",
    "open_store",
    "setups",
]


def open_store(url: str | None) -> Store:
    """A MemoryStore for None, else the servers at `url` (gateway/store/address.py). Raises ValueError for another."""
    return MemoryStore() if url is None else RedisStore(checked(url))
