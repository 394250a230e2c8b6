"""Has the small model judged this before, or is it judging it right now?"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from msgspec.structs import replace

from gateway.cache.entry import digest, sealed, unsealed
from gateway.store import Store
from gateway.types import Caller, Label, Verdict

Judge = Callable[[], Awaitable[Verdict]]


class StoredVerdict(msgspec.Struct, array_like=True, frozen=True):
    """A verdict as the store keeps it."""

    label: Label
    p_complex: float | None
    cut: bool
    strategy: str
    prompt: str


_STORED = msgspec.msgpack.Decoder(StoredVerdict)


class Verdicts:
    """Verdicts by caller and question, in the form of `verdict_key`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._calls: dict[bytes, SharedCall] = {}

    async def recall(self, caller: Caller, key: bytes) -> Verdict | None:
        """The remembered verdict, if any."""
        found = await self._store.recall(caller.id, key)
        data = unsealed(found, key, caller) if found else None
        try:
            said = _STORED.decode(data) if data else None
        except msgspec.DecodeError:
            return None
        if said is None:
            return None
        return Verdict(said.label, said.p_complex, "ok", "cache", 0.0, said.cut, said.strategy, said.prompt)

    async def share(self, caller: Caller, key: bytes, ttl: float, judge: Judge) -> Verdict:
        """The verdict that `judge` asks for; where the same question is being asked already, its verdict, marked
        `shared`. Remembered for `ttl` seconds unless it is a failure."""
        started, call = time.perf_counter(), self._calls.get(key)
        if call:
            said = await call.wait()
            return replace(said, source="shared", seconds=time.perf_counter() - started)
        call = self._calls[key] = SharedCall(judge, partial(self._keep, caller, key, ttl), partial(self._leave, key))
        return await call.wait()

    async def _keep(self, caller: Caller, key: bytes, ttl: float, verdict: Verdict) -> None:
        if verdict.label:
            said = StoredVerdict(verdict.label, verdict.p_complex, verdict.cut, verdict.strategy, verdict.prompt)
            data = msgspec.msgpack.encode(said)
            await self._store.remember(caller.id, key, sealed(data, key, caller), ttl)

    def _leave(self, key: bytes, ended: "SharedCall") -> None:
        if self._calls.get(key) is ended:
            del self._calls[key]


class SharedCall:
    """One call to the classifier that several requests wait for: cancelled when the last of them gives up."""

    def __init__(
        self, judge: Judge, keep: Callable[[Verdict], Awaitable[None]], leave: Callable[["SharedCall"], None]
    ) -> None:
        self._judge, self._keep, self._leave = judge, keep, leave
        self._waiting: set[asyncio.Future[Verdict]] = set()
        self._said: Verdict | None = None
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    async def wait(self) -> Verdict:
        """The verdict. When the last one who waits is cancelled, the call is, too."""
        if self._said:
            return self._said
        one: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting.add(one)
        try:
            return await one
        except asyncio.CancelledError:
            self._waiting.discard(one)
            if self._task and not self._waiting and not self._said:
                self._leave(self)
                self._task.cancel()
                await asyncio.wait([self._task])
            raise

    async def _run(self) -> None:
        self._said = verdict = await self._judge()
        for one in self._waiting:
            if not one.done():
                one.set_result(verdict)
        await self._keep(verdict)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._leave(self)
        self._task = None  # it remembers where it was cancelled, and with that this object: a cycle
        error = None if task.cancelled() else task.exception()
        for one in self._waiting:
            if not one.done():
                one.set_exception(error) if error else one.cancel()


def verdict_key(caller: Caller, question: bytes) -> bytes:
    """The key under which the verdict on a caller's question is remembered. `question` is Question.key: it covers all
    that the classifier sees, which model it is, and how its answer is read."""
    return digest(caller, b"verdict", question)
