"""How does another policy compare with what was recorded, and with controls?   Pure. Undecided requests are left
out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from gateway.holdback import answered
from gateway.off_policy import Estimate, Interval, Unknown, Weighed, difference, estimate, rate
from gateway.policy import Policy
from gateway.pricing import cost
from gateway.recorded import WEAK, Outcome, Recorded
from gateway.replay.choices import REFUSED, UNDECIDED, Chances, Choice, Decided, Way
from gateway.sessions import OUTPUT_TOKENS
from gateway.store import NANO

EXAMPLES = 5  # request ids named for each move


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
    """One way to choose tiers: the shares of the policy's tiers, and of others where there were any; the share above
    the first tier (`pro_share`) with its 95 % interval (`low`, `high`); cost in US dollars. `counted`: the part of the
    cost for tokens that servers counted; the rest is estimated. `quality`, or `unknown`: why it is not known. `behind`:
    how much better the candidate is, where both are known.
    """

    shares: dict[str, float]
    pro_share: float
    low: float
    high: float
    cost_usd: float
    counted: float
    quality: Estimate | None
    unknown: str | None
    behind: Interval | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """The comparison, over the `decided` requests. `arms`: the candidate, what was recorded, and the controls.
    `unseen`: the expected number of requests of which the candidate would judge a start that was not recorded."""

    records: int
    decided: int
    undecided: int
    refused: int
    unseen: float
    outcomes: int
    moved: int
    moves: tuple[Move, ...]
    arms: dict[str, Arm]

    def figures(self) -> dict[str, float | None]:
        """The candidate's figures, by the names that a `--fail-if` condition has for them; None: not known."""
        candidate, before = self.arms["candidate"], self.arms["recorded"]
        gain = before.behind
        told: dict[str, float | None] = {
            "pro_share": candidate.pro_share if self.decided else None,
            "cost_usd": candidate.cost_usd if self.decided else None,
            "cost_ratio": candidate.cost_usd / before.cost_usd if before.cost_usd else None,
            "quality": candidate.quality.value if candidate.quality else None,
            "quality_low": candidate.quality.low if candidate.quality else None,
            "gain": gain.value if gain else None,
            "gain_low": gain.low if gain else None,
            "gain_high": gain.high if gain else None,
            "moved": self.moved / self.records if self.records else None,
            "undecided": self.undecided / self.records if self.records else None,
            "refused": self.refused / self.records if self.records else None,
        }
        shares = candidate.shares.items()
        return told | {f"share.{tier}": share if self.decided else None for tier, share in shares}


def replay(records: Sequence[Decided], policy: Policy) -> Replay:
    """What `policy`, which decided the records, would have done, beside what was done, and three controls: all on the
    first tier, all on the last, and a shuffle with the candidate's share of each tier, but of requests picked at
    random.

    A tier whose servers skipped other experts then than `policy` has it do counts as another tier: a request that comes
    to it moves, and recorded outcomes say nothing of it.
    """
    found = [one.choices[0] for one in records]
    rows = [one for one in records if one.choices[0].way.chances]
    kept = [one.choices[0] for one in rows]
    arms = {"candidate": [choice.way for choice in kept], "recorded": [one.before for one in rows]}
    alone = {tier: Way({tier: 1.0}) for tier in policy.tiers}
    for tier, end in zip(tuple(policy.tiers)[:: max(1, len(policy.tiers) - 1)], (0, -1), strict=False):
        arms[f"all {tier}"] = [alone[choice.within[end]] for choice in kept]
    arms["shuffle"] = shuffled(kept)
    counts = Counter(choice.to for choice in found)
    moves = moved([answered(apart(one, policy)) for one in records], found, records)
    prices, theirs = Prices(rows, policy), [apart(one, policy) for one in rows]
    best = weighed(theirs, arms["candidate"])
    told = ((name, ways, weighed(rows if name == "recorded" else theirs, ways)) for name, ways in arms.items())
    return Replay(
        len(records),
        len(rows),
        counts[UNDECIDED],
        counts[REFUSED],
        sum(choice.way.unseen for choice in kept),
        sum(judgement(one) is not None for one in rows),
        sum(move.count for move in moves),
        moves,
        {name: arm(rows, ways, prices, (evidence, best)) for name, ways, evidence in told},
    )


def apart(one: Recorded, policy: Policy) -> Recorded:
    """The record; its tier gets another name where it skipped other experts than the policy's tier of that name."""
    if one.skips == policy.skips(one.tier):
        return one
    names = {one.tier: f"{one.tier} skipping {one.skips or 'nothing'}"}
    chances = {names.get(tier, tier): p for tier, p in one.route.chances.items()}
    chosen = replace(one.route, tier=names.get(one.route.tier, one.route.tier), chances=chances)
    return replace(one, tier=names[one.tier], route=chosen)


def moved(origins: Sequence[str], choices: Sequence[Choice], rows: Sequence[Recorded]) -> tuple[Move, ...]:
    """The requests that `choices` sends elsewhere than to `origins`, the most frequent first; undecided ones stay."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for origin, there, one in zip(origins, choices, rows, strict=True):
        if there.to not in {origin, UNDECIDED} and origin != UNDECIDED:
            found.setdefault((origin, there.to, there.rule), []).append(one.id)
    moves = (Move(*name, len(ids), tuple(ids[:EXAMPLES])) for name, ids in found.items())
    return tuple(sorted(moves, key=lambda move: -move.count))


def between(records: Sequence[Decided]) -> tuple[tuple[Move, ...], int]:
    """Of two policies that decided the records: the requests that the second sends elsewhere than the first, and how
    many either leaves undecided."""
    undecided = sum(any(choice.to == UNDECIDED for choice in one.choices) for one in records)
    return moved([one.choices[0].to for one in records], [one.choices[1] for one in records], records), undecided


def shuffled(choices: Sequence[Choice]) -> list[Way]:
    """The same shares as these have among requests that may reach the same tiers, whatever they are."""
    sums: dict[tuple[str, ...], dict[str, float]] = {}
    for choice in choices:
        total = sums.setdefault(choice.within, {})
        for tier, p in choice.way.answers.items():
            total[tier] = total.get(tier, 0.0) + p
    sizes = Counter(choice.within for choice in choices)
    ways = {within: Way({tier: p / sizes[within] for tier, p in total.items()}) for within, total in sums.items()}
    return [ways[choice.within] for choice in choices]


def arm(rows: Sequence[Recorded], ways: Sequence[Way], prices: "Prices", told: tuple["Evidence", "Evidence"]) -> Arm:
    """The figures of one way to choose; `told`: what outcomes tell of it, and of the candidate."""
    count, chosen = len(rows) or 1, [way.answers for way in ways]
    tiers = dict.fromkeys([*prices.tiers, *(tier for chances in chosen for tier in chances)])
    shares = {tier: sum(chances.get(tier, 0.0) for chances in chosen) / count for tier in tiers}
    above = above_first(rows, chosen, prices.first)
    costs = [prices.of(one, tier, p) for one, chances in zip(rows, chosen, strict=True) for tier, p in chances.items()]
    usd = sum(part for part, _ in costs)
    counted = sum(part for part, known in costs if known) / usd if usd else 1.0
    (quality, unknown), (best, _) = map(judged, told)
    behind = difference(told[1].outcomes, told[0].outcomes) if quality and best else None
    return Arm(shares, above.value, above.low, above.high, usd, counted, quality, unknown, behind)


def above_first(rows: Sequence[Recorded], chosen: Sequence[Chances], first: str) -> Interval:
    """The share above the first tier."""
    ranked = sorted(zip(rows, chosen, strict=True), key=lambda each: (each[0].caller, each[0].at))
    above = [(one, sum(p for tier, p in chances.items() if tier != first)) for one, chances in ranked]
    return rate([Weighed(1.0, part, 0.0, one.conversation or None) for one, part in above])


def judgement(one: Recorded) -> Outcome | None:
    """The outcome, if somebody judged the answer; None for agreements and retries."""
    return None if one.outcome is None or one.outcome.source in WEAK else one.outcome


@dataclass(frozen=True, slots=True)
class Evidence:
    """What outcomes tell of one way to choose. `unsupported`: the part of its choices that none can tell of."""

    outcomes: list[Weighed]
    unsupported: float


def judged(told: Evidence) -> tuple[Estimate | None, str | None]:
    """The estimated quality, or why it is not known."""
    try:
        return estimate(told.outcomes, told.unsupported), None
    except Unknown as why:
        return None, str(why)


def weighed(rows: Sequence[Recorded], ways: Sequence[Way]) -> Evidence:
    """The outcomes of these ways, each caller's in the order of time.

    Where every outcome covers every tier that may answer, as in labelled data, no weights are needed. Else outcomes are
    weighted by propensity, and count only for the tier that was chosen then.
    """
    found = [(one, judgement(one), way) for one, way in zip(rows, ways, strict=True)]
    known = [(one, said, way) for one, said, way in found if said]
    known.sort(key=lambda each: (each[0].caller, each[0].at))
    told = [({one.tier or one.route.tier: said.quality, **said.tiers}, way.answers) for one, said, way in known]
    if all(chances.keys() <= values.keys() for values, chances in told):
        means = [sum(p * values[to] for to, p in chances.items()) for values, chances in told]
        names = [one.conversation or None for one, _, _ in known]
        return Evidence([Weighed(1.0, mean, 0.0, name) for mean, name in zip(means, names, strict=True)], 0.0)
    outcomes = [
        Weighed(supported(one, way) / one.route.p, said.quality, square(one, way), one.conversation or None)
        for one, said, way in known
    ]
    return Evidence(outcomes, sum(lost(one, way) for one, _, way in known) / len(known))


def square(one: Recorded, way: Way) -> float:
    """What the square of the outcome's weight was expected to be: that of the choices which could come, in the mean."""
    return sum(p * p / logged for tier, logged in one.route.logged.items() if (p := way.chances.get(tier)))


def supported(one: Recorded, way: Way) -> float:
    """The probability that `way` does what was done."""
    tier = one.route.tier
    return way.chances.get(tier, 0.0) if way.ends.get(tier, tier) == answered(one) else 0.0


def lost(one: Recorded, way: Way) -> float:
    """The probability that `way` does what could not have been done then (no support)."""
    elsewhere = sum(p for tier, p in way.chances.items() if tier not in one.route.logged)
    return elsewhere + way.chances.get(one.route.tier, 0.0) - supported(one, way)


class Prices:
    """What an answer costs at this policy's prices: by the counted tokens where that tier gave it, else with the mean
    length of that tier's answers and nothing cached."""

    def __init__(self, rows: Sequence[Recorded], policy: Policy) -> None:
        self.first = next(iter(policy.tiers))
        self.tiers = policy.tiers
        lengths: dict[str, list[int]] = {}
        for one in rows:
            if one.tier and one.used and one.used.completion is not None:
                lengths.setdefault(one.tier, []).append(one.used.completion)
        self._length = {tier: sum(found) // len(found) for tier, found in lengths.items()}

    def of(self, one: Recorded, tier: str, p: float) -> tuple[float, bool]:
        """`p` times the US dollars, and whether a server counted them. A tier that the policy lacks costs nothing."""
        if tier not in self.tiers:
            return 0.0, False
        used, price = one.used, self.tiers[tier].price
        if used and one.tier == tier and used.prompt is not None and used.completion is not None:
            return p * cost(price, used.prompt, min(used.cached or 0, used.prompt), used.completion) / NANO, True
        prompt = used.prompt if used and used.prompt is not None else int(one.facts.get("context", 0))
        return p * cost(price, prompt, 0, self._length.get(tier, OUTPUT_TOKENS)) / NANO, False
