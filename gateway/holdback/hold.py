"""Which tier answers if the start of an answer is weak, or the answer fails there?"""

import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from gateway.errors import UpstreamFailed, UpstreamTimeout
from gateway.fields import Fields
from gateway.holdback.opening import Opening, unprobed
from gateway.holdback.signs import doubtful, figures, over, shown
from gateway.policy import Holdback, Policy
from gateway.reply import Reply
from gateway.routing import lacks, reachable
from gateway.splice import extra_logprobs, holdback_of
from gateway.types import Bill, ChatRequest, Decision, Facts, Held, Route
from gateway.upstream import Upstream
from gateway.wording import Wording

Send = Callable[[Route], Awaitable[Reply]]


async def hold(request: ChatRequest, reply: Reply, policy: Policy, upstream: Upstream) -> Reply:
    """The reply, once its start has been found good or the waiting time is over; else the reply of another tier. Its
    holder closes it.

    Everything the reply yields is from one answer: nothing of an abandoned answer reaches the caller, nor do
    log-probabilities that were requested only to judge it.
    """
    rules, decision = holdback_of(request, reply.tier, policy), reply.decision
    if not rules or not decision or reply.status != 200:
        return reply
    opening = opened(request, reply, policy)
    if not may_escalate(reply.tier, decision.facts, decision.route.tiers[0], rules, policy):
        return reply

    async def send(route: Route) -> Reply:
        other = await upstream.send(request, route, policy)
        if extra_logprobs(request, other.tier, policy):
            opened(request, other, policy)
        return other

    try:
        weak, why, seen = await judged(opening, reply.stream, rules, request.fields)
        reply.waited += opening.waited
        other = await escalated(request, reply, rules.to, send) if weak else None
    except UpstreamFailed as refusal:
        reply.waited += opening.waited
        kind = "first_byte" if isinstance(refusal, UpstreamTimeout) else "5xx"
        other = await failed_over(request, reply, refusal, send if kind in policy.failover.on else None)
        return settled(other, decision, Held("broken", kind, opening.waited))
    except BaseException:
        await reply.close()
        raise
    if other:
        return settled(other, decision, Held("escalated", weak or "", opening.waited, seen))
    return settled(reply, decision, Held("kept", "unanswered" if weak else why, opening.waited, seen))


def may_escalate(tier: str, facts: Facts, first: str, rules: Holdback, policy: Policy) -> bool:
    """Whether `rules.to` may answer in place of `tier`.

    Not where the caller chose the tier itself, may not use the other one (plan, budget or share), or needs something
    that the other one lacks; nor after a failover (`tier` is not the `first` of the route), maybe from that very tier.
    """
    free = facts.wish is None and tier == first
    return free and rules.to in reachable(facts, policy) and lacks(facts, policy.tiers[rules.to]) is None


async def judged(
    opening: Opening, stream: bool, rules: Holdback, fields: Fields
) -> tuple[str | None, str, dict[str, float]]:
    """Reads the answer until its start is over or a sign of weakness shows. Returns that sign (None: it is good), what
    ended the start (tokens | wait | end), and its figures. Raises UpstreamFailed when the answer fails before that.
    """
    start, end = Wording(), None
    while True:
        piece = await opening.more(None if end is None else max(0.0, end - time.perf_counter()))
        if piece is None:
            return doubtful(figures(start), rules.escalate_when), "wait", figures(start)
        start.see(piece, stream)
        if start.failed:
            raise UpstreamFailed("The model server failed before it answered.")
        sign, why = shown(start, rules.escalate_when, fields), over(start, rules)
        if sign or why:
            told = figures(start)
            return sign or doubtful(told, rules.escalate_when), why or "", told
        if end is None and start.tokens:
            end = time.perf_counter() + rules.wait


async def escalated(request: ChatRequest, reply: Reply, to: str, send: Send) -> Reply | None:
    """The answer of tier `to`; `reply` is then closed. None: `to` gave no answer. Only then is the caller charged for
    `reply`, and not where it leaves before that is known, since it pays for what `to` did."""
    start = bill(request, reply)
    start.kind = "draft"
    other = await send(Route((to,), reply.route.rule if reply.route else "", "escalated"))
    try:
        if other.status != 200:
            start.kind = "answer"
            reply.waited += other.waited
            await other.close()
            return None
        other.waited += reply.waited
        await reply.close()
    except BaseException:
        await other.close()
        raise
    return other


async def failed_over(request: ChatRequest, reply: Reply, refusal: UpstreamFailed, send: Send | None) -> Reply:
    """The answer of the remaining tiers of the route, in place of one that failed; a reply with the `refusal` if there
    are none, or no `send`."""
    bill(request, reply).lost = True
    await reply.close()
    route = reply.route
    rest = Route(route.tiers[1:], route.rule, route.reason) if route else None
    other = await send(rest) if send and rest and rest.tiers else Reply.refused(refusal)
    other.waited += reply.waited
    return other


def opened(request: ChatRequest, reply: Reply, policy: Policy) -> Opening:
    """Takes over the reply's pieces, and removes log-probabilities that the caller did not ask for."""
    probed = bool(extra_logprobs(request, reply.tier, policy))
    return Opening(reply, partial(unprobed, stream=reply.stream) if probed else bytes)


def settled(reply: Reply, decision: Decision, held: Held) -> Reply:
    """The reply, with the outcome of hold-back in its decision. A kept draft that was then abandoned counts as
    wasted."""
    draft = decision.draft if held.outcome == "kept" or decision.draft == "none" else "wasted"
    route = Route((reply.tier,), decision.route.rule, "escalated") if held.outcome == "escalated" else decision.route
    reply.decision, reply.route = msgspec.structs.replace(decision, draft=draft, held=held), route
    return reply


def bill(request: ChatRequest, reply: Reply) -> Bill:
    """The bill of the call that gave the reply."""
    return next(bill for bill in request.bills if bill.usage is reply.usage)
