"""Which tier did this conversation use last?

A session is kept in the store for the policy's `sessions.ttl` after each answer, under the caller's id and a keyed hash
of what identifies the conversation. It holds tiers, a count and a time, no text. A request waits for it for at most
BUDGET seconds, and is then treated as the first of a conversation.

A session counts only where a verdict would. A caller's wish and a rule that names one tier take precedence over it, and
over all of these what the caller may use, its budget and share, and what a tier can do (`routing.permit`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from gateway.errors import UNREADABLE
from gateway.policy import Policy, Price
from gateway.reply import Reply
from gateway.store import Store
from gateway.turns import SessionKeys, continues
from gateway.types import ChatRequest, Decision, Facts, Session

BUDGET = 0.05  # seconds that the store has to return or to keep a session
OUTPUT_TOKENS = 500  # assumed length of an answer, in tokens
FOLLOWED = "session"  # the reason of a route that the conversation's last tier decided
CALLER = "caller"  # the rule of a route that the caller asked for


class StoredSession(msgspec.Struct, array_like=True, frozen=True):
    """A session in the store; `at` is Unix seconds."""

    tier: str
    level: str
    at: float
    turns: int


_STORED = msgspec.msgpack.Decoder(StoredSession)


def recalling(request: ChatRequest, keys: SessionKeys, store: Store) -> "asyncio.Task[Session | None] | None":
    """Starts reading the session of the request's conversation while the request goes on; None: it has none yet.

    The task ends within BUDGET seconds, with None for a session that is unknown or came too late.
    """
    return asyncio.create_task(_recall(request, keys.known, store)) if keys.known else None


async def _recall(request: ChatRequest, key: bytes, store: Store) -> Session | None:
    try:
        async with asyncio.timeout(BUDGET):
            data = await store.recall(request.caller.id, key)
        kept = _STORED.decode(data) if data else None
    except (TimeoutError, *UNREADABLE):
        return None
    if kept is None:
        return None
    return Session(kept.tier, kept.level, max(0.0, time.time() - kept.at), kept.turns, continues(request.fields))


def follow(reply: Reply, keys: SessionKeys, request: ChatRequest, policy: Policy, store: Store) -> Reply:
    """Stores, while the reply is relayed, that its tier answered the conversation; closing the reply waits for
    that, for at most BUDGET seconds. Returns `reply`.

    Not stored: errors, answers without a decision (from the cache), and tiers that the caller itself asked for.
    """
    decision = reply.decision
    if decision is None or reply.status != 200 or decision.route.rule == CALLER:
        return reply
    keeping = asyncio.create_task(_remember(request, keys.kept, after(decision, reply.tier, policy), policy, store))
    reply.shut = _both(reply.shut, keeping)
    return reply


def _both(shut: Callable[[], Awaitable[None]], keeping: "asyncio.Task[None]") -> Callable[[], Awaitable[None]]:
    async def both() -> None:
        try:
            await shut()
        finally:
            await keeping

    return both


async def _remember(request: ChatRequest, key: bytes, session: Session, policy: Policy, store: Store) -> None:
    if not policy.sessions:
        return
    value = msgspec.msgpack.encode(StoredSession(session.tier, session.level, time.time(), session.turns))
    try:
        async with asyncio.timeout(BUDGET):
            await store.remember(request.caller.id, key, value, policy.sessions.ttl)
    except TimeoutError:
        return


def session_tier(facts: Facts, policy: Policy, tier: str) -> str:
    """The tier for a request that a verdict would send to `tier`, once its conversation's session is considered.

    A tool's result goes where its turn went (`triage.unit: user_turn`). Otherwise `sessions.stay` decides:
        until_escalated   never below the level decided for the conversation; a verdict may raise it
        turn              each user turn goes where its verdict says, but not down when that costs more than it saves
        always            the level that was decided first
    """
    rules, session = policy.sessions, facts.session
    if not session or not rules or not {session.tier, session.level} <= policy.tiers.keys():
        return tier
    if session.continues and policy.triage.unit == "user_turn":
        return session.tier
    if rules.stay == "always":
        return session.level
    rank = tuple(policy.tiers).index
    if rules.stay == "until_escalated":
        return max(tier, session.level, key=rank)
    here, there = policy.tiers[session.tier].price, policy.tiers[tier].price
    stays = rank(tier) < rank(session.tier) and saved(here, there, (facts.context, facts.max_tokens), session.turns) < 0
    return session.tier if stays else tier


def saved(here: Price, there: Price, tokens: tuple[int, int | None], turns: int) -> float:
    """US dollars that a conversation saves by moving from the tier with prices `here` to the one with prices `there`.

    With C tokens of context, each further request pays for C cached tokens and, say, A tokens of answer:
        by staying   n * (C * here.cached + A * here.output)
        by moving    n * (C * there.cached + A * there.output) + C * (there.input - there.cached)
    as the first request `there` finds nothing in the KV cache. The rest of the conversation, n, is assumed to be as
    long as it has been on its tier: `turns`, and at least this one. What each turn adds is new on either tier and left
    out. The cost of moving is an upper bound: `there` may have the conversation cached, from earlier or from triage.
    """
    context, longest = tokens
    rest, answer = max(1, turns), OUTPUT_TOKENS if longest is None else min(longest, OUTPUT_TOKENS)
    warm = context * (here.cached_input_per_m - there.cached_input_per_m)
    made = answer * (here.output_per_m - there.output_per_m)
    cold = context * (there.input_per_m - there.cached_input_per_m)
    return (rest * (warm + made) - cold) / 1e6


def after(decision: Decision, tier: str, policy: Policy) -> Session:
    """The session once `tier` answers what was decided."""
    session = decision.facts.session
    turns = session.turns + (not session.continues) if session and session.tier == tier else 1
    escalated = decision.held is not None and decision.held.outcome == "escalated"
    return Session(tier, tier if escalated else _level(decision, policy), turns=turns)


def _level(decision: Decision, policy: Policy) -> str:
    """The tier that a rule or a verdict chose for the conversation. Failover, failed verdicts, exploration and the
    session itself do not count."""
    route, session, ranks = decision.route, decision.facts.session, tuple(policy.tiers)
    failed = decision.verdict is not None and decision.verdict.label is None
    likely = max(route.chances, key=lambda tier: route.chances[tier], default=route.tiers[0])
    decided = ranks[0] if failed else likely
    if not session or session.level not in ranks or not policy.sessions:
        return decided
    if failed or route.reason == FOLLOWED or policy.sessions.stay == "always":
        return session.level
    return max(session.level, decided, key=ranks.index) if policy.sessions.stay == "until_escalated" else decided
