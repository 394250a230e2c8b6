"""How does the record of an API key come about, how may it change, and what may it say?"""

import dataclasses
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from gateway.policy import Policy, seconds, window_of
from gateway.store import KeyRecord

PREFIX = "sk-tg-"
LONGEST_NAME = 128  # characters
ADMIN = "admin"  # the id of the admin key's record; too short to be the id of a caller's key
OPEN = [field.name for field in dataclasses.fields(KeyRecord) if not field.name.endswith("hash")]


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


def window_problem(window: str | None) -> str | None:
    """What is wrong with a key's own window of its budget; None: nothing."""
    try:
        if window is not None:
            window_of(window)
    except ValueError as error:
        return str(error)
    return None


def expired(record: KeyRecord) -> bool:
    return record.expires is not None and record.expires <= time.time()


def shown(record: KeyRecord) -> dict[str, Any]:
    """The record without its hashes."""
    return {name: getattr(record, name) for name in OPEN}


def key_hash(secret: bytes, key: str) -> str:
    return hmac.digest(secret, key.encode("utf-8", "backslashreplace"), "sha256").hex()
