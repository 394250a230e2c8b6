"""The store of one process alone, in its memory."""

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice

from gateway.done import DONE
from gateway.store.account import FITS, Account
from gateway.store.contract import ALL, HELD, NOTHING, OVER, VALUE_LIMIT, Kept, KeyRecord, State, Taken
from gateway.store.limits import Admitted, Limits, Line, Most, known

CACHE_BYTES = 64 << 20
ENTRY = 256  # bytes that an entry takes beside its value (tracemalloc, 2026-11-23)
LEASE_NAME = "m"  # every lease of this store begins with it


class MemoryStore:
    """A Store of this process, by its clock, which never goes back. Its leases die with it, so they need no deadline.

    Above CACHE_BYTES the least recently used entries go.
    """

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._cache: OrderedDict[tuple[str, bytes], tuple[float, bytes]] = OrderedDict()
        self._cache_bytes = 0
        self._locks: dict[tuple[str, bytes], tuple[float, bytes]] = {}
        self._keys: dict[str, KeyRecord] = {}
        self._kept: dict[str, bytes] = {}
        self.known_secret = secrets.token_bytes(32)
        self._leases = 0

    @property
    def state(self) -> State:
        return "memory"

    @property
    def processes(self) -> int:
        return 1

    async def admit(self, caller: str, limits: Limits, recall: bytes | None, most: Most = NOTHING) -> Admitted:
        now = _now()
        account = self._accounts.get(caller) or self._new_account(caller, now)
        spent = account.begin(limits, now)
        if spent + account.interval > account.most:
            return account.refused(limits, spent, 1)
        entry = None if recall is None else self._recall(caller, recall)
        if entry is None and len(account.leases) >= limits.concurrency:
            return account.refused(limits, spent, 2)
        bound = known(most) if entry is None and account.counts else None
        verdict, wait, cap = account.decide(limits, bound, now) if bound else FITS
        if verdict:
            return account.refused(limits, spent, verdict, wait)
        spent += account.interval
        account.idle_at = now + spent
        lease = lock = None
        if entry is None:
            self._leases += 1
            lease = f"{LEASE_NAME}{self._leases}"
            account.leases[lease] = account.hold(limits, bound, cap) if bound else most
            lock = None if recall is None else self._claim((caller, recall), lease.encode(), HELD)
        used = account.used if account.counts else 0
        return Admitted(limits, lease, 0, spent, 0, used, account.spent + account.money, cap, entry, lock)

    async def look(self, caller: str, limits: Limits) -> Admitted:
        now = _now()
        account = self._accounts.get(caller) or self._new_account(caller, now)
        return account.refused(limits, account.begin(limits, now), 0)

    def _new_account(self, caller: str, now: int) -> Account:
        """A new account. Each time the two accounts that were checked longest ago are dropped if they are idle, so that
        idle ones do not pile up."""
        for name in tuple(islice(self._accounts, 2)):
            if self._accounts[name].is_idle(now):
                del self._accounts[name]
            else:
                self._accounts.move_to_end(name)
        account = self._accounts[caller] = Account()
        return account

    def settle(
        self, caller: str, lease: str, lines: Sequence[Line] = (), above: bool = False, kept: Kept | None = None
    ) -> Awaitable[None]:
        account = self._accounts.get(caller)
        if account is not None:
            if account.counts:
                account.advance(_now())
            account.settle(lease, lines, above)
        return self.remember(caller, kept.key, kept.value, kept.ttl) if kept else DONE

    async def ledger(self, caller: str | None = None) -> list[Line]:
        names = [name for name in self._accounts if caller == name or (caller is None and name != ALL)]
        return [line for name in sorted(names) for line in self._accounts[name].lines(name)]

    async def recall(self, caller: str, key: bytes) -> bytes | None:
        return self._recall(caller, key)

    def _recall(self, caller: str, key: bytes) -> bytes | None:
        found = self._cache.get((caller, key))
        if found is None:
            return None
        if found[0] <= time.monotonic():
            self._forget((caller, key))
            return None
        self._cache.move_to_end((caller, key))
        return found[1]

    def _forget(self, name: tuple[str, bytes]) -> None:
        found = self._cache.pop(name, None)
        if found is not None:
            self._cache_bytes -= len(found[1]) + ENTRY

    def remember(self, caller: str, key: bytes, value: bytes, ttl: float) -> Awaitable[None]:
        if len(value) > VALUE_LIMIT:
            return DONE
        self._locks.pop((caller, key), None)
        self._forget((caller, key))
        self._cache[caller, key] = (time.monotonic() + ttl, value)
        self._cache_bytes += len(value) + ENTRY
        while self._cache_bytes > CACHE_BYTES:
            self._forget(next(iter(self._cache)))
        return DONE

    async def note(self, lines: Sequence[bytes], most: int) -> bool:
        return True

    async def noted(self) -> AsyncIterator[list[bytes]]:
        for lines in list[list[bytes]]():
            yield lines

    async def take_lock(self, caller: str, key: bytes, token: bytes, seconds: float) -> Taken:
        entry = self._recall(caller, key)
        return Taken(None, entry) if entry is not None else Taken(self._claim((caller, key), token, seconds))

    def _claim(self, name: tuple[str, bytes], token: bytes, seconds: float) -> bytes:
        """Takes or renews the lock if it is free; returns who has it."""
        now = time.monotonic()
        oldest = next(iter(self._locks), name)
        for one in (oldest, name):
            if one in self._locks and self._locks[one][0] <= now:
                del self._locks[one]
        holder = self._locks.get(name, (now, token))[1]
        if holder == token:
            self._locks[name] = (now + seconds, token)
        return holder

    def free_lock(self, caller: str, key: bytes, token: bytes, over: float = 0.0) -> Awaitable[None]:
        if self._locks.get((caller, key), (0.0, b""))[1] == token:
            del self._locks[caller, key]
            if over:
                self._locks[caller, key] = (time.monotonic() + over, OVER)
        return DONE

    async def purge(self, caller: str | None = None) -> AsyncIterator[int]:
        names = [name for name in self._cache if caller in (None, name[0])]
        for name in names:
            self._forget(name)
        yield len(names)

    async def key(self, key_id: str) -> KeyRecord | None:
        return self._keys.get(key_id)

    async def put_key(self, record: KeyRecord, only_first: bool = False) -> bool:
        if only_first and self._keys:
            return False
        self._keys[record.id] = record
        return True

    async def list_keys(self) -> list[KeyRecord]:
        return sorted(self._keys.values(), key=lambda record: record.created)

    async def change_key(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord | None:
        record = self._keys.get(key_id)
        if record is not None:
            record = self._keys[key_id] = change(record)
        return record

    async def secret(self) -> bytes:
        return self.known_secret

    async def kept(self, name: str) -> bytes | None:
        return self._kept.get(name)

    async def keep(self, name: str, value: bytes) -> None:
        self._kept[name] = value

    async def ping(self) -> bool:
        return True

    async def close(self) -> None:
        return None


_STARTED = time.time() - time.monotonic()


def _now() -> int:
    """Microseconds since 1970 as of the process's start; steady from there."""
    return int((_STARTED + time.monotonic()) * 1e6)
