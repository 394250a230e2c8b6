"""Which Policy follows from a valid file?"""

import re
from dataclasses import replace
from typing import get_args

from gateway.ids import fingerprint
from gateway.policy.calibrated import Calibrated
from gateway.policy.file import Policy, PolicyFile
from gateway.policy.load import Document
from gateway.policy.model import LOCAL, Reason, Tier, Triage
from gateway.policy.plans import Callers, DefaultCaller, Plan
from gateway.policy.prompts import BUILT_IN, by_id
from gateway.policy.references import mapping
from gateway.policy.rules import Rule
from gateway.score import Axes, Table


def assembled(written: PolicyFile, document: Document, found: Calibrated | None, table: Table | Axes | None) -> Policy:
    """The Policy: defaults filled in, signals compiled, and what follows from the file worked out."""
    first = next(iter(written.tiers))
    everyone = Callers(DefaultCaller("default"), {"default": Plan(may=tuple(written.tiers))})
    callers = written.callers or everyone
    whole = (document.text, found.text if found else "", table.digest if table else "")
    digest = fingerprint("".join(whole))
    return Policy(
        name=written.name,
        revision=written.revision,
        digest=digest,
        tiers=written.tiers,
        triage=filled(written.triage, first, own_threshold(document, found)),
        calibration=found.fitted.layer if found else None,
        basis=found.fitted.basis if found else None,
        table=table,
        signals={name: re.compile(pattern) for name, pattern in written.signals.items()},
        rules=written.rules,
        holdback=written.holdback,
        failover=written.failover,
        caching=written.caching,
        sessions=written.sessions,
        record=written.record,
        callers=callers,
        budget=written.budget,
        aliases=written.aliases,
        tests=written.tests,
        names=model_names(written.tiers, written.aliases),
        permitted={name: reach(plan, list(written.tiers)) for name, plan in callers.plans.items()},
        watched_signals=watched(written.rules, "signals"),
        watched_headers=watched(written.rules, "header"),
        watched_queues=queues(written),
        scored=scored(written),
        asks=any(rule.asks for rule in written.rules),
        explores=any(rule.explore for rule in written.rules),
        version=f"{written.name}@{written.revision}+{digest}",
    )


def own_threshold(document: Document, found: Calibrated | None) -> float | None:
    """The calibration's threshold, where the policy file gives none; None: the file's, or its default, counts."""
    if found is None or len(found.fitted.edges) != 1 or "threshold" in mapping(document.data, "triage"):
        return None
    return found.fitted.edges[0]


def filled(triage: Triage, first: str, threshold: float | None) -> Triage:
    return replace(
        triage,
        threshold=triage.threshold if threshold is None else threshold,
        tier=triage.tier or first,
        prompts=BUILT_IN | by_id(triage.prompts),
        otherwise={reason: triage.otherwise.get(reason, first) for reason in get_args(Reason)},
    )


def reach(plan: Plan, tiers: list[str]) -> tuple[str, ...]:
    """The tiers of a plan: from its lowest one, or the first, up to the highest that `may` names."""
    low = tiers.index(plan.min_tier) if plan.min_tier else 0
    return tuple(tiers[low : 1 + max(map(tiers.index, plan.may), default=0)])


def watched(rules: tuple[Rule, ...], key: str) -> tuple[str, ...]:
    """The signals or headers that some rule names."""
    found = {name: None for rule in rules if rule.when for name in getattr(rule.when, key) or ()}
    return tuple(found)


def queues(written: PolicyFile) -> tuple[str, ...]:
    """The tiers whose servers are asked for the length of their queue."""
    loads = [pair for rule in written.rules if rule.when for pair in (rule.when.load or {}).items()]
    named = {tier for tier, load in loads if load.waiting}
    return tuple(name for name, tier in written.tiers.items() if name in named or tier.asks_queue)


def scored(written: PolicyFile) -> bool:
    """Whether anything needs the local score: a rule that names it; where a rule wants a verdict also drafts,
    fallbacks, calibrations and records."""
    named, triage = any(rule.when and rule.when.score for rule in written.rules), written.triage
    asks = any(rule.asks for rule in written.rules)
    kept = written.record.decisions > 0 or triage.calibration is not None or triage.early is not None
    return named or (asks and (kept or triage.speculate == "when_idle" or LOCAL in triage.otherwise.values()))


def model_names(tiers: dict[str, Tier], aliases: dict[str, str]) -> dict[str, str]:
    """Every model name that a caller may write, in lower case, and the tier or wish that it means. Where several tiers
    serve one model, its name means the first of them."""
    found = {"auto": "auto", "auto:fast": "fast", "auto:best": "best", **{name: name for name in tiers}}
    for name, tier in tiers.items():
        found.setdefault(tier.model.lower(), name)
        found.setdefault(tier.model.lower().rpartition("/")[2], name)
    for alias, target in aliases.items():
        found[alias.lower()] = found[target]
    return found
