"""When is a sequence scheduled, and when are its first and its next tokens ready?   The timing model."""

import asyncio
import heapq
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from backends.sim.prefix import PrefixCache, chain
from backends.sim.settings import Settings

CHUNK = 8192  # tokens of a prompt that one step of vLLM reads


@dataclass(slots=True)
class Sequence:
    """One generation in the engine. Times are seconds of the event loop's clock, 0.0 until they happened."""

    tokens: list[str]  # the prompt
    salt: str = ""
    priority: int = 0
    cached: int = 0  # prompt tokens found in the prefix cache
    produced: list[str] = field(default_factory=list)  # generated tokens
    arrived: float = 0.0
    started: float = 0.0  # when it got a slot
    first_token: float = 0.0
    due: float = 0.0  # when the last token was ready
    blocks: int = 0  # of the KV cache, held for the prompt


class Engine:
    """A continuous-batching scheduler in wall time: bounded running set, waiting queue, prefix cache.

    TPOT rises linearly with the number of running sequences, to `time_factor_under_load` times at `max_num_seqs`; TTFT
    rises by the square root of that factor. Against the published Flash table (settings.py) this gives, at concurrency
    16, 64, 256, TPOT of 8, 27, 105 ms (published 8.4, 38, 105) and 2.1, 4.0, 7.8 times the TTFT of concurrency 1
    (published 2.1, 5.3, 6.3).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cache = PrefixCache(settings.kv_cache_size)
        self.running = self.blocks_used = 0
        self.made = 0  # tokens, of all sequences
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return sum(1 for _, _, turn in self._waiting if not turn.done())

    def load_factor(self) -> float:
        """The time of a decode step, relative to that of a sequence alone."""
        most = self.settings.max_num_seqs
        if most <= 1:
            return 1.0
        share = (self.running - 1) / (most - 1)
        return 1.0 + max(0.0, share) * (self.settings.time_factor_under_load - 1.0)

    @asynccontextmanager
    async def slot(self, sequence: Sequence) -> AsyncIterator[None]:
        """Hold one of `max_num_seqs` slots; leaving, also by cancellation, frees it at once."""
        loop = asyncio.get_running_loop()
        sequence.arrived = loop.time()
        await self._turn(sequence.priority)
        sequence.started = loop.time()
        try:
            yield
        finally:
            self.blocks_used -= sequence.blocks
            self._give_back()

    async def _turn(self, priority: int) -> None:
        """Wait for a slot; `running` counts it from the moment it is granted."""
        if self.running < self.settings.max_num_seqs:
            self.running += 1
            return
        rank = priority if self.settings.scheduling_policy == "priority" else 0
        self._arrivals += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, self._arrivals, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._give_back()
            raise

    def _give_back(self) -> None:
        """Pass the slot on to the next in the queue, else free it."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    async def prefill(self, sequence: Sequence) -> None:
        """Wait for the time of prefill, in which blocks are taken chunk by chunk. Cached blocks take none, except the
        rest of another sequence's prefill that is still computing them."""
        loop = asyncio.get_running_loop()
        settings = self.settings
        blocks = chain(sequence.tokens, settings.block_size, sequence.salt)
        # The last token is always computed, as in vLLM: a prompt is never cached whole.
        usable = (len(sequence.tokens) - 1) // settings.block_size
        held, ready = self.cache.lookup(blocks[:usable])
        sequence.cached = held * settings.block_size
        slow = math.sqrt(self.load_factor())
        per_token = settings.seconds(settings.prefill_time_per_token) * slow
        start = max(loop.time(), ready)
        fixed = settings.time_to_first_token or settings.prefill_overhead
        if settings.time_to_first_token:
            per_token = 0.0
        for n, block in enumerate(blocks[held:], start=1):
            self.cache.add(block, start + n * settings.block_size * per_token)
        done = start + (len(sequence.tokens) - sequence.cached) * per_token + settings.seconds(fixed) * slow
        begun, chunks = loop.time(), math.ceil((len(sequence.tokens) - sequence.cached) / CHUNK) or 1
        try:
            for n in range(1, chunks + 1):
                self._hold(sequence, math.ceil(len(sequence.tokens) / settings.block_size * n / chunks))
                await asyncio.sleep(max(0.0, begun + (done - begun) * n / chunks - loop.time()))
        except asyncio.CancelledError:
            self.cache.drop_unready(blocks[held:], loop.time())
            raise
        sequence.due = loop.time()

    def _hold(self, sequence: Sequence, blocks: int) -> None:
        self.blocks_used += blocks - sequence.blocks
        sequence.blocks = blocks

    async def token(self, sequence: Sequence, piece: str) -> None:
        """Return when the token `piece` is decoded; the first one comes with prefill, without a wait."""
        loop = asyncio.get_running_loop()
        self.made += 1
        if not sequence.produced:
            sequence.first_token = loop.time()
            sequence.produced.append(piece)
            return
        sequence.due += self.settings.seconds(self.settings.inter_token_latency) * self.load_factor()
        await asyncio.sleep(max(0.0, sequence.due - loop.time()))
        sequence.produced.append(piece)

    def keep(self, sequence: Sequence) -> None:
        """Put the blocks of a finished sequence, prompt and output, into the prefix cache."""
        for block in chain(sequence.tokens + sequence.produced, self.settings.block_size, sequence.salt):
            self.cache.add(block, 0.0)
