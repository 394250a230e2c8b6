"""What do gateway processes count or remember together?"""

from gateway.store.contract import (
    NANO,
    VALUE_LIMIT,
    Admitted,
    CappedBy,
    Claim,
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
    "VALUE_LIMIT",
    "Admitted",
    "CappedBy",
    "Claim",
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

SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}


def open_store(url: str | None) -> Store:
    """A MemoryStore for None, else the Redis or Valkey server at `url`. Raises ValueError for another scheme."""
    if url is None:
        return MemoryStore()
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ValueError(f"a store's address begins with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    return RedisStore(f"{SCHEMES[scheme]}://{rest}")
