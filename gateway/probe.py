"""By which strategies can triage ask its servers?   They are tried at start-up, and again when a server comes back."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.abilities import Outcomes, common_strategies, for_server, try_strategies
from gateway.http1 import Client, Limits, Origin, TransportError, fetch
from gateway.policy import Policy, Tier
from gateway.telemetry import THINKS
from gateway.triage import LATE, strategy_of
from gateway.upstream import Upstream

START = 5.0  # seconds that the start of the gateway waits for the first findings at most
PAUSE = 5.0  # seconds between two looks at the servers
LONGEST = 300.0  # seconds at most until a server that lacked the best strategy is asked again: it may have been busy
HEALTH = Limits(connect=1.0, first_byte=2.0, idle=2.0, total=2.0)
log = logging.getLogger("gateway")


class Probe:
    """Keeps `upstream.strategies` up to date for the tier that triage asks, while the policy's strategy is auto and
    some rule wants a verdict."""

    def __init__(
        self,
        client: Client,
        upstream: Upstream,
        policy: Callable[[], Policy],
        pause: float = PAUSE,
        health: Limits = HEALTH,
    ) -> None:
        self._client, self._upstream, self._policy, self._pause = client, upstream, policy, pause
        self._health = health
        self._asked: object = None  # what was asked, and of whom; another policy is another question
        self._found: dict[str, Outcomes] = {}
        self._next: dict[str, tuple[float, float]] = {}  # when a server is asked again (monotonic), after which pause
        self._thinks = False

    @asynccontextmanager
    async def running(self, wait: float = START) -> AsyncIterator[None]:
        """Looks until the end of the block, which begins with the first findings, or without them after `wait`."""
        first = asyncio.Event()
        task = asyncio.create_task(self._run(first))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await first.wait()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def told(self) -> dict[str, Any]:
        """For /ready: the strategy in use, and what each replica of the tier was found to do, in the policy's order."""
        policy = self._policy()
        rules, tier = policy.triage, policy.tiers[policy.triage.tier]
        used = strategy_of(rules, self._upstream.strategies.get(rules.tier, ()))
        return {"tier": rules.tier, "strategy": used, "replicas": [self._found.get(url) for url in tier.replicas]}

    async def _run(self, first: asyncio.Event) -> None:
        while True:
            policy = self._policy()
            if policy.triage.strategy == "auto" and policy.asks:
                await self._look(policy)
            first.set()
            await asyncio.sleep(self._pause)

    async def _look(self, policy: Policy) -> None:
        rules, tier = policy.triage, policy.tiers[policy.triage.tier]
        asked = (rules.tier, tier, rules.prompts[rules.prompt].digest, rules.layout)
        if asked != self._asked:
            self._asked, self._found, self._next = asked, {}, {}
        up, now = await self._up(tier), time.monotonic()
        self._found = {url: found for url, found in self._found.items() if url in up}
        self._next = {url: then for url, then in self._next.items() if url in up}
        due = [url for url in up if self._next.get(url, (now, 0))[0] <= now]
        await asyncio.gather(*(self._ask(url, policy) for url in due))
        self._publish(policy)

    async def _up(self, tier: Tier) -> list[str]:
        """The replicas that answer /health. Those of a hosted API are not asked every few seconds, and count as up."""
        if tier.engine == "openai":
            return list(tier.replicas)
        alive = await asyncio.gather(*map(self._alive, tier.replicas))
        return [url for url, answers in zip(tier.replicas, alive, strict=True) if answers]

    async def _ask(self, url: str, policy: Policy) -> None:
        found = await try_strategies(for_server(policy, policy.triage.tier, url), self._upstream)
        pause = min(2 * self._next.get(url, (0.0, self._pause / 2))[1], LONGEST)
        best = next(iter(found.values()))
        self._next[url] = (math.inf if best == "ok" else time.monotonic() + pause, pause)
        self._found[url] = found
        self._publish(policy)

    def _publish(self, policy: Policy) -> None:
        """Sets what the tier can do; logs one line when that changes."""
        name, found = policy.triage.tier, [dict(found) for found in self._found.values()]
        can = common_strategies(found)
        thinks = any("empty" in one.values() for one in found)
        if thinks and not self._thinks:
            log.warning(THINKS)
        self._thinks = thinks
        if self._upstream.strategies.get(name) != can:
            self._upstream.strategies[name] = can
            used = strategy_of(policy.triage, can)
            log.warning("triage asks tier %s by %s; %s", name, used, _words(found))

    async def _alive(self, url: str) -> bool:
        """Whether anything answers there; a server that was asked before may be too busy to."""
        try:
            await fetch(self._client, Origin.parse(url), "GET /health", self._health)
        except TransportError as error:
            return error.kind in LATE and url in self._found
        return True


def _words(found: Sequence[Outcomes]) -> str:
    """What each server can do, and what it cannot, with the outcome."""
    return "; ".join(map(_can, found)) or "no server answers"


def _can(found: Outcomes) -> str:
    can = [name for name, how in found.items() if how == "ok"]
    cannot = [f"{name} ({how})" for name, how in found.items() if how != "ok"]
    return f"can: {', '.join(can) or 'nothing'}" + (f", cannot: {', '.join(cannot)}" if cannot else "")
