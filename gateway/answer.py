"""How does a request become an answer?   Admitted, recalled or triaged beside a draft, routed, sent, remembered."""

from functools import partial

from gateway.admission import admit
from gateway.cache import Flights, Verdicts, lookup, replay
from gateway.draft import drafting
from gateway.errors import Refusal
from gateway.facts import observe
from gateway.policy import Policy
from gateway.routing import route
from gateway.store import Store
from gateway.triage import question, triage
from gateway.types import Ask, ChatRequest, Decision, Reply, Route, Standing
from gateway.upstream import Upstream


async def answer(request: ChatRequest, policy: Policy, store: Store, upstream: Upstream, flights: Flights) -> Reply:
    """The reply to a request; its holder closes it. Raises Refusal for a caller who is not admitted."""
    key = lookup(request, policy)  # None: this answer may be neither recalled nor shared
    async with await admit(request, key, policy, store) as admission:
        decided = partial(decide, request, admission.standing, policy, upstream, flights.verdicts)
        make = partial(admission.through, decided)
        try:
            reply = replay(admission.entry, key, request) or await flights.share(key, request, policy, make)
        except Refusal as refusal:
            reply = Reply.refused(refusal)
        return admission.keep(reply)


async def decide(
    request: ChatRequest, standing: Standing, policy: Policy, upstream: Upstream, verdicts: Verdicts
) -> Reply:
    """An answer from a model. Only a rule that wants a verdict recalls one, or drafts and triages. Raises Refusal as
    routing does."""
    facts = observe(request, request.caller, policy, upstream.load(), standing)
    chosen, verdict, ttl = route(facts, None, policy), None, policy.triage.cache
    if isinstance(chosen, Ask):
        asked = question(request, policy, upstream.able.get(policy.triage.tier, ()))
        verdict = await verdicts.recall(request.caller, asked.key, ttl)
    if verdict:
        chosen = route(facts, verdict, policy)
    if isinstance(chosen, Route):
        reply = await upstream.send(request, chosen, policy)
        return reply.decided(Decision(facts, verdict, chosen))
    async with drafting(request, chosen, policy, upstream) as draft:
        ask = partial(triage, request, policy, upstream, asked)
        verdict = await verdicts.share(request.caller, asked.key, ttl, ask)
        chosen = route(facts, verdict, policy)
        reply = await draft.take(chosen) or await upstream.send(request, chosen, policy)
        return reply.decided(Decision(facts, verdict, chosen, draft.outcome), waited=verdict.seconds)
