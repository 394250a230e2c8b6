"""What do gateway processes count or remember together?"""

from gateway.store.address import checked
from gateway.store.contract import (
    NANO,
    OVER,
    VALUE_LIMIT,
    Admitted,
    CappedBy,
    Claim,
    Claimed,
    KeyRecord,
    Kind,
    Level,
    Limits,
    Line,
    Money,
    Portion,
    State,
    Store,
)
from gateway.store.memory import MemoryStore
from gateway.store.valkey import RedisStore

__all__ = [
    "NANO",
    "OVER",
    "VALUE_LIMIT",
    "Admitted",
    "CappedBy",
    "Claim",
    "Claimed",
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
    "open_store",
]


def open_store(url: str | None) -> Store:
    """A MemoryStore for None, else the servers at `url` (gateway/store/address.py). Raises ValueError for another."""
    return MemoryStore() if url is None else RedisStore(checked(url))
