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


class Said(msgspec.Struct, array_like=True, frozen=True):
    """A verdict as it is remembered."""

    label: Label
    p_complex: float | None
    cut: bool
    strategy: str
    prompt: str


_SAID = msgspec.msgpack.Decoder(Said)


class Verdicts:
    """Verdicts by caller and question. The question's key holds all that the small model sees, the model included,
    and how its answer is read.

    `ttl` None: nothing is remembered or shared.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking: dict[bytes, Asking] = {}

    async def recall(self, caller: Caller, question: bytes, ttl: float | None) -> Verdict | None:
        """The remembered verdict, if any."""
        key = _key(caller, question)
        found = await self._store.recall(caller.id, key) if ttl is not None else None
        data = unsealed(found, key, caller) if found else None
        try:
            said = _SAID.decode(data) if data else None
        except msgspec.DecodeError:
            return None
        if said is None:
            return None
        return Verdict(said.label, said.p_complex, "ok", "cache", 0.0, said.cut, said.strategy, said.prompt)

    async def share(self, caller: Caller, question: bytes, ttl: float | None, judge: Judge) -> Verdict:
        """`judge`'s verdict, or that of the same question under way; remembered unless it is a failure."""
        if ttl is None:
            return await judge()
        key, started = _key(caller, question), time.perf_counter()
        asking = self._asking.get(key)
        if asking:
            said = await asking.wait()
            return replace(said, source="shared", seconds=time.perf_counter() - started)
        asking = self._asking[key] = Asking(judge, partial(self._keep, caller, key, ttl), partial(self._leave, key))
        return await asking.wait()

    async def _keep(self, caller: Caller, key: bytes, ttl: float, verdict: Verdict) -> None:
        if verdict.label:
            said = Said(verdict.label, verdict.p_complex, verdict.cut, verdict.strategy, verdict.prompt)
            data = msgspec.msgpack.encode(said)
            await self._store.remember(caller.id, key, sealed(data, key, caller), ttl)

    def _leave(self, key: bytes, ended: "Asking") -> None:
        if self._asking.get(key) is ended:
            del self._asking[key]


class Asking:
    """One question for several requests: it goes on until it is answered or nobody waits for it any more."""

    def __init__(
        self, judge: Judge, keep: Callable[[Verdict], Awaitable[None]], leave: Callable[["Asking"], None]
    ) -> None:
        self._judge, self._keep, self._leave = judge, keep, leave
        self._waiting = 0
        self._said: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    async def wait(self) -> Verdict:
        """The verdict. Who waits for it last and leaves stops the question."""
        self._waiting += 1
        try:
            return await asyncio.shield(self._said)
        finally:
            self._waiting -= 1
            if not self._waiting and not self._said.done():
                self._leave(self)
                self._task.cancel()
                await asyncio.wait([self._task])

    async def _run(self) -> None:
        verdict = await self._judge()
        self._said.set_result(verdict)
        await self._keep(verdict)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._leave(self)
        error = None if task.cancelled() else task.exception()
        if self._said.done():
            return
        if error:
            self._said.set_exception(error)
        else:
            self._said.cancel()


def _key(caller: Caller, question: bytes) -> bytes:
    return digest(b"verdict" + question, caller)
