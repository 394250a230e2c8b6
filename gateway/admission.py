"""May this caller ask now?"""

import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Self

from gateway.errors import Forbidden, Overloaded, RateLimited, Unauthorized
from gateway.policy import Callers, Plan, Policy
from gateway.pricing import claim, limits_of, lines, plan_of
from gateway.store import NANO, Admitted, KeyRecord, Limits, Store
from gateway.types import Caller, ChatRequest, Headers, Own, Reply, Standing

BELIEVED = 1.0  # seconds that a key record is believed without asking the store again
REMEMBERED = 4096  # records kept in process, and as many unknown ids
SHORTEST_KEY = 24  # characters of the key from the environment
CODES = {"concurrency": "concurrency_limit_exceeded", "money": "insufficient_quota"}
PREFIX = "sk-tg-"
ID_LENGTHS = range(8, 33)
NO_HASH = "0" * 64


class Keys:
    """Whose key is this?   Records come from the store and are believed for BELIEVED seconds, unknown ids too.

    `raw` is one more key, of caller "default" (ValueError below SHORTEST_KEY characters). `everyone`: no key is asked
    for, all callers are "anonymous". While the store does not answer, the last known record holds, however old.
    """

    def __init__(self, store: Store, raw: str | None = None, everyone: bool = False) -> None:
        if raw is not None and len(raw) < SHORTEST_KEY:
            raise ValueError(f"GATEWAY_API_KEY has {len(raw)} characters; at least {SHORTEST_KEY} are needed")
        self.store = store
        self.raw = raw
        self.everyone = everyone
        self._known: OrderedDict[str, tuple[float, KeyRecord]] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()

    async def record(self, key_id: str) -> KeyRecord | None:
        """Raises Overloaded when the store does not answer and the id was never seen."""
        now = time.monotonic()
        known = self._known.get(key_id)
        if known is not None and known[0] > now:
            return known[1]
        if self._unknown.get(key_id, 0.0) > now:
            return None
        try:
            found = await self.store.key(key_id)
        except Overloaded:
            if known is None:
                raise
            return known[1]
        return self._keep(key_id, found, now + BELIEVED)

    def _keep(self, key_id: str, found: KeyRecord | None, until: float) -> KeyRecord | None:
        self._known.pop(key_id, None)
        self._unknown.pop(key_id, None)
        if found is None:
            self._unknown[key_id] = until
        else:
            self._known[key_id] = (until, found)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if len(self._unknown) > REMEMBERED:
            self._unknown.popitem(last=False)
        return found


class OverLimit(RateLimited):
    """A limit of the caller (`limit`) is used up; its headers tell the limits, too. More money comes with no retry."""

    def __init__(self, message: str, found: Admitted, limits: Limits) -> None:
        self.limit = found.refused_by or "requests"
        super().__init__(message, code=CODES.get(self.limit), retry_after=found.retry_after)
        self._limits = limit_headers(found, limits)
        if self.limit == "money":
            self.type, self.should_retry = "insufficient_quota", False

    def headers(self) -> Headers:
        return [*super().headers(), *self._limits]


@dataclass(slots=True)
class Admission:
    """A request that may go on; when the last of its holders is done, what it used takes the place of what it held.

    `entry` is what the cache held under the key that was looked up. `headers` are the caller's limits (x-ratelimit-*).
    The block that opened it is one holder; a reply that it keeps, and an answer on its way to several, are others.
    """

    request: ChatRequest
    entry: bytes | None
    standing: Standing
    headers: Headers
    policy: Policy
    store: Store
    lease: str | None
    holders: int = 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def keep(self, reply: Reply) -> Reply:
        """The reply holds the admission until it is closed, and tells the caller's limits."""
        reply.headers = [*reply.headers, *self.headers]
        return self._held(reply)

    async def through(self, make: Callable[[], Awaitable[Reply]]) -> Reply:
        """`make`'s reply, which holds the admission until it is closed: it may outlive the caller who asked first."""
        self.holders += 1
        try:
            return self._held(await make())
        finally:
            await self.close()

    def _held(self, reply: Reply) -> Reply:
        inner, leaving = reply.shut, [self.close]
        self.holders += 1

        async def shut() -> None:
            try:
                await inner()
            finally:
                if leaving:
                    await leaving.pop()()

        reply.shut = shut
        return reply

    async def close(self) -> None:
        """One holder is done. Safe in a task that is being cancelled: the last one settles in any case."""
        self.holders -= 1
        if self.holders > 0 or self.lease is None:
            return
        lease, self.lease = self.lease, None
        used, first = lines(self.request, self.policy), next(iter(self.policy.tiers))
        above = any(line.kind == "answer" and line.tier != first for line in used)
        await self.store.settle(self.request.caller.id, lease, used, above)


async def identify(authorization: str | None, keys: Keys, callers: Callers) -> Caller:
    """The caller who sent this Authorization header. Raises Unauthorized, Overloaded when nobody can tell,
    Forbidden when the policy does not have the key's plan.
    """
    secret = await keys.store.secret()
    if keys.everyone:
        return _caller("anonymous", "anonymous", None, secret, callers)
    presented = _bearer(authorization)
    digest = key_hash(secret, presented)
    if keys.raw is not None and hmac.compare_digest(digest, key_hash(secret, keys.raw)):
        return _caller("default", "default", None, secret, callers)
    key_id = _key_id(presented)
    record = None if key_id is None else await keys.record(key_id)
    same = hmac.compare_digest(digest, NO_HASH if record is None else record.hash)
    if record is None or not same or record.revoked is not None:
        raise Unauthorized("Incorrect API key provided.")
    if record.expires is not None and record.expires <= time.time():
        raise Unauthorized("This API key has expired.", code="expired_api_key")
    own = Own(record.requests_per_minute, record.tokens_per_minute, record.usd, record.may)
    return replace(_caller(record.id, record.name, record.plan, secret, callers), own=own)


async def admit(request: ChatRequest, recall: bytes | None, policy: Policy, store: Store) -> Admission:
    """Counts the request, holds what it may use at most, looks `recall` up in the caller's cache: one round trip.

    A hit (`entry` is not None) holds nothing. Raises OverLimit.
    """
    caller = request.caller
    plan = plan_of(caller, policy)
    limits = limits_of(plan, policy)
    claimed = claim(request, policy.reach(caller.plan, caller.own.may), policy)
    found = await store.admit(caller.id, limits, recall, claimed)
    if found.refused_by:
        raise OverLimit(told(found, limits), found, limits)
    standing = stands(found, plan)
    headers = limit_headers(found, limits) + budget_headers(standing)
    return Admission(request, found.entry, standing, headers, policy, store, found.lease)


def told(found: Admitted, limits: Limits) -> str:
    """What a refused caller is told."""
    if found.refused_by == "tokens":
        return f"Rate limit reached for tokens per minute: limit {limits.tokens_per_minute}."
    if found.refused_by == "concurrency":
        return f"Too many requests at the same time: limit {limits.concurrency}."
    if found.refused_by == "money":
        return "The budget of this API key does not cover what this request may cost; max_tokens bounds that."
    return f"Rate limit reached for requests per minute: limit {found.limit}."


def stands(found: Admitted, plan: Plan) -> Standing:
    budget = plan.budget
    if not budget:
        return Standing(capped=found.capped)
    used = min(1.0, found.money / (budget.usd * NANO))
    warned = "warn" if budget.warn is not None and used >= budget.warn else None
    return Standing(used, "flash_only" if found.capped == "budget" else warned, found.capped)


def budget_headers(standing: Standing) -> Headers:
    """x-budget tells what follows from the budget (warn, flash_only) once something does, and x-budget-used why."""
    if not standing.budget:
        return []
    return [(b"x-budget", standing.budget.encode()), (b"x-budget-used", b"%.3f" % standing.budget_used)]


def limit_headers(found: Admitted, limits: Limits) -> Headers:
    """x-ratelimit-{limit,remaining,reset}-requests, and -tokens where they are limited; reset is an OpenAI duration
    until the whole limit is free, if what is held is used."""
    headers = [
        (b"x-ratelimit-limit-requests", b"%d" % found.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % found.remaining),
        (b"x-ratelimit-reset-requests", duration(found.reset).encode()),
    ]
    most = limits.tokens_per_minute
    if most is None:
        return headers
    return [
        *headers,
        (b"x-ratelimit-limit-tokens", b"%d" % most),
        (b"x-ratelimit-remaining-tokens", b"%d" % max(0, most - found.tokens.used)),
        (b"x-ratelimit-reset-tokens", duration(found.tokens.reset).encode()),
    ]


def duration(seconds: float) -> str:
    """As OpenAI writes it, rounded up to a millisecond: "12ms", "1.5s", "6m0s", "1h0m0s"."""
    milliseconds = max(0, -int(-seconds * 1000 // 1))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    shown = f"{rest / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown


def new_key(secret: bytes, name: str, plan: str | None) -> tuple[str, KeyRecord]:
    """A key of 256 random bits, and the record to store; the key itself is in no store. `secret` is the store's."""
    key_id = secrets.token_hex(6)
    key = f"{PREFIX}{key_id}-{secrets.token_urlsafe(32)}"
    return key, KeyRecord(key_id, key_hash(secret, key), name, plan, time.time())


def key_hash(secret: bytes, key: str) -> str:
    return hmac.digest(secret, key.encode("utf-8", "backslashreplace"), "sha256").hex()


def _caller(caller_id: str, name: str, plan: str | None, secret: bytes, callers: Callers) -> Caller:
    plan = callers.default.plan if plan is None else plan
    if plan not in callers.plans:
        raise Forbidden(f"The plan of this API key, {plan}, is not in the policy.", code="unknown_plan")
    salt = urlsafe_b64encode(hmac.digest(secret, b"salt" + caller_id.encode(), "sha256")).rstrip(b"=").decode()
    return Caller(caller_id, name, plan, salt)


def _bearer(authorization: str | None) -> str:
    if authorization is None:
        raise Unauthorized("You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("The Authorization header is malformed. Send 'Authorization: Bearer YOUR_KEY'.")
    return key.strip()


def _key_id(key: str) -> str | None:
    """The look-up id of a key in our form."""
    key_id, _, secret = key.removeprefix(PREFIX).partition("-")
    if not key.startswith(PREFIX) or not secret or len(key_id) not in ID_LENGTHS:
        return None
    return key_id
