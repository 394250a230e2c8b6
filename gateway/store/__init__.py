"""What do gateway processes count or remember together?"""

from gateway.store.address import checked
from gateway.store.contract import (
    NANO,
    OVER,
    VALUE_LIMIT,
    Admitted,
    Bound,
    CappedBy,
    KeyRecord,
    Kind,
    Level,
    Limits,
    Line,
    Money,
    Portion,
    State,
    Store,
    Taken,
)
from gateway.store.memory import MemoryStore
from gateway.store.valkey import RedisStore

__all__ = [
    "NANO",
    "OVER",
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
    "Money",
    "Portion",
    "RedisStore",
    "State",
    "Store",
    "Taken",
    "open_store",
]


def open_store(url: str | None) -> Store:
    """A MemoryStore for None, else the servers at `url` (gateway/store/address.py). Raises ValueError for another."""
    return MemoryStore() if url is None else RedisStore(checked(url))
