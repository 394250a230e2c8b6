"""How does a request become an answer?   Admitted, recalled or triaged beside a draft, routed, sent, remembered."""

from functools import partial

from gateway.admission import admit
from gateway.cache import Flights, lookup, replay
from gateway.draft import drafting
from gateway.errors import Refusal
from gateway.facts import observe
from gateway.policy import Policy
from gateway.routing import route
from gateway.store import Store
from gateway.triage import triage
from gateway.types import ChatRequest, Decision, Reply, Route, Standing
from gateway.upstream import Upstream


async def answer(request: ChatRequest, policy: Policy, store: Store, upstream: Upstream, flights: Flights) -> Reply:
    """The reply to a request; its holder closes it. Raises Refusal for a caller who is not admitted."""
    key = lookup(request, policy)  # None: this answer may be neither recalled nor shared
    async with await admit(request, key, policy, store) as admission:
        make = partial(admission.through, partial(decide, request, admission.standing, policy, upstream))
        try:
            reply = replay(admission.entry) or await flights.share(key, request, policy, make)
        except Refusal as refusal:
            reply = Reply.refused(refusal)
        return admission.keep(reply)


async def decide(request: ChatRequest, standing: Standing, policy: Policy, upstream: Upstream) -> Reply:
    """An answer from a model. Only a rule that wants a verdict drafts and triages. Raises Refusal as routing does."""
    facts = observe(request, request.caller, policy, upstream.load(), standing)
    chosen = route(facts, None, policy)
    if isinstance(chosen, Route):
        reply = await upstream.send(request, chosen, policy)
        return reply.decided(Decision(facts, None, chosen))
    async with drafting(request, chosen, policy, upstream) as draft:
        verdict = await triage(request, policy, upstream)
        chosen = route(facts, verdict, policy)
        reply = await draft.take(chosen) or await upstream.send(request, chosen, policy)
        return reply.decided(Decision(facts, verdict, chosen, draft.outcome), waited=verdict.seconds)
