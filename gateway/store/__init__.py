"""What do gateway processes count or remember together?"""

from gateway.store.contract import OVER, VALUE_LIMIT, Admitted, Claimed, KeyRecord, Limits, State, Store
from gateway.store.memory import MemoryStore
from gateway.store.valkey import RedisStore

__all__ = [
    "OVER",
    "VALUE_LIMIT",
    "Admitted",
    "Claimed",
    "KeyRecord",
    "Limits",
    "MemoryStore",
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
