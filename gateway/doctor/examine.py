"""What does `tiergate doctor` look at, in which order?"""

import asyncio
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from gateway.doctor.abilities import abilities
from gateway.doctor.clock import clock
from gateway.doctor.finding import Finding, error, ok
from gateway.doctor.keys import keys
from gateway.doctor.process import certificate, files, port
from gateway.doctor.store import store
from gateway.doctor.tiers import Replied, asked, serving, tier_findings
from gateway.http1 import Client
from gateway.policy import Policy, PolicyError
from gateway.settings import Settings
from gateway.verify import checked


async def examine(settings: Settings, file: Path, env: Mapping[str, str]) -> list[Finding]:
    """All findings, for the policy in `file`; `env` fills its variables and holds the servers' keys."""
    found, policy = policy_findings(file, env)
    times: list[float | None] = []
    with closing(Client()) as client:
        for one in with_candidate(policy):
            replies = await asked(client, one, env)
            said = tier_findings(one, replies, env) + await abilities(client, one, serving(one, replies))
            found += [told for told in said if told not in found]
            times += [reply.ahead for reply in replies.values() if isinstance(reply, Replied)]
    shared, others = await store(settings)
    found += [*shared, *clock([*times, *others]), *await keys(settings, policy), *await port(settings)]
    return [*found, *certificate(settings), *await asyncio.to_thread(files, settings)]


def with_candidate(policy: Policy | None) -> list[Policy]:
    """The policy and its candidate."""
    if policy is None:
        return []
    return [policy, policy.candidate.policy] if policy.candidate else [policy]


def policy_findings(file: Path, env: Mapping[str, str]) -> tuple[list[Finding], Policy | None]:
    try:
        policy = checked(file, env)
    except PolicyError as wrong:
        first, *more = wrong.problems
        others = f" (and {len(more)} more)" if more else ""
        return [error("policy", f"{first}{others}", f"tiergate policy check {file}")], None
    told = f"{policy}, {len(policy.tests)} tests passed"
    return [ok("policy", told)], policy
