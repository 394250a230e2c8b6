"""Does the shared store answer, and is it set up for us?"""

from gateway.doctor.finding import Finding, error, ok, warning
from gateway.errors import Overloaded
from gateway.settings import Settings
from gateway.store import ServerSetup, setups, where

SLOW = 0.01  # seconds for an answer; each request waits for one


async def store(settings: Settings) -> tuple[list[Finding], list[float]]:
    """The findings, and by how many seconds each server's clock is ahead of ours."""
    url = settings.redis_url
    if url is None:
        if settings.workers > 1:
            return [error("store", f"none, and {settings.workers} workers share one", "--redis URL, or embedded")], []
        told = "this process's memory: limits, cache and keys made by /admin end with it"
        return [warning("store", told, "GATEWAY_REDIS_URL=redis://host:6379/0, if that is not wanted")], []
    if url == "embedded":
        return [ok("store", "a Valkey of its own, from start to end")], []
    place = where(url)
    try:
        found = await setups(url)
    except ValueError as wrong:
        return [error("store", str(wrong), "correct GATEWAY_REDIS_URL")], []
    except Overloaded as refusal:
        why = str(refusal.__cause__).rstrip(".")
        told = f"{place} cannot be used: {why}; limits are kept per process, budgets are refused"
        return [error("store", told, "start it, or correct GATEWAY_REDIS_URL (host, port, password, TLS)")], []
    findings = [one for server in found for one in _server(server, place)]
    return list(dict.fromkeys(findings)), [server.ahead for server in found]


def _server(server: ServerSetup, place: str) -> list[Finding]:
    found = [ok("store", f"{place} answers, version {server.version}")]
    if server.refuses:
        told = f"{place} does no work of ours: {server.refuses}; limits are kept per process, budgets are refused"
        found = [error("store", told, "room (maxmemory, disk), or the address of a primary: GATEWAY_REDIS_URL")]
    if server.evicts.startswith(("allkeys", "volatile")) and server.evicts != "volatile-ttl":
        lost = "API keys, budgets and ledgers" if server.evicts.startswith("allkeys") else "budgets and ledgers"
        told = f"{place} may evict {lost} when its memory is full ({server.evicts})"
        found.append(error("store", told, "maxmemory-policy volatile-ttl"))
    if not server.saves:
        told = f"{place} writes no append-only file: keys and the ledger end with it, or go back to the last snapshot"
        found.append(warning("store", told, "appendonly yes"))
    if server.took > SLOW:
        told = f"{place} takes {server.took * 1000:.0f} ms for an answer, which each request waits for"
        found.append(warning("store", told, "run it nearer"))
    return found
