"""Which caller does an API key belong to?"""

import dataclasses
import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.errors import Forbidden, Overloaded, Unauthorized
from gateway.keyfile import KeyFile, window_problem
from gateway.policy import Callers, Policy, seconds
from gateway.store import KeyRecord, Store
from gateway.types import Caller, Own

BELIEVED = 0.6  # seconds for which a record is cached: even after a slow look-up a revoked key is refused within one
REMEMBERED = 4096  # records kept in process, and as many unknown ids
PREFIX = "sk-tg-"
ID_LENGTHS = range(8, 33)
LONGEST_NAME = 128  # characters
ADMIN = "admin"  # the id of the admin key's record; too short to be the id of a caller's key
NO_HASH = "0" * 64
OPEN = [field.name for field in dataclasses.fields(KeyRecord) if not field.name.endswith("hash")]
_SHOWN = "Send 'Authorization: Bearer YOUR_KEY' or 'x-api-key: YOUR_KEY'."


class Identified(msgspec.Struct, frozen=True):
    """The caller that a key belongs to, and what that was concluded from; it holds until one of these changes, and at
    most until `until` (Unix seconds). `record` is None for the callers "default" and "anonymous", who have none."""

    caller: Caller
    record: KeyRecord | None
    secret: bytes
    callers: Callers
    until: float | None = None


class Keys:
    """The records of API keys: from `file`, else from the store. What the store says of an id (that it is unknown, too)
    is cached for BELIEVED seconds; while the store does not answer, its last record is used, however old.

    `raw` is a further key, of the caller "default". `everyone`: no key is needed, all callers are "anonymous".
    """

    def __init__(
        self, store: Store, raw: str | None = None, everyone: bool = False, file: KeyFile | None = None
    ) -> None:
        self.store = store
        self.raw = raw
        self.everyone = everyone
        self.file = file
        self._known: OrderedDict[str, tuple[float, KeyRecord]] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._identified: OrderedDict[str, Identified] = OrderedDict()  # by Authorization

    async def find(self, key_id: str) -> tuple[KeyRecord | None, bytes]:
        """The record, if it is not revoked, and the secret that its hash is keyed with. Raises Overloaded."""
        held = self.file.find(key_id) if self.file else None
        found, secret = held or (await self.record(key_id), await self.store.secret())
        return None if found is None or found.revoked is not None else found, secret

    async def record(self, key_id: str) -> KeyRecord | None:
        """The store's record of the id. Raises Overloaded when the store does not answer and no record of it is
        cached."""
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

    def known(self, authorization: str | None, callers: Callers) -> Caller | None:
        """The caller of this Authorization header as identified before, if nothing that this was concluded from has
        changed: it saves two hashes. None: ask `identify`."""
        identified = self._identified.get("" if self.everyone else authorization or "")
        if identified is None or identified.callers is not callers or (identified.until and _over(identified.until)):
            return None
        secret = self.store.known_secret if identified.record is None else self._secret(identified.record)
        return identified.caller if identified.secret == secret else None

    def _secret(self, record: KeyRecord) -> bytes | None:
        """The secret of a record's hash, if file or cache still have this record; else None. The store is not asked."""
        held = self.file.find(record.id) if self.file else None
        if held:
            return held[1] if held[0] is record else None
        known = self._known.get(record.id)
        believed = known is not None and known[1] is record and known[0] > time.monotonic()
        return self.store.known_secret if believed else None

    def identified(self, authorization: str) -> Identified | None:
        """What was found for this header before, whether or not it still holds."""
        return self._identified.get(authorization)

    def remember(self, authorization: str, identified: Identified) -> Identified:
        """Cache what was found. `authorization` is normalised, so that a key takes one place; "" where no key is
        needed."""
        self._identified[authorization] = identified
        if len(self._identified) > REMEMBERED:
            self._identified.popitem(last=False)
        return identified

    def _keep(self, key_id: str, found: KeyRecord | None, until: float) -> KeyRecord | None:
        self._known.pop(key_id, None)
        if found is None:
            self._unknown[key_id] = until
        else:
            self._known[key_id] = (until, found)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if len(self._unknown) > REMEMBERED:
            self._unknown.popitem(last=False)
        return found


def credentials(headers: Mapping[str, str]) -> str | None:
    """The request's Authorization header, or x-api-key, which Anthropic's SDKs send, in its form; None: neither."""
    key = headers.get("x-api-key")
    return headers.get("authorization") or (None if key is None else f"Bearer {key}")


def refuse_foreign(headers: Mapping[str, str], keys: Keys, origins: Collection[str]) -> None:
    """Where no key is needed: raises Forbidden for a cross-origin request from a browser, unless its origin is among
    `origins` (`*`: any). CORS alone would not help: the browser sends the request, and keeps only the answer back."""
    origin = headers.get("origin") if keys.everyone else None
    if origin is None or origin in origins or "*" in origins:
        return
    if origin.partition("://")[2] != headers.get("host"):
        told = "A page from elsewhere may not ask here: no key is asked for, and GATEWAY_CORS_ORIGINS does not name it."
        raise Forbidden(told, code="origin_not_allowed")


async def identify(authorization: str | None, keys: Keys, callers: Callers) -> Caller:
    """The caller who sent this Authorization header. Raises Unauthorized, Overloaded when nobody can tell,
    Forbidden when the policy does not have the key's plan.
    """
    authorization = "" if keys.everyone else f"Bearer {bearer(authorization)}"
    known = keys.known(authorization, callers)
    if known:
        return known
    found = await _identified(authorization, keys, callers)
    if _over(found.until):
        raise Unauthorized("This API key has expired.", code="expired_api_key")
    return keys.remember(authorization, found).caller


async def _identified(authorization: str, keys: Keys, callers: Callers) -> Identified:
    presented = authorization.removeprefix("Bearer ")
    secret = await keys.store.secret()
    if keys.everyone:
        return Identified(_caller("anonymous", "anonymous", None, secret, callers), None, secret, callers)
    if keys.raw is not None and hmac.compare_digest(key_hash(secret, presented), key_hash(secret, keys.raw)):
        return Identified(_caller("default", "default", None, secret, callers), None, secret, callers)
    key_id = id_of(presented)
    record, secret = (None, secret) if key_id is None else await keys.find(key_id)
    before = keys.identified(authorization)
    same = before is not None and (before.record, before.secret) == (record, secret)
    until = before.until if before and same else _until(presented, record, secret)
    if record is None:
        raise Unauthorized("Incorrect API key provided.")
    limits = record.requests_per_minute, record.tokens_per_minute, record.usd, record.window
    own = Own(*limits, record.may, record.explain)
    caller = _caller(record.id, record.name, record.plan, secret, callers)
    return Identified(replace(caller, own=own), record, secret, callers, until)


def new_key(secret: bytes, name: str, plan: str | None = None, **own: Any) -> tuple[str, KeyRecord]:
    """A key of 256 random bits, and the record to keep; the key itself is kept nowhere. `secret` is the keeper's;
    `own` are other fields of the record.
    """
    key_id = secrets.token_hex(6)
    key = f"{PREFIX}{key_id}-{secrets.token_urlsafe(32)}"
    return key, KeyRecord(key_id, key_hash(secret, key), name, plan, time.time(), **own)


def changed(record: KeyRecord, **fields: Any) -> KeyRecord:
    """The record with these fields; its own dollars take their window along, which the plan's would have else. Raises
    ValueError for the admin key, and for one that is revoked: it stays so."""
    if record.id == ADMIN or record.revoked is not None:
        raise ValueError("no active key of a caller has this id")
    taken = record.usd is not None and fields.get("usd", record.usd) is None
    return dataclasses.replace(record, **({"window": None} if taken else {}) | fields)


def rotation(secret: bytes, key_id: str, keep: str | None) -> tuple[str, Callable[[KeyRecord], KeyRecord]]:
    """Another key for the same caller, and the change of the record; the one before counts for the time `keep` more,
    such as "1d". Raises ValueError."""
    key, until = f"{PREFIX}{key_id}-{secrets.token_urlsafe(32)}", expiry(keep)

    def change(record: KeyRecord) -> KeyRecord:
        old = None if until is None else record.hash
        return changed(record, hash=key_hash(secret, key), old_hash=old, old_until=until)

    return key, change


def as_revoked(record: KeyRecord) -> KeyRecord:
    """Revoking twice keeps the first time."""
    return record if record.revoked is not None else dataclasses.replace(record, revoked=time.time())


def new_admin_key(secret: bytes) -> tuple[str, KeyRecord]:
    """As new_key, for who administers; its record takes the place of another admin key's."""
    key = f"{PREFIX}{ADMIN}-{secrets.token_urlsafe(32)}"
    return key, KeyRecord(ADMIN, key_hash(secret, key), ADMIN, None, time.time())


def expiry(expires: str | None) -> float | None:
    """Unix seconds of a time from now such as "30d". Raises ValueError."""
    return None if expires is None else time.time() + seconds(expires)


def key_problem(policy: Policy | None, given: Mapping[str, Any]) -> str | None:
    """What is wrong with the name, window, plan or tiers that a key is given, by the names of a record's fields; None:
    nothing. Without a policy, plan and tiers are not checked."""
    name, plan, wrong = given.get("name"), given.get("plan"), window_problem(given.get("window"))
    if name is not None and not (name.isprintable() and 0 < len(name) <= LONGEST_NAME):
        return f"a name is 1 to {LONGEST_NAME} printable characters"
    if wrong or policy is None:
        return wrong
    if plan is not None and plan not in policy.callers.plans:
        return f"no plan is named {plan}: {', '.join(policy.callers.plans)}"
    wrong = next((tier for tier in given.get("may") or () if tier not in policy.tiers), None)
    return None if wrong is None else f"no tier is named {wrong}: {', '.join(policy.tiers)}"


def expired(record: KeyRecord) -> bool:
    return _over(record.expires)


def _over(until: float | None) -> bool:
    return until is not None and until <= time.time()


def shown(record: KeyRecord) -> dict[str, Any]:
    """The record without its hashes."""
    return {name: getattr(record, name) for name in OPEN}


def _until(presented: str, record: KeyRecord | None, secret: bytes) -> float | None:
    """Until when the key lets its caller in, None: for ever. Raises Unauthorized where it is not the record's."""
    if key_matches(presented, record, secret):
        return record.expires if record else None
    if record and record.old_hash and hmac.compare_digest(key_hash(secret, presented), record.old_hash):
        return min(end for end in (record.old_until or 0.0, record.expires) if end is not None)
    raise Unauthorized("Incorrect API key provided.")


def key_matches(presented: str, record: KeyRecord | None, secret: bytes) -> bool:
    """Whether the key is the record's, compared in constant time; `secret` keys the record's hash."""
    return hmac.compare_digest(key_hash(secret, presented), NO_HASH if record is None else record.hash)


def key_hash(secret: bytes, key: str) -> str:
    return hmac.digest(secret, key.encode("utf-8", "backslashreplace"), "sha256").hex()


def _caller(caller_id: str, name: str, plan: str | None, secret: bytes, callers: Callers) -> Caller:
    plan = callers.default.plan if plan is None else plan
    if plan not in callers.plans:
        raise Forbidden(f"The plan of this API key, {plan}, is not in the policy.", code="unknown_plan")
    return Caller(caller_id, name, plan, _salt(secret, caller_id))


@lru_cache(maxsize=REMEMBERED)
def _salt(secret: bytes, caller_id: str) -> str:
    return urlsafe_b64encode(hmac.digest(secret, b"salt" + caller_id.encode(), "sha256")).rstrip(b"=").decode()


def bearer(authorization: str | None) -> str:
    """The key in an Authorization header. Raises Unauthorized."""
    if authorization is None:
        raise Unauthorized(f"You didn't provide an API key. {_SHOWN}")
    scheme, _, rest = authorization.partition(" ")
    key = rest.strip()
    if not key or scheme.lower() != "bearer":
        raise Unauthorized(f"The Authorization header is malformed. {_SHOWN}")
    return key


def id_of(key: str) -> str | None:
    """The look-up id of a key in our form."""
    key_id, _, secret = key.removeprefix(PREFIX).partition("-")
    if not key.startswith(PREFIX) or not secret or len(key_id) not in ID_LENGTHS:
        return None
    return key_id
