"""What would another policy have done with these requests?   Pure: `route` itself decides, on what was recorded.

Load, budgets and shares stand as they were; a classifier that was not asked then is not asked now: such a request is
`undecided` and left out of the figures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.errors import Refusal
from gateway.estimate import Estimate, Unknown, estimate, wilson
from gateway.explain import OUTPUT_TOKENS, outcome
from gateway.policy import LOCAL, Policy, Rule
from gateway.pricing import cost
from gateway.recorded import SHADOW, Outcome, Recorded, Seen
from gateway.records import seen
from gateway.routing import place, reachable
from gateway.store import NANO
from gateway.types import Ask, Facts, Route

EXAMPLES = 5  # request ids named for each move
OF_RULES = {"caller.plan": "plan", "caller.name": "caller"}  # matchers that are not called as their fact
REFUSED, UNDECIDED = "refused", "undecided"
Chances = Mapping[str, float]


class Unrecorded(Exception):
    """The policy looks at something that the records do not hold; the message names rule and fact."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy does with one recorded request. `to`: a tier, REFUSED or UNDECIDED; `chances` of each tier."""

    to: str
    rule: str = ""
    chances: Chances = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Move:
    """Requests that go elsewhere, and the rule that sends them there; `examples` are some of their ids."""

    origin: str
    to: str
    rule: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to choose: shares by tier, the part above the first tier with its interval, cost in US dollars.

    `counted`: the part of the cost that servers counted, the rest is estimated. `quality`, or `unknown`: why not.
    """

    shares: dict[str, float]
    pro_share: float
    low: float
    high: float
    cost_usd: float
    counted: float
    quality: Estimate | None
    unknown: str | None


@dataclass(frozen=True, slots=True)
class Replay:
    """`decided` requests are compared; `arms` holds the candidate, what was recorded, and the controls."""

    records: int
    decided: int
    undecided: int
    refused: int
    outcomes: int
    moved: int
    moves: tuple[Move, ...]
    arms: dict[str, Arm]

    def figures(self) -> dict[str, float | None]:
        """What a condition may name: the candidate's figures; None for one that is not known."""
        candidate, before = self.arms["candidate"], self.arms["recorded"]
        told: dict[str, float | None] = {
            "pro_share": candidate.pro_share,
            "cost_usd": candidate.cost_usd,
            "cost_ratio": candidate.cost_usd / before.cost_usd if before.cost_usd else None,
            "quality": candidate.quality.value if candidate.quality else None,
            "quality_low": candidate.quality.low if candidate.quality else None,
            "moved": self.moved / self.records if self.records else None,
            "undecided": self.undecided / self.records if self.records else None,
            "refused": self.refused / self.records if self.records else None,
        }
        return told | {f"share.{tier}": share for tier, share in candidate.shares.items()}


def replay(records: Sequence[Recorded], policy: Policy) -> Replay:
    """What `policy` would have done, beside what those in force did by their chances, and the controls: all on the
    first tier, all on the last, and a shuffle, which sends as many of each kind of request to each tier, but any.

    Raises Unrecorded, RecordError.
    """
    found = choices(records, policy)
    kept = [(one, choice) for one, choice in zip(records, found, strict=True) if choice.chances]
    rows = [one for one, _ in kept]
    chosen = [choice.chances for _, choice in kept]
    facts = [one.read_facts() for one in rows]
    ends = tuple(policy.tiers)[:: max(1, len(policy.tiers) - 1)]
    arms: dict[str, Sequence[Chances]] = {"candidate": chosen, "recorded": [one.route.logged for one in rows]}
    arms |= {f"all {tier}": [{place(each, policy, tier)[0]: 1.0} for each in facts] for tier in ends}
    arms["shuffle"] = shuffled(facts, chosen, policy)
    counts = Counter(choice.to for choice in found)
    moves = moved([one.route.tier for one in records], found, records)
    prices = Prices(rows, policy)
    return Replay(
        len(records),
        len(rows),
        counts[UNDECIDED],
        counts[REFUSED],
        sum(judgement(one) is not None for one in rows),
        sum(move.count for move in moves),
        moves,
        {name: arm(rows, chances, prices) for name, chances in arms.items()},
    )


def choices(records: Sequence[Recorded], policy: Policy) -> list[Choice]:
    """What `policy` does with each. Raises Unrecorded, RecordError."""
    looks = seen(policy)
    for one in records:
        refuse_unrecorded(one, policy, looks)
    return [choice(one, policy) for one in records]


def choice(one: Recorded, policy: Policy) -> Choice:
    facts = one.read_facts()
    found = outcome(facts, None, policy)
    if isinstance(found, Ask) and one.verdict:
        found = outcome(facts, one.verdict, policy)
    if isinstance(found, Route):
        return Choice(found.tiers[0], found.rule, found.chances or {found.tiers[0]: 1.0})
    return Choice(REFUSED if isinstance(found, Refusal) else UNDECIDED)


def refuse_unrecorded(one: Recorded, policy: Policy, looks: Seen) -> None:
    """Raises Unrecorded when a rule of `policy` looks at what the record does not hold, or asks another question."""
    for rule in policy.rules:
        of_session = ["session"] if policy.sessions and not isinstance(rule.route, str) else []
        missing = next((fact for fact in wanted(rule, policy) + of_session if not holds(one, fact, looks)), None)
        if missing:
            raise Unrecorded(f"rule {rule.id} looks at {missing}, which record {one.id} ({one.policy}) does not hold")
    asking = next((rule for rule in policy.rules if not isinstance(rule.route, str)), None)
    if asking and one.verdict and one.seen and one.seen.question != looks.question:
        raise Unrecorded(
            f"rule {asking.id} asks {looks.question!r}, but the verdict of record {one.id} answers "
            f"{one.seen.question!r}: a verdict on one question says nothing about another"
        )


def wanted(rule: Rule, policy: Policy) -> list[str]:
    """The facts that a rule or its verdict looks at: `plan`, `header.x-phase`, `load.pro.inflight`, `signals.sql`."""
    names = [OF_RULES.get(check.key, check.key) for check in rule.checks if check.key != "signals"]
    names += [f"signals.{name}" for name in (rule.when and rule.when.signals) or ()]
    weighs = policy.calibration is not None or LOCAL in policy.triage.otherwise.values()
    return [*names, "score"] if weighs and not isinstance(rule.route, str) else names


def holds(one: Recorded, fact: str, looks: Seen) -> bool:
    """Whether the record says what this fact was. A signal is what its pattern is, whatever its name."""
    name, _, part = fact.partition(".")
    if name == "score":  # of a wish there is none, and no rule looks at one
        return one.facts.get("score") is not None or one.facts.get("wish") is not None
    if name not in {"header", "signals", "load", "session"}:
        return name in one.facts
    if one.seen is None:
        return False
    if name == "session":
        return one.seen.sessions
    if name == "signals":
        return one.seen.signals.get(part) == looks.signals[part]
    return part in one.seen.headers if name == "header" else part.removesuffix(".inflight") in one.seen.tiers


def moved(origins: Sequence[str], choices: Sequence[Choice], rows: Sequence[Recorded]) -> tuple[Move, ...]:
    """The requests that `choices` sends elsewhere than to `origins`, the most frequent first; undecided ones stay."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for origin, there, one in zip(origins, choices, rows, strict=True):
        if there.to not in {origin, UNDECIDED} and origin != UNDECIDED:
            found.setdefault((origin, there.to, there.rule), []).append(one.id)
    moves = (Move(*name, len(ids), tuple(ids[:EXAMPLES])) for name, ids in found.items())
    return tuple(sorted(moves, key=lambda move: -move.count))


def shuffled(facts: Sequence[Facts], chosen: Sequence[Chances], policy: Policy) -> list[Chances]:
    """The same shares as `chosen` among requests that may reach the same tiers, whatever they are."""
    kinds = [tuple(dict.fromkeys(place(each, policy, t)[0] for t in reachable(each, policy))) for each in facts]
    sums: dict[tuple[str, ...], dict[str, float]] = {}
    for kind, chances in zip(kinds, chosen, strict=True):
        total = sums.setdefault(kind, {})
        for tier, p in chances.items():
            total[tier] = total.get(tier, 0.0) + p
    sizes = Counter(kinds)
    shares = {kind: {tier: p / sizes[kind] for tier, p in total.items()} for kind, total in sums.items()}
    return [shares[kind] for kind in kinds]


def arm(rows: Sequence[Recorded], chosen: Sequence[Chances], prices: "Prices") -> Arm:
    """The figures of one way to choose."""
    count = len(rows) or 1
    tiers = dict.fromkeys(tier for chances in chosen for tier in chances)
    shares = {tier: sum(chances.get(tier, 0.0) for chances in chosen) / count for tier in tiers}
    above = min(1.0, sum(share for tier, share in shares.items() if tier != prices.first))
    costs = [prices.of(one, tier, p) for one, chances in zip(rows, chosen, strict=True) for tier, p in chances.items()]
    usd = sum(part for part, _ in costs)
    counted = sum(part for part, known in costs if known) / usd if usd else 1.0
    try:
        quality, unknown = judged(rows, chosen), None
    except Unknown as why:
        quality, unknown = None, str(why)
    return Arm(shares, above, *wilson(above, len(rows)), usd, counted, quality, unknown)


def judgement(one: Recorded) -> Outcome | None:
    """What somebody said of the answer's quality; how much another tier's agrees with it says nothing of that."""
    return None if one.outcome is None or one.outcome.source == SHADOW else one.outcome


def judged(rows: Sequence[Recorded], chosen: Sequence[Chances]) -> Estimate:
    """The quality that these chances would have brought. Raises Unknown.

    Where every outcome tells of every tier that may be chosen, as of labelled requests, nothing needs a weight.
    """
    found = [(one, judgement(one), chances) for one, chances in zip(rows, chosen, strict=True)]
    known = [(one, said, chances) for one, said, chances in found if said]
    told = [({one.tier or one.route.tier: said.quality, **said.tiers}, chances) for one, said, chances in known]
    if all(chances.keys() <= values.keys() for values, chances in told):
        return estimate([(1.0, sum(p * values[tier] for tier, p in chances.items())) for values, chances in told])
    lost = sum(p for one, _, chances in known for tier, p in chances.items() if tier not in one.route.logged)
    weighed = [(chances.get(one.route.tier, 0.0) / one.route.p, said.quality) for one, said, chances in known]
    return estimate(weighed, lost / len(known))


class Prices:
    """What an answer costs, by this policy's prices: as counted where that tier gave it, else as long as that tier's
    answers are on the average, with nothing cached."""

    def __init__(self, rows: Sequence[Recorded], policy: Policy) -> None:
        self.first = next(iter(policy.tiers))
        self._tiers = policy.tiers
        lengths: dict[str, list[int]] = {}
        for one in rows:
            if one.tier and one.used and one.used.completion is not None:
                lengths.setdefault(one.tier, []).append(one.used.completion)
        self._length = {tier: sum(found) // len(found) for tier, found in lengths.items()}

    def of(self, one: Recorded, tier: str, p: float) -> tuple[float, bool]:
        """`p` times the US dollars, and whether a server counted them. A tier that the policy lacks costs nothing."""
        if tier not in self._tiers:
            return 0.0, False
        used, price = one.used, self._tiers[tier].price
        if used and one.tier == tier and used.prompt is not None and used.completion is not None:
            return p * cost(price, used.prompt, min(used.cached or 0, used.prompt), used.completion) / NANO, True
        prompt = used.prompt if used and used.prompt is not None else int(one.facts.get("context", 0))
        return p * cost(price, prompt, 0, self._length.get(tier, OUTPUT_TOKENS)) / NANO, False
