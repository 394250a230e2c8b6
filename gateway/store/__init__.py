"""What do gateway processes count or remember together?"""

from gateway.store.address import checked
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


def open_store(url: str | None) -> Store:
    """A MemoryStore for None, else the servers at `url` (gateway/store/address.py). Raises ValueError for another."""
    return MemoryStore() if url is None else RedisStore(checked(url))
