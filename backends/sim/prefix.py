"""Which blocks of a prompt are in the prefix cache, and when are they ready?"""

from collections import OrderedDict
from collections.abc import Sequence


def chain(tokens: Sequence[str], block_size: int, salt: str) -> list[int]:
    """Hashes of the full blocks of `tokens`, each over its own tokens and all before it; seeded with `salt`."""
    hashes = []
    last = hash(("salt", salt))
    for start in range(0, len(tokens) - block_size + 1, block_size):
        last = hash((last, tuple(tokens[start : start + block_size])))
        hashes.append(last)
    return hashes


class PrefixCache:
    """An LRU cache of `capacity` blocks by chained hash, with the time (loop seconds) when each is computed."""

    def __init__(self, capacity: int) -> None:
        self._ready: OrderedDict[int, float] = OrderedDict()
        self.capacity = capacity

    def __len__(self) -> int:
        return len(self._ready)

    def lookup(self, blocks: Sequence[int]) -> tuple[int, float]:
        """The number of leading blocks in the cache, and when all of them are ready (0.0 if none)."""
        ready = 0.0
        for held, block in enumerate(blocks):
            if block not in self._ready:
                return held, ready
            self._ready.move_to_end(block)
            ready = max(ready, self._ready[block])
        return len(blocks), ready

    def add(self, block: int, ready: float) -> None:
        """Insert a block; other sequences can use it from `ready` on."""
        self._ready[block] = ready
        self._ready.move_to_end(block)
        if len(self._ready) > self.capacity:
            self._ready.popitem(last=False)

    def drop_unready(self, blocks: Sequence[int], now: float) -> None:
        """Remove those of `blocks` that are not ready at `now`."""
        for block in blocks:
            if self._ready.get(block, 0.0) > now:
                del self._ready[block]
