"""Which model server is called, for how long, and which one is next when it fails?"""

import asyncio
import itertools
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from gateway.dialects import CHAT, DIALECTS
from gateway.errors import Overloaded, UpstreamFailed, UpstreamTimeout
from gateway.http1 import Client, Limits, Response, TransportError
from gateway.policy import Policy, Tier
from gateway.reply import Reply
from gateway.splice import body_for
from gateway.stream import MAX_JSON
from gateway.types import Bill, ChatRequest, Route, TierState, Usage
from gateway.upstream.balance import affinity
from gateway.upstream.call import Call, brief, head, leg
from gateway.upstream.open_call import OpenCall
from gateway.upstream.patience import Patience
from gateway.upstream.places import Places
from gateway.upstream.queues import Queues
from gateway.upstream.replicas import Replica, Replicas, waiting
from gateway.upstream.replies import Failed, accepted, advice, failure, is_busy, refused, stream_reply, whole_reply
from gateway.upstream.retry_budget import RetryBudget
from gateway.upstream.triage_response import Endings, TriageResponse
from gateway.upstream.waste import Early, Waste
from gateway.user_words import beginning


def _unheard(*_: str) -> None: ...


class Upstream:
    """The model servers of all tiers. Counts the calls in flight, for the rules and for balancing.

    `strategies`: by tier, the triage strategies that its servers were found to support. `waste`: how many tokens of
    drafts were thrown away lately; `early`: limits early starts on the highest tier. `retried` is called for each
    further call on behalf of a request, with the tier that failed, how, and where the next call goes (replica | tier).
    """

    def __init__(self, client: Client, retried: Callable[[str, str, str], None] = _unheard) -> None:
        self._client, self._retried = client, retried
        self.strategies: dict[str, tuple[str, ...]] = {}
        self.waste, self.early = Waste(), Early()
        self._places: dict[str, Places] = {}
        self._budgets: dict[str, RetryBudget] = defaultdict(RetryBudget)
        self._replicas, self._queues = Replicas(), Queues(client)
        self._patience = Patience(client, self._replicas, self._budgets)
        self._endings: Endings = {}
        self._turns: dict[str, int] = defaultdict(int)  # answers begun, by tier
        self._numbers = map((secrets.token_hex(4).encode() + b"-%x").__mod__, itertools.count())  # of calls

    def load(self) -> Mapping[str, int]:
        """Requests in flight by tier, as of this moment."""
        return {name: places.taken for name, places in self._places.items()}

    def waiting(self, policy: Policy) -> Mapping[str, int]:
        """Requests in the servers' own queues, by tier, where the policy uses them and they are known."""
        return self._waiting(policy) if policy.watched_queues else {}

    def _waiting(self, policy: Policy) -> Mapping[str, int]:
        watched = {name: self._replicas.of(policy.tiers[name]) for name in policy.watched_queues}
        self._queues.look({self._placed(name): replicas for name, replicas in watched.items()})
        now = _now()
        found = {name: waiting(replicas, now) for name, replicas in watched.items()}
        return {name: count for name, count in found.items() if count is not None}

    def states(self, policy: Policy) -> Mapping[str, TierState]:
        """The state of each tier."""
        return {name: self._state(name, tier) for name, tier in policy.tiers.items()}

    def _state(self, name: str, tier: Tier) -> TierState:
        places = self._placed(name)
        up = tuple(not replica.breaker.open for replica in self._replicas.of(tier))
        return TierState(places.taken, places.queued, up, places.most(tier.limits))

    async def close(self) -> None:
        """Stops reading the servers' figures and what is left of triage answers."""
        await self._queues.close()
        await self._patience.close()
        while self._endings:
            self._endings.popitem()[0].close()

    def shed(self, request: ChatRequest, policy: Policy) -> None:
        """Load shedding: raises Overloaded if every tier that the caller may use would refuse the request at once; then
        neither the store nor the classifier needs to be asked."""
        caller, refusal = request.caller, None
        for name in policy.reach(caller.plan, caller.own.may):
            tier, places = policy.tiers[name], self._places.get(name)
            if places is None or places.room(tier.limits):
                return
            priority = policy.callers.plans[caller.plan].priority
            refusal = places.turned_away(tier.limits, priority, _rest(request, tier))
            if not refusal:
                return
        if refusal:
            raise refusal

    async def send(
        self, request: ChatRequest, route: Route, policy: Policy, first: Awaitable[Reply] | None = None
    ) -> Reply:
        """The answer of the first tier of the route that gives one, once its first bytes have arrived.

        A server's 4xx is an answer, except a 429 while there are tiers left. `first` is the first tier's attempt, where
        that has begun already. If every tier fails, the reply is the last one's refusal.
        """
        reply = await (first or self.attempt(request, route.tiers[0], policy))
        for before, name in pairwise(route.tiers) if reply.failure in policy.failover.on else ():
            if self._replicas.down(policy.tiers[name], _now()) and not self._spend(name):
                break  # where everything is down, failover too would only multiply the calls
            self._retried(before, str(reply.failure), "tier")
            waited = reply.waited
            reply = await self.attempt(request, name, policy)
            reply.waited += waited
            if reply.failure not in policy.failover.on:
                break
        return reply

    async def attempt(self, request: ChatRequest, name: str, policy: Policy, bill: Bill | None = None) -> Reply:
        """One tier's answer, once its first bytes have arrived, or its failure before them (`Reply.failure`).

        Its usage goes to `bill`, which is added to the request's bills.
        """
        tier, places = policy.tiers[name], self._placed(name)
        started = time.perf_counter()
        try:
            if not places.free(tier.limits):
                priority = policy.callers.plans[request.caller.plan].priority
                await places.take(tier.limits, priority, _rest(request, tier))
        except Overloaded as full:
            return refused(full, "overloaded", started)
        bill = bill or Bill(name, "answer", stream=bool(request.fields.stream), at=started)
        try:
            body = body_for(request, name, policy)
            call = Call(name, request.path, request.id, body, bill, request.trace)
            if tier.balance == "round_robin":
                self._turns[name] += 1
            self._budgets[name].earn()
            request.bills.append(bill)
            first = self._choose(request, name, tier)
            try:
                reply = await self._try(request, call, policy, first)
            except Failed as error:
                reply = await self._retry(request, call, policy, first, error)
        except Failed as error:
            places.give_back()
            bill.void, bill.lost = error.void, True
            return refused(error.refusal, error.kind, started)
        except BaseException:
            places.give_back()
            raise
        bill.void = reply.status != 200 or DIALECTS[request.path].work == "count"
        reply.waited = time.perf_counter() - started
        if is_busy(reply):
            reply.failure = "overloaded"
        return reply

    async def ask(self, request: ChatRequest, path: str, body: bytes, policy: Policy, seconds: float) -> TriageResponse:
        """Sends a question of our own about `request`, triage's or the probe's, to the replica that would answer the
        request. What it returns is a context manager, entered by its holder.

        Raises Overloaded when the tier is full, TransportError of kind "total" when `seconds` run out.
        """
        name = policy.triage.tier
        tier, places = policy.tiers[name], self._placed(name)
        if not places.free(tier.limits):
            raise places.overloaded()
        replica = self._choose(request, name, tier)
        opened = OpenCall(name, replica, request.caller.id)
        opened.place = places
        bill = Bill(name, "triage", stream=path == CHAT, server=replica.url)
        call = Call(name, path, request.id + "-triage", body, bill, request.trace)
        request.bills.append(bill)
        try:
            opened.response = response = await self._ask(opened, call, tier, brief(tier, seconds))
        except BaseException as error:
            if isinstance(error, TransportError) and error.kind in ("connect", "closed"):
                opened.failed(error)  # a verdict that is late is no failure of the server
            opened.close()
            raise
        if response.status >= 500:
            opened.failed(UpstreamFailed(f"The model server failed (status {response.status})."))
        else:
            opened.passed(0.0 if response.status != 429 else _now() + advice(response))
        return TriageResponse(opened, response, bill.usage, self._endings)

    async def triage_reported(self) -> None:
        """Returns when triage calls whose verdict is known have reported their usage, which comes after the label."""
        if self._endings:
            await asyncio.wait(self._endings.values())

    async def _retry(self, request: ChatRequest, call: Call, policy: Policy, first: Replica, error: Failed) -> Reply:
        """The answer of another replica, if the first one's `error` and the tier's retry budget allow it; else raises
        Failed as `error` is. There is no third one: the request itself may be what halts them.
        """
        other = self._other(request, call.tier, policy, first)
        on = policy.failover.on
        if error.ours or error.kind not in on or not other or not (error.still or self._spend(call.tier)):
            raise Failed(error.kind, error.refusal, error.void)  # `error` itself would be in a cycle with this frame
        self._retried(call.tier, error.kind, "replica")
        request.bills.append(replace(call.bill, void=error.void, lost=True))
        call.bill.usage = Usage()
        return await self._try(request, replace(call, again=True), policy, other)

    async def _try(self, request: ChatRequest, call: Call, policy: Policy, replica: Replica) -> Reply:
        """One call to one replica. Raises Failed; else the open call owns the tier's place until the answer ends."""
        tier = policy.tiers[call.tier]
        rest = _rest(request, tier)
        if rest <= 0:
            raise Failed("first_byte", UpstreamTimeout("The time of this request is over."))
        opened, reply = OpenCall(call.tier, replica, request.caller.id), None
        try:
            times = self._patience.limits(call, policy, replica, rest)
            opened.response = response = await self._ask(opened, call, tier, times)
            headers, streams = accepted(opened, response, call.bill.stream)
            if streams:
                reply = await stream_reply(request, opened, response, headers, call.bill.usage)
            else:
                data = response.ready(MAX_JSON)
                data = await response.read(MAX_JSON) if data is None else data
                reply = whole_reply(response, headers, data, call.bill, DIALECTS[request.path].answers.holds)
        except (TransportError, UpstreamFailed, Failed) as error:
            raise failure(opened, error) from None
        finally:
            if not reply:
                opened.close()
        opened.passed(0.0 if reply.status != 429 else _now() + advice(response))
        opened.place = place = self._places[call.tier]
        if tier.limits.adaptive and call.bill.stream:
            place.heard(rest - _rest(request, tier))
        if not reply.stream:
            opened.close()
        return reply

    def _ask(self, opened: OpenCall, call: Call, tier: Tier, times: Limits) -> Coroutine[Any, Any, Response]:
        """Raises TransportError."""
        origin, traced = opened.replica.origin, b""
        if call.trace:
            opened.leg = leg(origin, tier, call)
            traced = call.trace.began(opened.leg)
        return self._client.request(origin, head(origin, tier, call, next(self._numbers), traced), call.body, times)

    def _choose(self, request: ChatRequest, name: str, tier: Tier) -> Replica:
        if len(tier.replicas) == 1:
            return self._replicas.at(tier.replicas[0])
        found = self._asked(request, tier) or self._pick(request, name, tier, ())
        return found or self._replicas.at(tier.replicas[0])

    def _asked(self, request: ChatRequest, tier: Tier) -> Replica | None:
        """The replica that the triage question went to: it has the prompt in its KV cache, or will soon."""
        for bill in request.bills if tier.balance == "prefix_affinity" else ():
            if bill.server in tier.replicas:
                replica = self._replicas.at(bill.server)
                return replica if replica.breaker.lets(now := _now()) and now >= replica.busy else None
        return None

    def _other(self, request: ChatRequest, name: str, policy: Policy, first: Replica) -> Replica | None:
        """Another replica to try, if there is one and time is left."""
        tier = policy.tiers[name]
        if len(tier.replicas) == 1 or _rest(request, tier) <= 0:
            return None
        return self._pick(request, name, tier, (first, *self._patience.still(tier)))

    def _pick(self, request: ChatRequest, name: str, tier: Tier, tried: Collection[Replica]) -> Replica | None:
        key = self._turns[name]
        if tier.balance != "round_robin" and len(tier.replicas) > 1:
            key = affinity(beginning(request.fields))
        return self._replicas.choose(tier, key, tried, _now())

    def _spend(self, name: str) -> bool:
        return self._budgets[name].spend(_now())

    def _placed(self, name: str) -> Places:
        found = self._places.get(name)
        if found is None:
            found = self._places[name] = Places(name)
        return found


def _now() -> float:
    return asyncio.get_running_loop().time()


def _rest(request: ChatRequest, tier: Tier) -> float:
    """Seconds until the tier's total time for the request is over, failover and waiting included."""
    return request.started + tier.timeouts.total - time.perf_counter()
