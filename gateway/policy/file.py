"""Which keys does a policy file have, and what does a loaded policy hold?"""

import hashlib
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import Field

from gateway.calibration import Basis, Layer
from gateway.policy.holdback import Holdback
from gateway.policy.keeping import Caching, Sessions
from gateway.policy.model import Failover, Name, Printable, Share, Tier, Triage
from gateway.policy.plans import Budget, Callers
from gateway.policy.recording import Recording
from gateway.policy.rules import Rule
from gateway.policy.sections import section
from gateway.policy.trials import PolicyTest
from gateway.score import Axes, Table

MOST_KNOWN = 10_000  # results that `Policy.once` caches: there may be one for each caller with limits of its own
T = TypeVar("T")
Pattern = Annotated[str, Field(max_length=500)]
Alias = Annotated[str, Field(pattern=r"^[!-~]+$", max_length=256)]


@section
class NamedCandidate:
    """Another policy file, on trial. A caller that it serves stays with it as long as `canary` is not lowered. With
    `shadow` decisions of this policy are compared with those that it would have made, after their answers have ended.
    """

    policy: Annotated[str, Field(min_length=1, description="the candidate's file, relative to this one")]
    canary: Annotated[Share, Field(description="the part of the callers whom the candidate serves")] = 0.0
    shadow: Annotated[Share, Field(description="the part of the other decisions that it is compared with")] = 0.0


@section
class PolicyFile:
    """The file's top level, as written."""

    schema: Annotated[Literal[1], Field(description="version of this format")]
    tiers: Annotated[
        dict[Name, Tier], Field(min_length=1, description="models and their servers, ranked by order, cheapest first")
    ]
    rules: Annotated[
        tuple[Rule, ...], Field(min_length=1, description="the first that matches decides; the last matches everything")
    ]
    name: Annotated[Printable, Field(description="the policy's name")] = "policy"
    revision: Annotated[Printable, Field(description="free text, echoed in x-route-policy")] = ""
    triage: Annotated[Triage, Field(description="how the small model is asked whether it is enough")] = field(
        default_factory=Triage
    )
    signals: Annotated[
        dict[Name, Pattern], Field(description="regular expressions over the last user turn, named for rules")
    ] = field(default_factory=dict)
    holdback: Annotated[
        Holdback | None, Field(description="answers whose start is kept back; null lets out every one at once")
    ] = None
    failover: Annotated[Failover, Field(description="who answers when a tier fails")] = field(default_factory=Failover)
    caching: Annotated[Caching | None, Field(description="answers that are remembered; null remembers none")] = None
    sessions: Annotated[Sessions | None, Field(description="conversations keep their tier; null: they do not")] = None
    record: Annotated[Recording, Field(description="which decisions are recorded")] = field(default_factory=Recording)
    candidate: Annotated[
        NamedCandidate | None, Field(description="another policy, for some callers or evaluated beside; null: none")
    ] = None
    callers: Annotated[
        Callers | None, Field(description="plans; left out, one plan named default may reach every tier")
    ] = None
    budget: Annotated[Budget | None, Field(description="what all callers together may spend; null is no limit")] = None
    aliases: Annotated[
        dict[Alias, str],
        Field(description="other model names, NAME* all that begin so: auto, auto:fast, auto:best or a tier"),
    ] = field(default_factory=dict)
    tests: Annotated[tuple[PolicyTest, ...], Field(description="requests and what must become of them")] = ()


class Once(Protocol):
    """A cache of `function(*values, policy)`, for pure functions; it lives as long as the policy."""

    def __call__(self, function: Callable[..., T], *values: Hashable) -> T: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What operators decided: checked, compiled, frozen, swapped whole.

    `version` is its name in `x-route-policy` and the log. `asks`: some rule wants a verdict; `explores`: some rule
    explores other tiers at random.

    `tiers` rank in their order, the first is the cheapest. `digest` is the first 12 hex digits of the SHA-256 of the
    file's bytes (and of the calibration and the embeddings it names), with variables not filled in: the environment
    cannot be guessed from it. `calibration` computes p_complex, None: the classifier's own is used; `basis` is what it
    was fitted on, where its file says so; `table` computes the local score, None: the prompt's surface does. `names`
    maps every model name that a caller may write (in lower case) to "auto", "fast", "best" or a tier. `permitted` holds
    each plan's tiers: from its lowest one up to the highest that `may` names. `watched_signals` and `watched_headers`
    are those that some rule names, `watched_queues` the tiers whose servers' queues matter to a rule or to balancing.
    `scored`: something needs the local score. `context`: tokens of the longest prompt that every tier takes.
    """

    name: str
    revision: str
    digest: str
    version: str
    asks: bool
    explores: bool
    tiers: dict[str, Tier]
    triage: Triage
    signals: dict[str, re.Pattern[str]]
    rules: tuple[Rule, ...]
    holdback: Holdback | None
    failover: Failover
    caching: Caching | None
    sessions: Sessions | None
    record: Recording
    callers: Callers
    budget: Budget | None
    aliases: dict[str, str]
    tests: tuple[PolicyTest, ...]
    names: dict[str, str]
    permitted: dict[str, tuple[str, ...]]
    watched_signals: tuple[str, ...]
    watched_headers: tuple[str, ...]
    watched_queues: tuple[str, ...]
    scored: bool
    calibration: Layer | None
    basis: Basis | None
    table: Table | Axes | None
    candidate: "Candidate | None" = None
    context: int = field(init=False, repr=False, compare=False)
    once: Once = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", min(tier.can.context for tier in self.tiers.values()))
        object.__setattr__(self, "once", lru_cache(MOST_KNOWN)(self._worked_out))

    def _worked_out(self, function: Callable[..., T], *values: Hashable) -> T:
        return function(*values, self)

    def __str__(self) -> str:
        return f"{self.name} {self.revision} ({self.digest})"

    def told(self) -> dict[str, str]:
        """What it is called, as JSON data."""
        return {"name": self.name, "revision": self.revision, "digest": self.digest}

    def skips(self, tier: str | None) -> str | None:
        """How a tier's servers skip experts; None where they do not, and for no tier of this policy."""
        found = self.tiers.get(tier) if tier else None
        return found.skips if found else None

    @property
    def question(self) -> str:
        """An identifier of what the classifier is asked, how, and which model: verdicts on different questions cannot
        be compared."""
        rules = self.triage
        how = f"{rules.strategy} {rules.layout} {rules.input.characters} {rules.unit}"
        asked = f"{rules.prompt} {how} {self.tiers[rules.tier].model} {rules.prompts[rules.prompt].digest}"
        skips = self.skips(rules.tier)
        return f"{asked} {skips}" if skips else asked

    def reach(self, plan: str, may: tuple[str, ...] | None) -> tuple[str, ...]:
        """The tiers that a caller may use: from its plan's lowest one up to the highest that `may`, of its key, names;
        without `may` those of the plan.

        Names of no tier are ignored. A key whose `may` does not reach its plan's lowest tier gets its highest one.
        """
        permitted = self.permitted.get(plan) or tuple(self.tiers)[:1]
        if may is None:
            return permitted
        tiers = tuple(self.tiers)
        high = max((tiers.index(tier) for tier in may if tier in tiers), default=0)
        return tiers[min(tiers.index(permitted[0]), high) : 1 + high]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy on trial: it serves the share `canary` of the callers, and is compared with the share `shadow` of the
    other decisions.
    """

    policy: Policy
    canary: float
    shadow: float


def serving(caller: str, policy: Policy) -> Policy:
    """The policy that serves the caller of this id, the candidate or `policy` itself: the same in every process, and
    for as long as `canary` is not lowered.
    """
    found = policy.candidate
    if found is None:
        return policy
    place = int.from_bytes(hashlib.sha256(b"canary" + caller.encode()).digest()[:8]) / 2**64
    return found.policy if place < found.canary else policy
