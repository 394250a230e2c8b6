"""How long is an answer waited for?   Less where its server stands still.

An answer in one piece has no first byte to miss: where its server is frozen, or its engine hangs behind an API server
that still answers, it would be waited for until the request's time is over; it is asked of another one that is well. A
stream may be silent for long, as vLLM sends a whole argument of V4's tools at once; where its engine hangs it ends, and
so does an answer that no other server is to give, for which nothing but figures counts, of an engine that says that it
is at work: another one's may answer at the same URL.
vLLM and SGLang tell: among their figures some move with each step of the engine, also while that reads a long prompt.
Of a host that is gone the kernel tells.
"""

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from gateway.http1 import Client, Limits, TransportError, fetch
from gateway.policy import Policy, Tier
from gateway.upstream.call import Call
from gateway.upstream.loads import load
from gateway.upstream.replicas import Replica, Replicas
from gateway.upstream.retry_budget import RetryBudget

LOOKS = 4  # at a server, in the time that a stream's first byte may take, and all but one of them must tell the same
SILENT = "silent"  # what a look found that had no answer
HUNG = 2  # times what a first byte may take: so long all looks at a silent stream's server found the same figures
# Others of SGLang's move by themselves: the time that its processes take, and how often /metrics was asked for.
_FIGURES = re.compile(rb"^(?:vllm:|sglang:realtime_tokens_total).*$", re.MULTILINE)
# What no router has that stands before engines.
_ENGINE = re.compile(rb"^(?:vllm:generation|sglang:realtime)_tokens_total", re.MULTILINE)


class Figures(NamedTuple):
    """What vLLM tells, the same again only where its engine did nothing. `running`: requests that this works on."""

    running: int | None
    digest: int


class Patience:
    """Looks at servers whose answers take long, until it is closed."""

    def __init__(self, client: Client, replicas: Replicas, budgets: Mapping[str, RetryBudget]) -> None:
        self._client, self._replicas, self._budgets = client, replicas, budgets
        self._looks: dict[Replica, asyncio.Task[None]] = {}  # those under way

    def limits(self, call: Call, policy: Policy, replica: Replica, rest: float) -> Limits:
        """The time limits of a call; `rest`: seconds until the request's deadline. An answer in one piece has no other,
        but it ends, of kind "still", where its server is found to stand still and a retry is taken from the budget, or
        where its engine hangs and nobody else is to be asked. A silent stream whose engine hangs ends before `idle`."""
        tier = policy.tiers[call.tier]
        times = tier.timeouts
        if call.bill.stream:
            silent = partial(self._silent, tier, replica) if tier.engine != "openai" else None
            idle = min(times.first_byte, times.idle) if silent else times.idle
            return Limits(times.connect, times.first_byte, idle, rest, None, silent)
        if tier.engine == "openai":
            return Limits(times.connect, rest, rest, rest)
        alone = len(tier.replicas) == 1 or call.again or "first_byte" not in policy.failover.on
        late = partial(self._late, tier, replica, None if alone else self._budgets[call.tier])
        return Limits(times.connect, min(times.first_byte / LOOKS, rest), rest, rest, late)

    def _late(self, tier: Tier, replica: Replica, budget: RetryBudget | None, _: float) -> float:
        """Seconds until an answer is asked about again; 0: it is waited for no longer. `budget`: of what may be asked
        of another replica; None: it may not."""
        now, step = self._looked(tier, replica)
        well = self._well(tier) if budget else []
        if budget is None or not well:
            return 0.0 if self._hangs(tier, replica, now) else step / 2
        if replica.signs.still < (LOOKS - 1.5) * step:
            return step / 2
        replica.stands_still(now)
        free = any(now >= one.busy for one in well)
        return 0.0 if free and budget.spend(now) else step / 2

    def _hangs(self, tier: Tier, replica: Replica, now: float) -> bool:
        """Whether its engine does nothing of what it says it is at work on."""
        found = replica.signs.found
        hangs = isinstance(found, Figures) and found.running and replica.signs.still >= HUNG * tier.timeouts.first_byte
        if hangs:
            replica.stands_still(now)
        return bool(hangs)

    def _silent(self, tier: Tier, replica: Replica, over: float) -> float:
        """Seconds until a stream is asked about again that has been silent for `first_byte` and `over`; 0: it ends."""
        now, step = self._looked(tier, replica)
        if self._hangs(tier, replica, now):
            return 0.0
        return max(min(step / 2, tier.timeouts.idle - tier.timeouts.first_byte - over), 0.0)

    def _looked(self, tier: Tier, replica: Replica) -> tuple[float, float]:
        """The time and the seconds between two looks, of which the next one begins if it is due."""
        now, step = asyncio.get_running_loop().time(), tier.timeouts.first_byte / LOOKS
        if replica not in self._looks and now - replica.signs.at > 0.75 * step:
            replica.signs.look(now, 2 * step)
            self._looks[replica] = asyncio.create_task(self._look(replica, step))
        return now, step

    def still(self, tier: Tier) -> list[Replica]:
        """Its replicas that seem to stand still, by looks of this moment."""
        now, step = asyncio.get_running_loop().time(), tier.timeouts.first_byte / LOOKS
        of = self._replicas.of(tier)
        return [one for one in of if one.signs.still >= step and now - one.signs.at < 2 * step]

    def _well(self, tier: Tier) -> list[Replica]:
        """The replicas that may be asked."""
        still = self.still(tier)
        return [one for one in self._replicas.of(tier) if one not in still and not one.breaker.open]

    async def _look(self, replica: Replica, step: float) -> None:
        loop, answered, seconds = asyncio.get_running_loop(), replica.breaker.good, (LOOKS - 1) * step
        began, limits = loop.time(), Limits(2 * step, seconds, seconds, seconds)
        try:
            sign = _sign((await fetch(self._client, replica.origin, "GET /metrics", limits, "accept: text/plain")).body)
        except TransportError as error:  # it may be too busy to tell, or not be found, and answer calls nevertheless
            silent = error.kind == "total" and replica.breaker.good == answered
            sign = SILENT if silent else object()
        finally:
            del self._looks[replica]
        now = loop.time()
        replica.signs.saw(sign, began if sign is SILENT else now, now)

    async def close(self) -> None:
        """Stops looking."""
        looks = list(self._looks.values())
        for look in looks:
            look.cancel()
        if looks:
            await asyncio.wait(looks)


def _sign(told: bytes) -> object:
    """What is the same again only where the engine did nothing; without its figures an answer is a sign of life."""
    if not _ENGINE.search(told):
        return object()
    return Figures(load(told).running, hash(b"\n".join(_FIGURES.findall(told))))
