"""What do processes remember together, in a Redis or Valkey server?"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
from redis.exceptions import NoScriptError, ResponseError

from gateway.errors import Overloaded
from gateway.store.contract import (
    NOTHING,
    VALUE_LIMIT,
    Admitted,
    Claim,
    Decided,
    KeyRecord,
    Limits,
    Line,
    State,
    told,
)
from gateway.store.line import FAULTS, Word
from gateway.store.line import Line as Wire
from gateway.store.memory import LEASE_NAME, MemoryStore
from gateway.store.scripts import ADMIT, ADMIT_SHA, FIRST_KEY, SETTLE, SETTLE_SHA
from gateway.store.words import SETTLED, account, asked, booked, settled

PAUSE = 1.0  # seconds without touching a server that failed
KEYS = b"tg1:keys"  # a hash of all key records by id
SECRET = b"tg1:secret"

log = logging.getLogger(__name__)


class RedisStore:
    """A Store shared through a server. Names are `tg1:...`; those of one caller share the hash tag `{caller}`.

    When the server fails, the store is "down": admission falls to a MemoryStore with the same limits, the cache is
    skipped, keys raise Overloaded, and one task tries the server each PAUSE seconds; no request waits for it.
    """

    def __init__(self, url: str) -> None:
        self._line = Wire(url, self._fail)
        self._local = MemoryStore()
        self._state: State = "ok"
        self._secret = secrets.token_bytes(32)
        self._secret_shared = False
        self._process = secrets.token_hex(6)
        self._leases = itertools.count()
        self._owed: dict[str, tuple[str, tuple[Word, ...]]] = {}
        self._recovery: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        return self._state

    def _fail(self, error: Exception) -> None:
        if self._state == "ok":
            self._state = "down"
            log.warning("store down: %s; limits count in this process, the cache is skipped", error)
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        while self._state == "down":
            await asyncio.sleep(PAUSE)
            await self._try_again()

    async def _try_again(self) -> None:
        try:
            await self._share_secret()
        except FAULTS:
            return
        self._state = "ok"
        log.warning("store ok: limits and cache are shared again")
        for lease in list(self._owed):
            self._put(b"EVALSHA", SETTLE_SHA, lease)

    async def _ask(self, *command: Word) -> Any:
        """One command. Raises Overloaded when the server is down, fails, or refuses the command."""
        if self._state == "down":
            raise Overloaded("the store does not answer", code="store_unavailable", retry_after=PAUSE)
        try:
            return await self._line.put(*command)
        except NoScriptError:
            raise
        except FAULTS as error:
            if isinstance(error, ResponseError) and not str(error).startswith("WRONGTYPE"):
                self._fail(error)
            raise Overloaded("the store does not answer", code="store_unavailable", retry_after=PAUSE) from error

    async def admit(self, caller: str, limits: Limits, recall: bytes | None, claim: Claim = NOTHING) -> Admitted:
        if self._state == "down":
            return await self._local.admit(caller, limits, None, claim)
        lease = f"{self._process}{next(self._leases):x}"
        try:
            *numbers, entry = [*await self._decide(caller, asked(limits, claim, lease), recall), None][:7]
        except Overloaded:
            self._owed[lease] = (caller, SETTLED)  # the server may have granted it all the same
            return await self._local.admit(caller, limits, None, claim)
        except asyncio.CancelledError:
            self._pay(caller, lease, SETTLED)
            raise
        found = Decided(*numbers)
        return told(limits, found, entry, lease if entry is None and not found.verdict else None)

    async def _decide(self, caller: str, words: Sequence[Word], recall: bytes | None) -> list[Any]:
        names: list[str | bytes] = [*account(caller)]
        if recall is not None:
            names.append(_entry(caller, recall))
        try:
            found: list[Any] = await self._ask(b"EVALSHA", ADMIT_SHA, len(names), *names, *words)
        except NoScriptError:
            found = await self._ask(b"EVAL", ADMIT, len(names), *names, *words)
        return found

    async def settle(self, caller: str, lease: str, lines: Sequence[Line] = (), above: bool = False) -> None:
        if lease.startswith(LEASE_NAME):
            await self._local.settle(caller, lease, lines, above)
            if not lines:
                return
        paid = self._pay(caller, lease, settled(lines, above, unheld=lease.startswith(LEASE_NAME)))
        if paid is not None:
            await asyncio.wait([paid])

    def _pay(self, caller: str, lease: str, words: tuple[Word, ...]) -> asyncio.Future[Any] | None:
        """Puts the settlement in the line, behind the admission it belongs to; owed until the server confirms it."""
        self._owed[lease] = (caller, words)
        if self._state == "down":
            return None
        return self._put(b"EVALSHA", SETTLE_SHA, lease)

    def _put(self, command: bytes, script: bytes, lease: str) -> asyncio.Future[Any]:
        caller, words = self._owed[lease]
        paid = self._line.put(command, script, 4, *account(caller), lease, *words)
        paid.add_done_callback(lambda reply: self._confirm(lease, reply))
        return paid

    def _confirm(self, lease: str, reply: asyncio.Future[Any]) -> None:
        if reply.cancelled() or lease not in self._owed:
            return
        if isinstance(reply.exception(), NoScriptError):
            self._put(b"EVAL", SETTLE, lease)
        elif reply.exception() is None:
            del self._owed[lease]

    async def ledger(self, caller: str | None = None) -> list[Line]:
        callers = [caller] if caller is not None else await self._callers()
        found: list[Line] = []
        for name in callers:
            await self._ask(b"EVAL", SETTLE, 4, *account(name), b"", *SETTLED)
            found += booked(name, await self._ask(b"HGETALL", account(name)[3]))
        return found

    async def _callers(self) -> list[str]:
        """Everyone who has a ledger or leases."""
        cursor, found = b"0", set[bytes]()
        while True:
            cursor, names = await self._ask(b"SCAN", cursor, b"MATCH", account("*")[0], b"COUNT", 1000)
            found.update(names)
            if cursor == b"0":
                return sorted(name[name.index(b"{") + 1 : name.rindex(b"}")].decode() for name in found)

    async def recall(self, caller: str, key: bytes) -> bytes | None:
        try:
            found: bytes | None = await self._ask(b"GET", _entry(caller, key))
        except Overloaded:
            return None
        return found

    async def remember(self, caller: str, key: bytes, value: bytes, ttl: float) -> None:
        if len(value) > VALUE_LIMIT or self._state == "down":
            return
        try:
            await self._ask(b"SET", _entry(caller, key), value, b"PX", max(1, int(ttl * 1000)))
        except Overloaded:
            return

    async def key(self, key_id: str) -> KeyRecord | None:
        found: bytes | None = await self._ask(b"HGET", KEYS, key_id)
        return None if found is None else msgspec.json.decode(found, type=KeyRecord)

    async def put_key(self, record: KeyRecord, only_first: bool = False) -> bool:
        value = msgspec.json.encode(record)
        if only_first:
            return bool(await self._ask(b"EVAL", FIRST_KEY, 1, KEYS, record.id, value))
        await self._ask(b"HSET", KEYS, record.id, value)
        return True

    async def list_keys(self) -> list[KeyRecord]:
        values: list[bytes] = await self._ask(b"HVALS", KEYS)
        records = [msgspec.json.decode(value, type=KeyRecord) for value in values]
        return sorted(records, key=lambda record: record.created)

    async def revoke_key(self, key_id: str) -> bool:
        record = await self.key(key_id)
        if record is None:
            return False
        if record.revoked is None:
            await self.put_key(replace(record, revoked=time.time()))
        return True

    async def secret(self) -> bytes:
        if self._secret_shared or self._state == "down":
            return self._secret
        try:
            await self._share_secret()
        except FAULTS as error:
            self._fail(error)
        return self._secret

    async def _share_secret(self) -> None:
        """The first secret on the server wins; ours is put back where a server lost all it knew."""
        _, found = await asyncio.gather(
            self._line.put(b"SET", SECRET, self._secret, b"NX"), self._line.put(b"GET", SECRET)
        )
        self._secret = found
        self._secret_shared = True

    async def ping(self) -> bool:
        try:
            await self._ask(b"PING")
        except Overloaded:
            return False
        return True

    async def close(self) -> None:
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self._line.close()


def _entry(caller: str, key: bytes) -> bytes:
    return f"tg1:{{{caller}}}:entry:".encode() + key
