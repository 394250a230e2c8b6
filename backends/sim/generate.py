"""How does one generation run, from the waiting queue to the last token, and how is it sent?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backends.sim import replies
from backends.sim.engine import Engine, Sequence
from backends.sim.engines import decided
from backends.sim.metrics import Metrics
from backends.sim.plan import Plan, Step
from backends.sim.protocol import JSON, Request
from backends.sim.replies import Shape
from backends.sim.state import Entry
from backends.sim.wire import Wire


class Generation:
    """One request in the engine: its sequence, its plans, its entry in the state."""

    def __init__(self, engine: Engine, metrics: Metrics, sequence: Sequence, plans: list[Plan], entry: Entry) -> None:
        self._engine, self._metrics = engine, metrics
        self.sequence, self.plans, self.entry = sequence, plans, entry

    async def steps(self) -> AsyncIterator[tuple[int, Step]]:
        """(choice, token) in decoding order, each when it is ready. Cancelling frees the slot at once."""
        self.entry.phase = "waiting"
        async with self._engine.slot(self.sequence), self._measured():
            self.entry.phase = "prefill"
            await self._engine.prefill(self.sequence)
            self.entry.cached_tokens = self.sequence.cached
            self._metrics.prefilled(self.sequence)
            async for pair in self._decode():
                yield pair
            self._engine.keep(self.sequence)

    @asynccontextmanager
    async def _measured(self) -> AsyncIterator[None]:
        reason = "abort"
        try:
            yield
            reason = "length" if self.plans[0].finish == "length" else "stop"
        finally:
            self._metrics.ended(self.sequence, asyncio.get_running_loop().time(), reason)

    async def _decode(self) -> AsyncIterator[tuple[int, Step]]:
        self.entry.phase = "decode"
        for at in range(max(len(plan.steps) for plan in self.plans)):
            alive = [(i, plan.steps[at]) for i, plan in enumerate(self.plans) if at < len(plan.steps)]
            await self._engine.token(self.sequence, alive[0][1].text)
            if at == 0:
                self.entry.first_token_ms = self.sequence.first_token * 1000
            for pair in alive:
                self.entry.tokens += 1
                yield pair

    def usage(self) -> JSON:
        """The usage object for the tokens so far."""
        return replies.usage(len(self.sequence.tokens), self.entry.tokens, self.sequence.cached)


async def decision(generation: Generation, shaped: Shape, choices: list[str], wire: Wire) -> None:
    """Answer a /v1/decisions request in one JSON body."""
    async for _ in generation.steps():
        pass
    await wire.json(200, decided(shaped, generation.plans[0], generation.usage(), choices))


async def collected(generation: Generation) -> list[list[Step]]:
    """All tokens of each choice, after the last is generated."""
    made: list[list[Step]] = [[] for _ in generation.plans]
    async for index, step in generation.steps():
        made[index].append(step)
    return made


async def whole(generation: Generation, shaped: Shape, wire: Wire) -> None:
    """Answer in one JSON body."""
    made = await collected(generation)
    choices = [
        replies.choice(shaped, i, made[i], plan.finish, plan.stop) for i, plan in enumerate(generation.plans)
    ]  # fmt: skip
    body = {**shaped.envelope(False), "choices": choices, "usage": generation.usage(), "system_fingerprint": None}
    await wire.json(200, body)


async def stream(generation: Generation, shaped: Shape, request: Request, wire: Wire) -> None:
    """Answer in server-sent events: roles, tokens, a finish_reason for each choice, usage if asked, [DONE].

    A server whose streams have no [DONE] (`Shape.ends`) sends the usage with the finish_reason.
    """
    left = [len(plan.steps) for plan in generation.plans]
    begun = False
    async for index, step in generation.steps():
        if shaped.chat and not begun:
            await _roles(generation, shaped, wire)
            begun = True
        left[index] -= 1
        last = left[index] == 0 and not wire.fault.no_finish
        event = replies.chunk(shaped, index, replies.delta(step, shaped), step)
        if last:
            plan = generation.plans[index]
            event["choices"][0].update(finish_reason=plan.finish, stop_reason=plan.stop)
            event |= {} if shaped.ends else {"usage": generation.usage()}
        await wire.event(event)
    if not shaped.ends:
        await wire.done(b"")
        return
    if request.wants_usage():
        await wire.event({**shaped.envelope(True), "choices": [], "usage": generation.usage()})
    await wire.done()


async def _roles(generation: Generation, shaped: Shape, wire: Wire) -> None:
    for index in range(len(generation.plans)):
        await wire.event(replies.chunk(shaped, index, replies.role_delta(), None))
