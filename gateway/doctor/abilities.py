"""What can the model servers do?   They are asked as the start-up probe asks them, and one plain question."""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

from gateway.abilities import (
    PATIENCE,
    Outcomes,
    PlainAnswer,
    common_strategies,
    failure_text,
    for_server,
    plain_answer,
    try_strategies,
)
from gateway.doctor.finding import Finding, about_tiers, ok, warning
from gateway.http1 import Client
from gateway.policy import Policy, Tier
from gateway.telemetry import THINKS
from gateway.triage import strategy_of
from gateway.types import Strategy
from gateway.upstream import Upstream

TOLD = {"ok", "no_logprobs", "overloaded"}  # outcomes that the server's answer explains no further


class Tried(NamedTuple):
    """One server: the outcome of each strategy, what it answered where one failed, and how it answers a plain question
    with the tier's `set` (`plain`) and without it (`unset`)."""

    tier: str
    url: str
    found: Outcomes
    said: dict[Strategy, str]
    plain: PlainAnswer
    unset: PlainAnswer


async def abilities(client: Client, policy: Policy, servers: Collection[tuple[str, str]]) -> list[Finding]:
    """About `servers`, by tier and URL. Each is asked some ten short questions."""
    upstream = Upstream(client)
    try:
        all_ = await asyncio.gather(*(_try(upstream, policy, name, url) for name, url in servers))
    finally:
        await upstream.close()
    found = [(one.tier, finding) for one in all_ for finding in _server(one, policy.tiers[one.tier])]
    asked = [one for one in all_ if one.tier == policy.triage.tier]
    if asked and policy.asks:
        found.append((policy.triage.tier, _triage(policy, asked)))
    return about_tiers(found)


async def _try(upstream: Upstream, policy: Policy, name: str, url: str) -> Tried:
    one = for_server(policy, name, url)
    found = await try_strategies(one, upstream)
    if "timeout" in found.values():
        silent = PlainAnswer(refused=f"nothing within {PATIENCE:.0f} s")
        return Tried(name, url, found, {}, silent, silent)
    failed = {strategy: outcome for strategy, outcome in found.items() if outcome not in TOLD}
    said = {strategy: await failure_text(one, upstream, strategy, outcome) for strategy, outcome in failed.items()}
    unset = replace(one, tiers={**one.tiers, name: replace(one.tiers[name], set={})})
    return Tried(name, url, found, said, await plain_answer(one, upstream), await plain_answer(unset, upstream))


def _server(one: Tried, tier: Tier) -> list[Finding]:
    """What a server can do, whatever its tier is used for."""
    if one.plain.refused:
        told = f"{one.url} does not answer a plain question: {one.plain.refused}"
        return [warning("", told, "correct `model`, `engine` (vllm is sent fields of its own) or `set`")]
    can = [strategy for strategy, outcome in one.found.items() if outcome == "ok"]
    told = f"{one.url} ({tier.engine}) can be asked for a verdict by {', '.join(can) or 'nothing'}"
    cannot = [_cannot(one, strategy) for strategy in one.found if strategy not in can]
    return [ok("", "; not by ".join([told, *cannot])), ok("", f"{one.url} {_style(one)}")]


def _cannot(one: Tried, strategy: Strategy) -> str:
    said = one.said.get(strategy)
    return f"{strategy}: {one.found[strategy]}{f' ({said})' if said else ''}"


def _style(one: Tried) -> str:
    likely = "tells log-probabilities" if one.plain.logprobs else "tells no log-probabilities"
    if one.plain.thinks:
        null = "" if one.plain.content else ": content is null where max_tokens ends the thought"
        return f"{likely}, and thinks before it answers{null}"
    return f"{likely}, and " + (
        "would think, but `set` tells it not to" if one.unset.thinks else "thinks only when told to"
    )


def _triage(policy: Policy, asked: list[Tried]) -> Finding:
    """How triage asks its tier, and what is to be done where that goes wrong."""
    rules, can = policy.triage, common_strategies(one.found for one in asked)
    used = strategy_of(rules, can)
    if not can:
        thinks = any("empty" in one.found.values() and one.plain.thinks for one in asked)
        told = "triage gets a verdict by no strategy, so each one falls back"
        return warning("", told, THINKS if thinks else "correct `engine`, or rules that need no verdict")
    if used not in can:
        told = f"triage asks by {used}, which gets no verdict, so each one falls back"
        return warning("", told, f"triage.strategy: auto, which takes {can[0]}")
    if used == "json":
        told = "triage asks by json, which tells no probability: the label decides, whatever thresholds say"
        return warning("", told, _likelier(policy, asked))
    return ok("", f"triage asks by {used}{', which auto takes' if rules.strategy == 'auto' else ''}")


def _likelier(policy: Policy, asked: list[Tried]) -> str:
    """What to change to get a probability."""
    if policy.tiers[policy.triage.tier].can.json_schema and all(one.plain.logprobs for one in asked):
        return "can: {json_schema: false}: log-probabilities are told, but not with a schema"
    return "another server, or verdicts without one: then this may stay"
