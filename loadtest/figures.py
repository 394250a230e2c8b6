"""Which figures follow from a load test's requests?   Times, goodput and routing, from one record for each request.

  TTFT     ms to the first text, of the reasoning or of the answer.
  TPOT     (E2E - TTFT) / (completion tokens - 1), in ms, tokens by the server's own usage. Not GuideLLM's, which takes
           the first token in.
  ITL_P99  the 99th of 100 gaps between an answer's pieces, in ms. A piece may hold several tokens.
  E2E      ms to the end of the stream.
  GOODPUT  answers a second that came whole and within every objective.
Quantiles are exact, of the answers that came whole.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.answers import quantile

STRONG = "pro"  # a tier is strong when its name begins so, as in pro and pro_max
DIRECT = "direct"  # the tier's name of what was asked without the gateway
KINDS = ("ttft", "tpot", "itl_p99", "e2e")
SHAPES = ("flat", "steps", "spike", "soak")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request's outcome. `at`: seconds since the start when it was due; `late`: ms from then to its sending;
    `label`: what its prompt is, simple or complex, where the gateway had to find out."""

    at: float
    tier: str
    label: str
    times: dict[str, float]
    late: float = 0.0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Objectives:
    """Latency limits in milliseconds by kind, for all tiers or for one."""

    bounds: dict[tuple[str | None, str], float]

    @classmethod
    def read(cls, text: str) -> "Objectives":
        """From `ttft=2000,tpot=100,pro.ttft=5000`. Raises ValueError naming what is wrong."""
        bounds = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, most = part.partition("=")
            tier, _, kind = name.rpartition(".")
            if kind not in KINDS:
                raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
            bounds[tier or None, kind] = float(most)
        return cls(bounds)

    def met(self, one: Exchange) -> bool:
        """Whether an answer's times are within the limits. A kind that it lacks (TPOT of one token) is no miss."""
        if one.problem:
            return False
        return all(value <= self._most(one.tier, kind) for kind, value in one.times.items())

    def _most(self, tier: str, kind: str) -> float:
        return self.bounds.get((tier, kind), self.bounds.get((None, kind), math.inf))


def level(shape: str, part: float) -> float:
    """The share of the full load when `part` of the run is over, both from 0 to 1."""
    if shape == "steps":  # four of the same length
        return min(int(part * 4) + 1, 4) / 4
    if shape == "spike":  # all at once for a fifth of the run
        return 1.0 if 0.4 <= part < 0.6 else 0.2
    if shape == "soak":  # to the full load in a tenth, and on
        return max(min(part * 10, 1.0), 0.05)
    return 1.0


def summary(exchanges: Sequence[Exchange], objectives: Objectives, seconds: float) -> dict[str, Any]:
    """Figures of all requests and by tier; requests sent directly to a server are a tier of their own, not in "all"."""
    own = [one for one in exchanges if one.tier != DIRECT]
    tiers = {name: [one for one in exchanges if one.tier == name] for name in sorted({one.tier for one in exchanges})}
    return {
        **figures(own, objectives, seconds),
        "tiers": {name: figures(some, objectives, seconds) for name, some in tiers.items()},
        "routing": routing(own),
    }


def figures(exchanges: Sequence[Exchange], objectives: Objectives, seconds: float) -> dict[str, Any]:
    """Counts, rates and percentiles. `achieved` and `goodput`: answers a second."""
    whole = [one for one in exchanges if not one.problem]
    good = sum(map(objectives.met, whole))
    return {
        "requests": len(exchanges),
        "failed": len(exchanges) - len(whole),
        "achieved": len(whole) / seconds,
        "goodput": good / seconds,
        "good": good / len(exchanges) if exchanges else 0.0,
        "late_p99": quantile([one.late for one in exchanges], 0.99) if exchanges else 0.0,
    } | {kind: spread([one.times[kind] for one in whole if kind in one.times]) for kind in KINDS}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    parts = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    return {name: quantile(values, part) for name, part in parts} if values else None


def routing(exchanges: Sequence[Exchange]) -> dict[str, tuple[int, int]]:
    """(prompts that were routed as their label demands, prompts), by label and as `all`."""
    found: dict[str, tuple[int, int]] = {}
    for one in exchanges:
        fits = one.tier.startswith(STRONG) == (one.label == "complex")
        for name in (one.label, "all") if one.label and not one.problem else ():
            right, total = found.get(name, (0, 0))
            found[name] = (right + fits, total + 1)
    return found


def ratios(pairs: Sequence[tuple[Exchange, Exchange]]) -> dict[str, float]:
    """The median ratio of times, by kind, of prompts that were sent twice: through the gateway over directly."""
    found = {}
    for kind in KINDS:
        both = [(a.times.get(kind), b.times.get(kind)) for a, b in pairs if not (a.problem or b.problem)]
        if known := [a / b for a, b in both if a and b]:
            found[kind] = quantile(known, 0.5)
    return found


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """The report as text: of the run, and of its parts where there are some."""
    for name, part in found.get("parts", {}).items():
        yield f"--- {name}"
        yield from told(part)
    yield from ["--- the whole run"] if "parts" in found else []
    yield from table({**found["tiers"], "all": found})
    for label, (right, total) in sorted(found["routing"].items()):
        yield f"routed      {right} of {total} {label} prompts rightly ({right / total:.1%})"
    if "offered" in found:
        rates = f"{found['offered']:.2f} a second, achieved {found['achieved']:.2f}"
        yield f"offered     {rates}, begun late: p99 {found['late_p99']:.0f} ms"
    for kind, ratio in found.get("ratios", {}).items():
        yield f"gateway     {ratio:.3f} of the direct {kind}, in the middle of {found['pairs']} pairs"


def table(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each tier. `good`: of all its requests; times in ms."""
    heads = "".join(f"{kind + ' p50':>12}{'p99':>9}" for kind in KINDS)
    yield f"{'':12}{'answers':>8}{'failed':>7}{'good':>7}{'good/s':>8}{heads}"
    for name, one in rows.items():
        cells = (one[kind] or {"p50": math.nan, "p99": math.nan} for kind in KINDS)
        times = "".join(f"{cell['p50']:12.1f}{cell['p99']:9.1f}" for cell in cells)
        whole = one["requests"] - one["failed"]
        yield f"{name:12}{whole:8}{one['failed']:7}{one['good']:7.1%}{one['goodput']:8.2f}{times}"
