"""Did the caller ask the same again, soon after it had an answer?   A weak sign that the answer was no good.

The record of that answer then has the outcome 0, source `retry`. What is kept of an answer, in the store and for about
the policy's `record.retry_within`, is its id and when it ended, under a keyed hash of what was asked; no text.
"""

import asyncio
import time
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from gateway.errors import UNREADABLE, NotFound
from gateway.policy import Policy
from gateway.recorded import RETRY, Outcome, Record
from gateway.records import Records
from gateway.store import Store
from gateway.turns import session_keys
from gateway.types import ChatRequest

BUDGET = 0.5  # seconds that the store has to return what is kept
SOON = 0.2  # seconds after an answer in which nobody has read it: a program asks again without looking
MOST = 1000  # ended exchanges that are looked at at once; while so many are, others are left out
# Members that may differ where the same is asked again: who answers, how it is drawn and sent, and names of requests.
VARIED = frozenset({
    "model", "temperature", "top_p", "top_k", "min_p", "seed", "stream", "stream_options", "metadata", "request_id",
    "priority", "prompt_cache_key",
})  # fmt: skip


class Answered(msgspec.Struct, array_like=True, frozen=True):
    """An answer in the store. `at`: its end in Unix seconds; `id`: "" where the same had been asked before it."""

    id: str
    at: float


class Ended(NamedTuple):
    """An exchange that has ended. `asked` and `at`: its ends in Unix seconds; `whole`: all of an answer was sent."""

    request: ChatRequest
    policy: Policy
    asked: float
    at: float
    whole: bool


_ANSWERED = msgspec.msgpack.Decoder(Answered)


class Retries:
    """Looks, behind each answer, whether the same had been answered before.

    Whoever asks a third time does so on principle, like a program that watches, or draws several answers: of those that
    follow each other the first one alone has an outcome. What the cache gives is no answer here, and asking for it is
    no retry: what may be remembered is asked again as a matter of course.
    """

    def __init__(self, store: Store, records: Records) -> None:
        self._store, self._records = store, records
        self._tasks: set[asyncio.Task[None]] = set()

    def saw(self, record: Record, request: ChatRequest, policy: Policy, within: float) -> None:
        """An exchange has ended and, if it is to be, is recorded; `within`: the policy's `record.retry_within`."""
        if record.decision is None or record.cache == "coalesced" or request.dialect.work != "answer":
            return
        if len(self._tasks) >= MOST:
            return
        now = time.time()
        ended = Ended(request, policy, now - record.seconds, now, record.status == 200 and record.error is None)
        task = asyncio.create_task(self._look(ended, within))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _look(self, ended: Ended, within: float) -> None:
        caller, name = ended.request.caller, name_of(ended.request, ended.policy)
        try:
            async with asyncio.timeout(BUDGET):
                data = await self._store.recall(caller.id, name)
            known = _ANSWERED.decode(data) if data else None
        except (TimeoutError, *UNREADABLE):
            return
        if known and ended.asked - known.at > within:
            known = None
        if known or ended.whole:
            value = msgspec.msgpack.encode(Answered("" if known else ended.request.id, ended.at))
            longest = max(tier.timeouts.total for tier in ended.policy.tiers.values())  # of the answer that may follow
            await self._store.remember(caller.id, name, value, within + longest)
        if known and known.id and ended.asked - known.at >= SOON and not of_a_library(ended.request):
            await self._judge(known.id, ended)

    async def _judge(self, answer: str, ended: Ended) -> None:
        try:
            await self._records.judge(ended.request.caller, answer, Outcome(0.0, RETRY), ended.policy)
        except NotFound:  # it was not recorded, or is another process's that shares no records
            return


def name_of(request: ChatRequest, policy: Policy) -> bytes:
    """What was asked, among its caller's: the conversation and who is said to have it, and all that shapes an answer
    but VARIED."""
    members = {name: value for name, value in request.body.members.items() if name not in VARIED}
    person = str((request.fields.metadata or {}).get("user_id", ""))
    told = msgspec.msgpack.encode((request.path, session_keys(request, policy), person))
    found = blake2b(told, key=request.caller.salt.encode(), digest_size=32)
    found.update(msgspec.json.encode(members, order="sorted"))
    return b"retry:" + found.digest()


def of_a_library(request: ChatRequest) -> bool:
    """Whether the caller's library asks once more by itself, after what it took for a failure."""
    return request.headers.get("x-stainless-retry-count", "0") != "0"
