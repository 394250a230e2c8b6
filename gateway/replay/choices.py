"""Where would a policy have sent a recorded request?   Pure: `route` itself decides, on what was recorded.

Load, budgets and shares are taken as recorded. A request that needs a verdict, and has none recorded, is `undecided`.
Hold-back judges a recorded start again; the start of a tier that did not answer then is not known, counts as let out,
and is counted in `unseen`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.errors import Refusal
from gateway.explain import try_route
from gateway.holdback import again, answered, unrecorded, watches
from gateway.kept import seen
from gateway.policy import LOCAL, Policy, Rule
from gateway.recorded import Once, Recorded, Seen
from gateway.routing import permitted_tier, reachable
from gateway.types import Facts, Held, Route

OF_RULES = {"caller.plan": "plan", "caller.name": "caller"}  # matchers whose fact has another name
REFUSED, UNDECIDED = "refused", "undecided"
Chances = Mapping[str, float]


class Unrecorded(Exception):
    """The policy looks at something that the records do not hold; the message names rule and fact."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a policy sends a request: the probability of each tier to be chosen first (`chances`), and which tier answers
    in its place after hold-back, where another does (`ends`). `unseen`: the probability that hold-back would judge a
    start that was not recorded."""

    chances: Chances = field(default_factory=dict)
    ends: Mapping[str, str] = field(default_factory=dict)
    unseen: float = 0.0

    @property
    def answers(self) -> Chances:
        """The probability of each tier to answer."""
        if not self.ends:
            return self.chances
        found: dict[str, float] = {}
        for tier, p in self.chances.items():
            end = self.ends.get(tier, tier)
            found[end] = found.get(end, 0.0) + p
        return found


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy does with one recorded request. `to`: a tier, REFUSED or UNDECIDED; `within`: the tiers that it may
    come to, as they rank."""

    to: str
    rule: str = ""
    way: Way = Way()
    within: tuple[str, ...] = ()


class Decided(Recorded, kw_only=True):
    """A record, what was done (`before`) and what policies would do. Of what they looked at nothing is left but the
    prompt's length, and what many have alike they share: 0.8 KB in place of 6.5."""

    before: Way
    choices: tuple[Choice, ...]


class Deciding:
    """Decides records anew, under each of these policies."""

    def __init__(self, *policies: Policy) -> None:
        self._policies = policies
        self._once = Once()

    def __call__(self, one: Recorded) -> Decided:
        """Raises Unrecorded, RecordError."""
        for policy in self._policies:
            refuse_unrecorded(one, policy)
        facts = one.read_facts()
        return Decided(
            id=one.id,
            caller=self._once(one.caller),
            conversation=one.conversation,
            at=one.at,
            route=self._once(one.route),
            facts=self._once({"context": one.facts.get("context", 0)}),
            held=self._once(one.held and Held(one.held.outcome, "", 0.0)),
            tier=self._once(one.tier),
            skips=self._once(one.skips),
            used=one.used,
            outcome=one.outcome,
            before=self._once(as_recorded(one)),
            choices=tuple(self._once(choice(one, facts, policy)) for policy in self._policies),
        )


def choice(one: Recorded, facts: Facts, policy: Policy) -> Choice:
    found = try_route(facts, one.verdict, policy)  # which needs none, where the rule or the wish decides
    if isinstance(found, Route):
        way = along(one, facts, found.chances or {found.tiers[0]: 1.0}, policy)
        within = dict.fromkeys(permitted_tier(facts, policy, tier) for tier in reachable(facts, policy))
        return Choice(way.ends.get(found.tiers[0], found.tiers[0]), found.rule, way, tuple(within))
    return Choice(REFUSED if isinstance(found, Refusal) else UNDECIDED)


def along(one: Recorded, facts: Facts, chances: Chances, policy: Policy) -> Way:
    """The Way with these probabilities of the first tier, once `policy` judged the start of the recorded one again.
    Raises Unrecorded."""
    tier = one.route.tier
    if tier in chances and (lacking := unrecorded(one, policy)):
        raise Unrecorded(f"holdback looks at {lacking}, which record {one.id} ({one.policy}) does not hold")
    end = again(one, policy) if tier in chances else tier
    unseen = sum(p for other, p in chances.items() if other != tier and watches(other, facts, policy))
    return Way(chances, {tier: end} if end != tier else {}, unseen)


def as_recorded(one: Recorded) -> Way:
    """What the policy then in force did, by its probabilities."""
    tier, end = one.route.tier, answered(one)
    return Way(one.route.logged, {tier: end} if end != tier else {})


def refuse_unrecorded(one: Recorded, policy: Policy) -> None:
    """Raises Unrecorded when a rule of `policy` looks at what the record does not hold, or asks another question, and
    when the caller asked for a tier that `policy` does not have."""
    wish = one.facts.get("wish")
    if wish not in (None, "fast", "best", *policy.tiers):
        raise Unrecorded(f"the caller of record {one.id} asked for {wish}, which is no tier of the policy")
    looks = policy.once(seen)
    for fact, rule in policy.once(wanted).items():
        if not holds(one, fact, looks):
            raise Unrecorded(f"rule {rule} looks at {fact}, which record {one.id} ({one.policy}) does not hold")
    asking = policy.once(first_that_asks)
    if asking and one.verdict and one.seen and one.seen.question != looks.question:
        raise Unrecorded(
            f"rule {asking.id} asks {looks.question!r}, but the verdict of record {one.id} answers "
            f"{one.seen.question!r}: a verdict on one question says nothing about another"
        )


def first_that_asks(policy: Policy) -> Rule | None:
    return next((rule for rule in policy.rules if rule.asks), None)


def wanted(policy: Policy) -> dict[str, str]:
    """The facts that rules or their verdicts look at (`plan`, `header.x-phase`, `load.pro.inflight`, `signals.sql`),
    each with the first rule that does."""
    found: dict[str, str] = {}
    for rule in policy.rules:
        for fact in looked_at(rule, policy):
            found.setdefault(fact, rule.id)
    return found


def looked_at(rule: Rule, policy: Policy) -> list[str]:
    names = [OF_RULES.get(check.key, check.key) for check in rule.checks if check.key != "signals"]
    names += [f"signals.{name}" for name in (rule.when and rule.when.signals) or ()]
    if not rule.asks:
        return names
    weighs = policy.calibration is not None or LOCAL in policy.triage.otherwise.values()
    return names + ["score"] * weighs + ["session"] * (policy.sessions is not None)


def holds(one: Recorded, fact: str, looks: Seen) -> bool:
    """Whether the record has this fact. A signal is identified by its pattern, not by its name."""
    name, _, part = fact.partition(".")
    if name == "score":  # of a wish there is none, and no rule looks at one
        same = one.seen is None or one.seen.table == looks.table
        return (one.facts.get("score") is not None and same) or one.facts.get("wish") is not None
    if name not in {"header", "signals", "load", "session"}:
        return name in one.facts
    if one.seen is None:
        return False
    if name == "session":
        return one.seen.sessions
    if name == "signals":
        return one.seen.signals.get(part) == looks.signals[part]
    return part in one.seen.headers if name == "header" else part.removesuffix(".inflight") in one.seen.tiers
