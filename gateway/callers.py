"""Whose key is this?"""

import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections import OrderedDict
from dataclasses import replace
from typing import NamedTuple

from gateway.errors import Forbidden, Overloaded, Unauthorized
from gateway.policy import Callers
from gateway.store import KeyRecord, Store
from gateway.types import Caller, Own

BELIEVED = 1.0  # seconds that a key record is believed without asking the store again
REMEMBERED = 4096  # records kept in process, and as many unknown ids
SHORTEST_KEY = 24  # characters of the key from the environment
PREFIX = "sk-tg-"
ID_LENGTHS = range(8, 33)
NO_HASH = "0" * 64


class Seen(NamedTuple):
    """Who sent a header, until when that is believed (time.monotonic()), and what it was decided by."""

    caller: Caller
    until: float
    secret: bytes
    callers: Callers


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
        self._seen: OrderedDict[str | None, Seen] = OrderedDict()

    def until(self, key_id: str, record: KeyRecord) -> float:
        """Until when a record that was given is believed (time.monotonic()); not beyond its key's end."""
        believed = self._known.get(key_id, (0.0,))[0]
        return believed if record.expires is None else min(believed, time.monotonic() + record.expires - time.time())

    def seen(self, authorization: str | None, secret: bytes, callers: Callers) -> Caller | None:
        """Who was found to have sent this header within BELIEVED seconds, if the secret and the plans still hold."""
        seen = self._seen.get(authorization)
        same = seen and seen.callers is callers and seen.secret == secret and seen.until > time.monotonic()
        return seen.caller if seen and same else None

    def keep(self, authorization: str | None, seen: "Seen") -> Caller:
        """Remember who sent a header that was found good."""
        self._seen[authorization] = seen
        self._seen.move_to_end(authorization)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return seen.caller

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


async def identify(authorization: str | None, keys: Keys, callers: Callers) -> Caller:
    """The caller who sent this Authorization header. Raises Unauthorized, Overloaded when nobody can tell,
    Forbidden when the policy does not have the key's plan.
    """
    secret = await keys.store.secret()
    authorization = None if keys.everyone else authorization
    if caller := keys.seen(authorization, secret, callers):
        return caller
    caller, until = await _identified(authorization, keys, callers, secret)
    return keys.keep(authorization, Seen(caller, until, secret, callers))


async def _identified(authorization: str | None, keys: Keys, callers: Callers, secret: bytes) -> tuple[Caller, float]:
    """The caller, and until when that is believed (time.monotonic()). Raises as `identify` does."""
    until = time.monotonic() + BELIEVED
    if keys.everyone:
        return _caller("anonymous", "anonymous", None, secret, callers), until
    presented = _bearer(authorization)
    digest = key_hash(secret, presented)
    if keys.raw is not None and hmac.compare_digest(digest, key_hash(secret, keys.raw)):
        return _caller("default", "default", None, secret, callers), until
    key_id = _key_id(presented)
    record = None if key_id is None else await keys.record(key_id)
    same = hmac.compare_digest(digest, NO_HASH if record is None else record.hash)
    if record is None or not same or record.revoked is not None:
        raise Unauthorized("Incorrect API key provided.")
    if record.expires is not None and record.expires <= time.time():
        raise Unauthorized("This API key has expired.", code="expired_api_key")
    own = Own(record.requests_per_minute, record.tokens_per_minute, record.usd, record.may)
    return replace(_caller(record.id, record.name, record.plan, secret, callers), own=own), keys.until(
        key_id or "", record
    )


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
