"""The store that processes share, in a Redis or Valkey server."""

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.done import DONE
from gateway.errors import Overloaded
from gateway.store.address import open_door
from gateway.store.beat import Beat, answered
from gateway.store.call import Call
from gateway.store.contract import ALL, NOTHING, OVER, VALUE_LIMIT, Kept, KeyRecord, State, Taken
from gateway.store.limits import Admitted, Limits, Line, Most, known
from gateway.store.memory import LEASE_NAME, MemoryStore
from gateway.store.opening import Word
from gateway.store.outage import alone, unavailable
from gateway.store.owed import Owed
from gateway.store.pipeline import FAULTS
from gateway.store.refusals import NoScriptError, ResponseError
from gateway.store.repair import asked
from gateway.store.scripts import ADMIT, CHANGE_KEY, FIRST_KEY, FREE_LOCK, LOCK, REMEMBER, SETTLE, TAKE_LOCK, Script
from gateway.store.words import ACCOUNTS, Names, booked, key_names, milliseconds, run, settled, wanted, whole

LOOKED_AT = 500  # names in one step of a scan
KEYS = b"tg1:keys"  # a hash of all key records by id
SECRET = b"tg1:secret"
RECORDS = b"tg1:records"  # a stream
NO_NAMES = Names()
EMPTIED = "store: it was emptied; keys, budgets and usage that were in it are gone"
log = logging.getLogger("gateway")


class RedisStore:
    """A Store shared through a server. Names are `tg1:...`, those of one caller share the hash tag `{caller}`;
    a kind of value that takes another form takes another number.

    When a server fails, it is "down" (gateway/store/circuit.py): its callers are admitted by a MemoryStore, with what
    their limits come to without the others (gateway/store/outage.py), their cache is skipped, keys on it raise
    Overloaded. The store is "down" while a server is.
    """

    def __init__(self, url: str) -> None:
        self._door = open_door(url, self._changed)
        self._local = MemoryStore()
        self._secret = secrets.token_bytes(32)
        self.known_secret: bytes | None = None
        self._process = secrets.token_hex(6)
        self._leases = itertools.count()
        self._owed = Owed(self._door, self._process)
        self._beat = Beat(self._door, self._process, self._agree)

    @property
    def state(self) -> State:
        return "down" if self._door.down else "ok"

    @property
    def processes(self) -> int:
        return self._beat.processes

    def _changed(self) -> None:
        """A server went down or answers again: then it may have lost the secret, and lacks settlements of the
        outage."""
        self._beat.renew()
        self._agree()
        self._owed.pay_all()

    def _agree(self) -> None:
        """Use the secret on the server; where there is none, as the server may have been emptied, put ours there. That
        it was emptied is told by the one that finds none, and by all whose secret another one was faster to replace."""
        self._door.put(b"SET", SECRET, self._secret, b"NX").add_done_callback(self._put)
        self._door.put(b"GET", SECRET).add_done_callback(self._learn)

    def _put(self, reply: asyncio.Future[Any]) -> None:
        if answered(reply) and reply.result() and self.known_secret:
            log.warning(EMPTIED)

    def _learn(self, reply: asyncio.Future[Any]) -> None:
        if answered(reply) and reply.result():  # a server that refuses to write has none
            if self.known_secret not in {None, reply.result()}:
                log.warning(EMPTIED)
            self._secret = self.known_secret = reply.result()

    async def _ask(self, *command: Word) -> Any:
        """One command. Raises Overloaded when the server is down, fails, or refuses the command."""
        return await _heard(asked(self._door, *command))

    async def admit(self, caller: str, limits: Limits, recall: bytes | None, most: Most = NOTHING) -> Admitted:
        self._beat.begin()
        own = key_names(caller)
        if self._door.is_down(own.names.all[0]):
            return await self._local.admit(caller, alone(limits, self.processes), None, most)
        lease = f"{self._process}{next(self._leases)}"
        word = wanted(limits, known(most), lease)
        more = (word,) if recall is None else (own.entry + recall, word)
        try:
            found = await self._run(ADMIT, own.names, more)
        except Overloaded as refusal:
            if not isinstance(refusal.__cause__, ResponseError):
                self._owed.owe(lease, own.names, settled(lease))  # the server may have granted it all the same
            return await self._local.admit(caller, alone(limits, self.processes), None, most)
        except asyncio.CancelledError:
            self._owed.pay(lease, own.names, settled(lease))
            if recall is not None:
                self.free_lock(caller, recall, lease.encode())
            raise
        told = Admitted(limits, lease, *found)
        if told.verdict or told.entry is not None:
            return Admitted(limits, None, *found)
        self._beat.hold(lease, caller, limits.lease)
        return told

    async def look(self, caller: str, limits: Limits) -> Admitted:
        word = wanted(replace(limits, concurrency=0), NOTHING, "")  # refused for want of a slot
        return Admitted(limits, None, *await self._run(ADMIT, key_names(caller).names, (word,)))

    async def _run(self, script: Script, names: Names, more: tuple[bytes, ...]) -> Any:
        """What a script replies. Raises Overloaded as `_ask` does."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._door.push((run(script, names, more), reply, 0), (names.all or more)[0])
        try:
            return await reply
        except FAULTS as error:
            if not isinstance(error, NoScriptError) and not str(error).startswith("WRONGTYPE"):
                raise unavailable() from error
        return await self._ask(*whole(script, names, more))

    def settle(
        self, caller: str, lease: str, lines: Sequence[Line] = (), above: bool = False, kept: Kept | None = None
    ) -> Awaitable[None]:
        if not lease.startswith(LEASE_NAME):
            self._beat.drop(lease)
            own, word = key_names(caller), settled(lease, lines, above)
            if kept is None or len(kept.value) > VALUE_LIMIT:
                return self._owed.pay(lease, own.names, word)
            entry = (own.entry + kept.key, kept.value, milliseconds(kept.ttl))
            return self._owed.pay_and_keep(lease, own.names, word, entry)
        if kept is not None:
            self.remember(caller, kept.key, kept.value, kept.ttl)
        done = self._local.settle(caller, lease, lines, above)
        return self._owed.push(caller, lines) if lines else done

    async def ledger(self, caller: str | None = None) -> list[Line]:
        callers = [caller] if caller is not None else sorted(await self._callers() - {ALL})
        found: list[Line] = []
        for name in callers:
            names = key_names(name).names
            await self._ask(*whole(SETTLE, names, (settled(""),)))
            found += booked(name, await self._ask(b"HGETALL", names.all[2]))
        return found

    async def _callers(self) -> set[str]:
        """Everyone who has a ledger or leases."""
        found: set[bytes] = set()
        async for names in self._scan(ACCOUNTS):
            found.update(names)
        return {name[name.index(b"{") + 1 : name.rindex(b"}")].decode() for name in found}

    async def _scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """The names that match, of all servers, in steps."""
        for server in await self._door.servers():
            cursor = b""
            while cursor != b"0":
                step = server.put(b"SCAN", cursor or b"0", b"MATCH", pattern, b"COUNT", LOOKED_AT)
                cursor, names = await _heard(step)
                yield names

    async def recall(self, caller: str, key: bytes) -> bytes | None:
        try:
            found: bytes | None = await self._ask(b"GET", key_names(caller).entry + key)
        except Overloaded:
            return None
        return None if found is None or found.startswith(LOCK) else found

    def remember(self, caller: str, key: bytes, value: bytes, ttl: float) -> Awaitable[None]:
        if len(value) > VALUE_LIMIT:
            return DONE
        return self._call(REMEMBER, (key_names(caller).entry + key, value, milliseconds(ttl)))

    async def note(self, lines: Sequence[bytes], most: int) -> bool:
        if self._door.is_down(RECORDS):
            return False
        adding = (b"XADD", RECORDS, b"MAXLEN", b"~", most, b"*", b"line")
        with contextlib.suppress(Overloaded):
            await asyncio.gather(*(self._ask(*adding, line) for line in lines))
        return True

    async def noted(self) -> AsyncIterator[list[bytes]]:
        after = b"-"
        while found := await self._ask(b"XRANGE", RECORDS, after, b"+", b"COUNT", LOOKED_AT):
            yield [line for _, (_, line) in found]
            after = b"(" + found[-1][0]

    async def take_lock(self, caller: str, key: bytes, token: bytes, seconds: float) -> Taken:
        own = key_names(caller)
        more = (own.entry + key, token, milliseconds(seconds))
        try:
            holder, *entry = await self._run(TAKE_LOCK, NO_NAMES, more)
        except Overloaded:
            return Taken(None)
        return Taken(None, entry[0]) if entry else Taken(holder)

    def free_lock(self, caller: str, key: bytes, token: bytes, over: float = 0.0) -> Awaitable[None]:
        return self._call(FREE_LOCK, (key_names(caller).entry + key, token, b"%d" % int(over * 1000), OVER))

    def _call(self, script: Script, more: tuple[bytes, ...]) -> Call:
        call = Call(self._door, script, NO_NAMES, more)
        call.send()
        return call

    async def purge(self, caller: str | None = None) -> AsyncIterator[int]:
        whose = "*" if caller is None else re.sub(r"([\[\]*?\\])", r"\\\1", caller)
        async for names in self._scan(key_names(whose).entry + b"*"):
            yield sum(await asyncio.gather(*(self._ask(b"UNLINK", name) for name in names)))

    async def key(self, key_id: str) -> KeyRecord | None:
        self._beat.begin()  # which learns the secret of a server that was emptied: keys made since are unknown without
        found: bytes | None = await self._ask(b"HGET", KEYS, key_id)
        return None if found is None else KeyRecord.read(key_id, found)

    async def put_key(self, record: KeyRecord, only_first: bool = False) -> bool:
        value = msgspec.json.encode(record)
        if only_first:
            return bool(await self._ask(b"EVAL", FIRST_KEY, 1, KEYS, record.id, value))
        await self._ask(b"HSET", KEYS, record.id, value)
        return True

    async def list_keys(self) -> list[KeyRecord]:
        flat: list[bytes] = await self._ask(b"HGETALL", KEYS)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        records = [KeyRecord.read(key_id.decode("utf-8", "replace"), value) for key_id, value in pairs]
        return sorted(records, key=lambda record: record.created)

    async def change_key(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord | None:
        while (value := await self._ask(b"HGET", KEYS, key_id)) is not None:
            changed = change(record := KeyRecord.read(key_id, value))
            if changed == record:
                return record
            if await self._ask(b"EVAL", CHANGE_KEY, 1, KEYS, key_id, value, msgspec.json.encode(changed)):
                return changed
        return None

    async def secret(self) -> bytes:
        if self.known_secret is None:
            with contextlib.suppress(*FAULTS):
                await self._share_secret()
        return self._secret

    async def _share_secret(self) -> None:
        """The first secret on the server wins."""
        if await asked(self._door, b"GET", SECRET) is None:
            self._door.put(b"SET", SECRET, self._secret, b"NX").add_done_callback(answered)
        reply = self._door.put(b"GET", SECRET)
        await reply
        self._learn(reply)

    async def kept(self, name: str) -> bytes | None:
        found: bytes | None = await self._ask(b"GET", _kept(name))
        return found

    async def keep(self, name: str, value: bytes) -> None:
        await self._ask(b"SET", _kept(name), value)

    async def ping(self) -> bool:
        try:
            await self._ask(b"PING")
        except Overloaded:
            return False
        return True

    async def close(self) -> None:
        await self._owed.close()
        await self._beat.close()
        await self._door.close()


async def _heard(reply: Awaitable[Any]) -> Any:
    """Raises Overloaded when the server is down, fails, or refuses the command."""
    try:
        return await reply
    except FAULTS as error:
        raise unavailable() from error


def _kept(name: str) -> str:
    return f"tg1:kept:{name}"
