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


async def decision(
    request: ChatRequest, policy: Policy, store: Store, upstream: Upstream, verdicts: Verdicts
) -> Decision:
    """What `answer` would decide, without an answer. Raises Refusal as that does."""
    async with await admit(request, None, policy, store, answers=False) as admission:
        facts = observe(request, policy, upstream.load(), admission.standing, upstream.waiting(policy))
        chosen, verdict, ttl = route(facts, None, policy), None, policy.triage.cache
        if isinstance(chosen, Ask):
            asked = question(request, policy)
            ask = partial(triage, request, policy, upstream, asked)
            verdict = await verdicts.recall(request.caller, asked[0], ttl)
            verdict = verdict or await verdicts.share(request.caller, asked[0], ttl, ask)
            chosen = route(facts, verdict, policy)
        return Decision(facts, verdict, chosen)


async def decide(
    request: ChatRequest, standing: Standing, policy: Policy, upstream: Upstream, verdicts: Verdicts
) -> Reply:
    """An answer from a model. Only a rule that wants a verdict recalls one, or drafts and triages. Raises Refusal as
    routing does."""
    facts = observe(request, policy, upstream.load(), standing, upstream.waiting(policy))
    chosen, verdict, ttl = route(facts, None, policy), None, policy.triage.cache
    if isinstance(chosen, Ask):
        asked = question(request, policy)
        verdict = await verdicts.recall(request.caller, asked[0], ttl)
    if verdict:
        chosen = route(facts, verdict, policy)
    if isinstance(chosen, Route):
        reply = await upstream.send(request, chosen, policy)
        return reply.decided(Decision(facts, verdict, chosen))
    async with drafting(request, chosen, policy, upstream) as draft:
        ask = partial(triage, request, policy, upstream, asked)
        verdict = await verdicts.share(request.caller, asked[0], ttl, ask)
        chosen = route(facts, verdict, policy)
        reply = await draft.take(chosen) or await upstream.send(request, chosen, policy)
        return reply.decided(Decision(facts, verdict, chosen, draft.outcome), waited=verdict.seconds)
