"""Do the model servers answer, are they who the policy says, and do they tell what we read?"""

import asyncio
import email.utils
import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.doctor.finding import Finding, about_tiers, error, ok, warning
from gateway.http1 import Client, Origin, TransportError, fetch
from gateway.policy import Policy, Tier
from gateway.served import LIMITS, NO_KEY, key_lines, models
from gateway.upstream import SERIES

# What balancing, rules and the page read. SGLang has no counter (the last two) before its first answer.
METRICS = tuple(f"vllm:{name}" for name in SERIES["vllm"])
SGLANG = tuple(f"sglang:{name}" for name in SERIES["sglang"][:3])
NAMES = re.compile(r"^((?:vllm|sglang):\w+)", re.MULTILINE)


class Replied(NamedTuple):
    """A server's answers: the status of /v1/models; the models listed there, each with its longest context in tokens
    (None: not told); the names of its metrics (None: it gives none); and by how many seconds its clock is ahead of ours
    (None: not told).
    """

    status: int
    models: Mapping[str, int | None]
    metrics: frozenset[str] | None
    ahead: float | None


async def asked(client: Client, policy: Policy, env: Mapping[str, str]) -> Mapping[tuple[str, str], Replied | str]:
    """The answers of every server of every tier, by tier and URL; an error's text where none came."""
    pairs = [(name, url) for name, tier in policy.tiers.items() for url in tier.replicas]
    replies = await asyncio.gather(*(_ask(client, url, policy.tiers[name], env) for name, url in pairs))
    return dict(zip(pairs, replies, strict=True))


async def _ask(client: Client, url: str, tier: Tier, env: Mapping[str, str]) -> Replied | str:
    origin, lines = Origin.parse(url), ["accept: */*", *key_lines(tier, env)]
    try:
        listed = await fetch(client, origin, "GET /v1/models", LIMITS, *lines)
        metrics = await fetch(client, origin, "GET /metrics", LIMITS, *lines) if tier.engine != "openai" else None
    except TransportError as wrong:
        return str(wrong).removeprefix(f"no connection to {origin.authority}: ")
    told = metrics.body.decode("utf-8", "replace") if metrics and metrics.status == 200 else None
    names = None if told is None else frozenset(NAMES.findall(told))
    return Replied(listed.status, models(listed.body), names, _ahead(listed.headers))


def _ahead(headers: Mapping[bytes, bytes]) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(headers[b"date"].decode()).timestamp() + 0.5 - time.time()
    except (KeyError, ValueError):
        return None


def tier_findings(
    policy: Policy, replies: Mapping[tuple[str, str], Replied | str], env: Mapping[str, str]
) -> list[Finding]:
    found: list[tuple[str, Finding]] = []
    for name, tier in policy.tiers.items():
        found += [(name, one) for url in tier.replicas for one in _server(url, tier, replies[name, url])]
        if tier.api_key_env and not env.get(tier.api_key_env):
            found.append((name, error("", f"{tier.api_key_env} is not set", f"export {tier.api_key_env}=...")))
    return about_tiers(found)


def serving(policy: Policy, replies: Mapping[tuple[str, str], Replied | str]) -> list[tuple[str, str]]:
    """The servers, by tier and URL, that can be asked a question: they accept our key and, as far as is known, serve
    the model."""
    found = []
    for (name, url), reply in replies.items():
        tier = policy.tiers[name]
        if not isinstance(reply, str) and reply.status not in NO_KEY:
            found += [(name, url)] if tier.engine == "openai" or tier.model in reply.models else []
    return found


def _server(url: str, tier: Tier, reply: Replied | str) -> list[Finding]:
    if isinstance(reply, str):
        start = "start it, or correct `replicas` (or its variable)"
        fix = "SSL_CERT_FILE=FILE has its authority" if "CERTIFICATE_VERIFY_FAILED" in reply else start
        return [error("", f"{url} does not answer: {reply}", fix)]
    if reply.status in NO_KEY:
        fix = f"correct {tier.api_key_env}" if tier.api_key_env else "name its key's variable in `api_key_env`"
        return [error("", f"{url} refuses us ({reply.status})", fix)]
    if tier.engine == "openai" and tier.model not in reply.models:
        told = f"{url} does not list {tier.model} ({reply.status}): whether it serves it is not known"
        return [warning("", told, "some servers list other models than they serve; ask it, or correct `model`")]
    if reply.status != 200:
        return [error("", f"{url}/v1/models answers {reply.status}", "is this the address of a model server?")]
    if tier.model not in reply.models:
        told = f"{url} serves {', '.join(reply.models) or 'nothing'}, not {tier.model}"
        fix = f"vllm serve ... --served-model-name {tier.model}, or correct `model`"
        return [error("", told, fix)]
    return [ok("", f"{url} serves {tier.model}"), *_context(url, tier, reply), *_metrics(url, tier, reply)]


def _context(url: str, tier: Tier, reply: Replied) -> list[Finding]:
    longest = reply.models[tier.model]
    if longest is None or longest >= tier.can.context:
        return []
    told = f"{url} takes {longest} tokens, the policy sends up to {tier.can.context}"
    return [warning("", told, f"can: {{context: {longest}}}, or a larger --max-model-len")]


def _metrics(url: str, tier: Tier, reply: Replied) -> list[Finding]:
    if tier.engine == "openai":
        return []
    if reply.metrics is None:
        told = f"{url}/metrics does not answer: its queue is not known to rules and balancing"
        fix = "let /metrics through (SGLang: --enable-metrics), or say `engine: openai` of what is neither it nor vLLM"
        return [warning("", told, fix)]
    if reply.metrics.issuperset(SGLANG):
        told = f"{url} is SGLang: a prompt of token ids outside of its vocabulary ends it for all"
        undecided = tier.engine == "vllm" and tier.can.token_ids is None
        return [warning("", told, "say `engine: sglang`, and none is sent to it")] if undecided else []
    missing: Sequence[str] = [metric for metric in METRICS if metric not in reply.metrics]
    if not missing:
        return []
    told = f"{url}/metrics lacks {', '.join(missing)}"
    return [warning("", told, "vLLM 0.12 or newer has them, without --disable-log-stats")]
