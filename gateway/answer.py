"""How does a request become an answer?   Admitted, recalled or triaged beside a draft, routed, sent, remembered."""

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from gateway.admission import admit
from gateway.cache import Flights, Verdicts, cache_key, cached_reply, verdict_key
from gateway.draft import drafting
from gateway.errors import Refusal
from gateway.facts import observe
from gateway.holdback import hold
from gateway.policy import Policy
from gateway.reply import Reply
from gateway.routing import route
from gateway.store import Store
from gateway.triage import question, triage
from gateway.types import Ask, ChatRequest, Decision, Facts, Route, Standing, Verdict
from gateway.upstream import Upstream


async def answer(request: ChatRequest, policy: Policy, store: Store, upstream: Upstream, flights: Flights) -> Reply:
    """The reply to a request; its holder closes it. Raises Refusal for a caller who is not admitted."""
    key = cache_key(request, policy)  # None: the answer may be neither cached nor shared, so a tier has to give it
    if key is None:
        upstream.shed(request, policy)
    admission = await admit(request, key, policy, store)
    cached = cached_reply(admission.entry, key, request)
    if admission.entry is not None and not cached:  # in a form of no use here: a fresh answer is made, and reserved for
        admission = await admit(request, None, policy, store)

    def make() -> Coroutine[Any, Any, Reply]:
        return admission.updating_session(generate(request, admission.standing, policy, upstream, flights.verdicts))

    try:
        reply = cached or await flights.share(admission.lock, request, policy, make, admission)
    except Refusal as refusal:
        reply = Reply.refused(refusal)
    except BaseException:
        admission.close()
        raise
    return admission.keep(reply)


async def decision(
    request: ChatRequest, policy: Policy, store: Store, upstream: Upstream, verdicts: Verdicts
) -> Decision:
    """The decision that `answer` would make, without an answer. Raises Refusal as that does."""
    admission = await admit(request, None, policy, store, answers=False)
    try:
        found = await decide(request, admission.standing, policy, upstream, verdicts)
        if isinstance(found, Decision):
            return found
        verdict = await found.get_verdict()
        await upstream.triage_reported()
        return Decision(found.facts, verdict, route(found.facts, verdict, policy))
    finally:
        admission.close()


async def generate(
    request: ChatRequest, standing: Standing, policy: Policy, upstream: Upstream, verdicts: Verdicts
) -> Reply:
    """A model's answer; with hold-back, once its first tokens have been judged. Raises Refusal as `decide` does."""
    found = await decide(request, standing, policy, upstream, verdicts)
    if isinstance(found, Decision):
        reply = (await upstream.send(request, found.route, policy)).decided(found)
    else:
        reply = await generate_while_triaging(request, found, policy, upstream)
    return await hold(request, reply, policy, upstream) if policy.holdback else reply


class Undecided(msgspec.Struct, frozen=True):
    """The rule wants a verdict, and none is cached: `get_verdict` asks the classifier."""

    facts: Facts
    ask: Ask
    get_verdict: Callable[[], Awaitable[Verdict]]


async def decide(
    request: ChatRequest, standing: Standing, policy: Policy, upstream: Upstream, verdicts: Verdicts
) -> Decision | Undecided:
    """The decision, if it can be made without asking the classifier. Raises Refusal as `observe` and `route` do."""
    facts = observe(request, policy, upstream.load(), standing, upstream.waiting(policy))
    chosen, caller, ttl = route(facts, None, policy), request.caller, policy.triage.cache
    if isinstance(chosen, Route):
        return Decision(facts, None, chosen)
    asked = question(request, policy, upstream.strategies.get(policy.triage.tier, ()))
    ask = partial(triage, request, policy, upstream, asked)
    if ttl is None:
        return Undecided(facts, chosen, ask)
    key = verdict_key(caller, asked.key)
    if verdict := await verdicts.recall(caller, key):
        return Decision(facts, verdict, route(facts, verdict, policy))
    return Undecided(facts, chosen, partial(verdicts.share, caller, key, ttl, ask))


async def generate_while_triaging(request: ChatRequest, found: Undecided, policy: Policy, upstream: Upstream) -> Reply:
    """A model's answer, which may have been started as a draft before the verdict was known."""
    draft = drafting(request, found.ask, policy, upstream)
    try:
        verdict = await found.get_verdict()
        chosen = route(found.facts, verdict, policy)
        reply = (await draft.take(chosen) if draft else None) or await upstream.send(request, chosen, policy)
        made = Decision(found.facts, verdict, chosen)
        if draft:
            made = Decision(found.facts, verdict, chosen, draft.outcome, draft.wasted, draft.won)
        return reply.decided(made, waited=verdict.seconds)
    finally:
        if draft:
            await draft.drop()
