"""Who may ask and who may administer, and can their keys be guessed?"""

import asyncio
import stat
from pathlib import Path

from gateway.doctor.finding import Finding, error, ok, warning
from gateway.doctor.process import wants_keys
from gateway.errors import Overloaded
from gateway.key_records import ADMIN, expired
from gateway.keyfile import KeyFile
from gateway.policy import Policy, PolicyError
from gateway.settings import SHORTEST_KEY, Settings, weakness
from gateway.store import KeyRecord, open_store

RANDOM = "openssl rand -hex 32"


async def keys(settings: Settings, policy: Policy | None) -> list[Finding]:
    found, records = await asyncio.to_thread(_file, settings.keys_file)
    stored = await _stored(settings)
    records += stored or []
    active = [record for record in records if record.revoked is None and not expired(record)]
    callers = [record for record in active if record.id != ADMIN]
    found += _own(settings) + _plans(callers, policy)
    if stored is None and (not settings.loopback or await wants_keys(settings)):
        told = "those in the store are not known while it does not answer"
        return [*found, warning("keys", told, "see store; nothing says that they are gone")]
    asked = settings.keys_file is not None or any(record.id != ADMIN for record in records)
    found += await _asking(settings, len(callers) + (settings.api_key is not None), asked)
    return [*found, _administering(settings, settings.admin_key is not None or len(callers) < len(active))]


def _administering(settings: Settings, known: bool) -> Finding:
    if known:
        return ok("keys", "there is an admin key")
    fix = f"tiergate keys admin, or GATEWAY_ADMIN_KEY=$({RANDOM})"
    if settings.loopback:
        return warning("keys", "there is no admin key: /admin and the page are off", fix)
    return error("keys", f"there is no admin key, and {settings.host} can be reached: it will not start", fix)


async def _asking(settings: Settings, count: int, asked: bool) -> list[Finding]:
    """`count`: keys that open something; `asked`: there are others, so a caller has to show one."""
    if count:
        return [ok("keys", f"{count} of callers")]
    fix = "tiergate keys create NAME, or GATEWAY_API_KEY"
    if asked:
        return [error("keys", "a key is asked for, and none is left that opens anything", fix)]
    if not settings.loopback:
        return [error("keys", f"callers need none, and {settings.host} can be reached: it will not start", fix)]
    if await wants_keys(settings):
        told = "there is none, and the gateway that serves here asks for one: they are gone, or it has other settings"
        return [warning("keys", told, fix)]
    return [warning("keys", "callers need none, since only this machine can ask", fix)]


def _own(settings: Settings) -> list[Finding]:
    """GATEWAY_API_KEY; one that is too short, and a weak admin key, are no settings at all."""
    why = None if settings.api_key is None else weakness(settings.api_key, SHORTEST_KEY)
    return [warning("keys", f"GATEWAY_API_KEY can be guessed: {why}", RANDOM)] if why else []


def _plans(callers: list[KeyRecord], policy: Policy | None) -> list[Finding]:
    if policy is None:
        return []
    strays = [one for one in callers if one.plan is not None and one.plan not in policy.callers.plans]
    return [
        error("keys", f"{one.id} ({one.name}) has the plan {one.plan}, which the policy lacks: it is refused",
              f"add the plan, or make the key anew; known: {', '.join(policy.callers.plans)}")
        for one in strays
    ]  # fmt: skip


def _file(path: Path | None) -> tuple[list[Finding], list[KeyRecord]]:
    if path is None:
        return [], []
    try:
        records = KeyFile(path).records()
    except PolicyError as wrong:
        return [
            error("keys", str(wrong.problems[0]), "correct the file, or make it by tiergate keys create --file")
        ], []
    if stat.S_IMODE(path.stat().st_mode) & (stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        return [warning("keys", f"{path} may be read or written by others", f"chmod 600 {path}")], records
    return [], records


async def _stored(settings: Settings) -> list[KeyRecord] | None:
    """Those of the shared store; None where it does not answer, which is told elsewhere."""
    if settings.redis_url in {None, "embedded"}:
        return []
    try:
        store = open_store(settings.redis_url)
    except ValueError:
        return None
    try:
        return await store.list_keys()
    except Overloaded:
        return None
    finally:
        await store.close()
