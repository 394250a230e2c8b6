"""What must be said beside a calibration?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.calibrate.halves import SplitBy
from gateway.calibrate.layer import LEAST_OF_EACH, Label
from gateway.calibrate.outcomes import Example, told
from gateway.calibrate.report import Judged, apart
from gateway.calibrate.target import Target
from gateway.calibration import Layer
from gateway.off_policy import effective

LEAST = 100  # the fewest records, and the fewest with an outcome
CLOSE = 0.03  # above this 95 % sampling error of a share there is a caveat
SEVERAL = 20  # conversations or callers in a half, all as long, from which on an interval holds what it says
HEARD = 20  # outcomes of a source that are enough to compare it with the others
UNLIKE = 3.29  # standard deviations between two rates, beyond which they differ
NEWEST = 500  # records that are held against all before them, as many as drift looks at
CHANGED = 1.95  # the bound of a Kolmogorov-Smirnov test on them, at 1 in 1,000
NEARLY = 0.9  # from this part of the requests on, those who judge are nearly all


def gains(report: Mapping[str, Any]) -> bool:
    """Whether the 95 % interval of the lift lies above 0."""
    found = report.get("lift")
    return found is not None and found["low"] > 0


def few_outcomes(half: Sequence[Example], label: Label) -> str | None:
    """A message if a half has too few outcomes, by effective sample size; else None."""
    known = [one.weight for one in half if label(one) is not None and not one.retried]
    worth = effective(known)
    if worth >= LEAST // 2:
        return None
    told_worth = "" if worth > len(known) - 1 else f", worth {2 * worth:.0f} by their propensities"
    return f"{2 * len(known)} outcomes or so{told_worth}; at least {LEAST} are needed"


def few_names(outcomes: Sequence[Judged], split: SplitBy) -> str | None:
    """A message if the outcomes are of too few conversations (by `split` callers), by effective sample size; else
    None."""
    weights: dict[str | None, float] = {}
    for one in outcomes:
        weights[one.name] = weights.get(one.name, 0.0) + one.weight
    worth = effective([*weights.values()])
    if not outcomes or worth >= SEVERAL:
        return None
    those = "callers" if split == "caller" else "conversations"
    return f"the outcomes held out are worth those of {worth:.0f} {those}; at least {SEVERAL} are needed to show a gain"


def alike_outcomes(half: Sequence[Example], label: Label) -> str | None:
    """A message if nearly all outcomes of a half are equal; else None."""
    known = [hit for one in half if (hit := label(one)) is not None and not one.retried]
    if min(sum(known), len(known) - sum(known)) >= LEAST_OF_EACH // 2:
        return None
    return f"outcomes are nearly all alike: {sum(known)} of {len(known)} in one half count against Flash"


def sources_of(records: Sequence[Example]) -> dict[str, dict[str, float]]:
    """By source of outcomes on Flash's answers: how many there are, and which part of them was bad."""
    found: dict[str, list[bool]] = {}
    for one in records:
        if one.failed is not None:
            found.setdefault(one.source, []).append(one.failed)
    return {source: {"outcomes": len(bad), "failed": sum(bad) / len(bad)} for source, bad in sorted(found.items())}


def unlike(records: Sequence[Example]) -> bool:
    """Whether those who judge Flash's answers differ in how many they find bad: one source and all others do."""
    told = sources_of([one for one in records if not one.retried and one.agree is None]).values()
    whole, bad = sum(one["outcomes"] for one in told), sum(one["outcomes"] * one["failed"] for one in told)
    for one in told:
        rest, rate = whole - one["outcomes"], bad / whole
        if min(rest, one["outcomes"]) < HEARD or not 0 < rate < 1:
            continue
        others = (bad - one["outcomes"] * one["failed"]) / rest
        deviation = math.sqrt(rate * (1 - rate) * (1 / rest + 1 / one["outcomes"]))
        if abs(one["failed"] - others) > UNLIKE * deviation:
            return True
    return False


def changed(records: Sequence[Example], layer: Layer) -> bool:
    """Whether p is spread otherwise in the newest records than in those before."""
    timed = sorted((one.at, layer.p(told(one))) for one in records if one.at is not None)
    before = len(timed) - min(NEWEST, len(timed) // 2)
    return apart([Judged(p, 0.0) for _, p in timed[:before]], [p for _, p in timed[before:]], CHANGED)


def uneven(records: Sequence[Example], layer: Layer) -> bool:
    """Whether the requests with an outcome differ by p from all."""
    p = [(layer.p(told(one)), one) for one in records if not one.retried]
    known = [Judged(value, 0.0, one.weight) for value, one in p if one.failed is not None]
    return apart(known, [value for value, _ in p])


def caveats_on(
    records: Sequence[Example], report: Mapping[str, Any], target: Target, layer: Layer, partial: bool
) -> list[str]:
    """The caveats that hold, as sentences. `partial`: outcomes are `uneven`."""
    return [*_of_outcomes(records, report, target, partial), *caveats_on_shares(records, report, target, layer)]


def caveats_on_shares(records: Sequence[Example], report: Mapping[str, Any], target: Target, layer: Layer) -> list[str]:
    """Those that hold whatever outcomes say."""
    found = _of_shares(report, target, len(records))
    if changed(records, layer):
        found.append(
            "p is spread otherwise in the newest records than in those before: traffic changed, and what is fitted to "
            "both fits neither; calibrate on the records since"
        )
    return found


def _of_outcomes(records: Sequence[Example], report: Mapping[str, Any], target: Target, partial: bool) -> list[str]:
    volunteered = sum(bool(one.source) and one.agree is None for one in records)
    checks = {
        "requests with an outcome differ from those without: what holds for the ones need not hold for the others, so "
        "nothing is proven; `explore` in the rule lets chance choose whose answers are judged": partial,
        "not every answer was judged: unless chance chose which, failures are overstated where it takes a bad one to "
        "be told, and understated where it takes a good one; their order need not be wrong": (
            0 < volunteered < NEARLY * len(records)
        ),
        "those who judge differ in how many answers they find bad (see sources): not all of them hear a fair sample": (
            unlike(records)
        ),
        "explore sends requests to Flash that p would not: the bound is none on those": (
            target.kind == "flash_failure" and report["explore"] > 0
        ),
        "Pro's outcome is not known where Flash fails: Flash's failures stand in for Pro's gain; judge Pro's answer to "
        "these, too: some 200 requests judged so order better than 300 of Flash's answers alone": (
            any(one.failed and one.pro_ok is None for one in records)
        ),
        "Pro's answer is not judged everywhere where Flash's is good: what Pro spoils is missing from the lift": (
            report.get("lift") is not None and any(one.failed is False and one.pro_ok is None for one in records)
        ),
        "outcomes that are agreements with another tier's answer say where words differ, not who is right": (
            target.kind == "shares" and any(one.agree is not None for one in records)
        ),
        "p is no better than the mean rate (Brier)": (
            "brier" in report and report["brier"] >= report["brier_of_the_rate"]
        ),
        "the bound holds for requests like the judged ones; after drift, or another model behind a tier, it does not": (
            target.kind == "flash_failure"
        ),
        "Pro's answers are no better than Flash's over all: there is nothing to gain": (
            "lift" in report and report["lift"] is None
        ),
        "the gain over random at an equal share is not shown: its interval reaches 0": (
            report.get("lift") is not None and not gains(report)
        ),
    }
    return [text for text, holds in checks.items() if holds]


def within(report: Mapping[str, Any]) -> float:
    """How near to their targets, at 95 %, shares come where the thresholds are set by the records that these shares are
    of; turns of a conversation are alike."""
    return max(map(_half, report["shares"]))


def _half(share: Mapping[str, float]) -> float:
    """Half of its interval, as wide as that is on its wider side."""
    return max(share["high"] - share["value"], share["value"] - share["low"])


def _of_shares(report: Mapping[str, Any], target: Target, records: int) -> list[str]:
    """The caveats on shares that hold; those `records` that were not judged set the evaluated edges."""
    both = math.sqrt(records / (records - report["judged"]))  # they stray by chance, too
    pairs = zip(report["shares"], target.shares, strict=False)
    near = report.get("within", 0.0)
    checks = {
        f"{records} records set a share to within {near:.3f} (95 %), {math.ceil(records * (near / CLOSE) ** 2)} to "
        f"within {CLOSE:g}; those without an outcome count, too": near > CLOSE,
        "a realised share is further from its target than chance would have it: traffic changes, or scores are equal": (
            any(abs(got["value"] - want) > both * _half(got) for got, want in pairs)
        ),
    }
    return [text for text, holds in checks.items() if holds]
