"""Which examples to fit to, inputs with outcomes, do recorded decisions give?"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from gateway.calibration import row
from gateway.recorded import RETRY, SHADOW, Chosen, Once, Recorded, Seen
from gateway.types import Verdict

GOOD = 0.5  # the quality from which an answer counts as good


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One decision. `at` in seconds since 1970; `conversation` is a name; `measures` as in a Score; `p_complex` as the
    classifier said it.

    `flash_ok` and `pro_ok`: whether the first and the last tier's answers were good; None: not known. `agree`: nobody
    judged, the first tier's answer counts as good from this agreement with another's. `weight`: for how many
    requests the outcome stands, one over how likely chance made the first tier the one that answered. `question`: what
    the classifier was asked for `p_complex`. `source` says who judged the answer, "" for nobody. `fixed`: the rank of
    the tier that it got without a verdict, None where one decided; `explored`: how likely chance was to send it another
    way.
    """

    id: str
    score: float
    at: float | None = None
    caller: str | None = None
    conversation: str | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    p_complex: float | None = None
    question: str | None = None
    flash_ok: bool | None = None
    pro_ok: bool | None = None
    agree: float | None = None
    weight: float = 1.0
    source: str = ""
    fixed: int | None = None
    explored: float = 0.0

    @property
    def retried(self) -> bool:
        """Whether all that is known is that the same was asked again: such outcomes are bad ones, all of them."""
        return self.source == RETRY

    @property
    def needed(self) -> bool | None:
        """Whether Pro was needed: Flash failed, and Pro did not where that is known. None without an outcome."""
        return None if self.flash_ok is None else not self.flash_ok and self.pro_ok is not False

    @property
    def failed(self) -> bool | None:
        """Whether Flash's answer was bad. None without an outcome."""
        return None if self.flash_ok is None else not self.flash_ok

    @property
    def gain(self) -> int | None:
        """What Pro's answer is worth above Flash's: 1, 0 or -1; as `needed` where Pro's outcome is not known."""
        if self.needed is None:
            return None
        worse = self.flash_ok is True and self.pro_ok is False
        return -1 if worse else int(self.needed)


class Narrowed:
    """Gives a record with no more than `examples` looks at, which shares what many have alike."""

    def __init__(self) -> None:
        self._once = Once()

    def __call__(self, one: Recorded) -> Recorded:
        """Raises RecordError."""
        facts, seen, route, verdict = one.read_facts(), one.seen, one.route, one.verdict
        return Recorded(
            id=one.id,
            caller=self._once(one.caller),
            conversation=one.conversation,
            at=one.at,
            route=self._once(Chosen(route.tier, chances=route.chances)),
            facts={"model": "", "caller": "", "plan": "", "score": facts.score, "measures": facts.measures},
            seen=self._once(seen and Seen({}, (), seen.tiers, seen.question)),
            verdict=verdict and Verdict(None, verdict.p_complex),
            tier=self._once(one.tier),
            outcome=one.outcome,
        )


def examples(records: Sequence[Recorded], agree: float = GOOD, without: Collection[str] = ()) -> list[Example]:
    """The decisions that have a local score; a caller's wish has none. `agree`: from which agreement with another
    tier's answer the first tier's counts as good. Outcomes of the sources `without` are left out. Where verdicts were
    asked for, decisions without one are `fixed`. Raises RecordError."""
    kept = [replace(one, outcome=None) if one.outcome and one.outcome.source in without else one for one in records]
    whoever = judging_whoever(kept)
    asked = any(one.verdict for one in kept)
    return [found for one in kept if (found := example(one, agree, whoever, asked))]


def judging_whoever(records: Sequence[Recorded]) -> set[str]:
    """The sources that mostly tell how good the first tier's answer was where another tier answered."""
    told: dict[str, list[bool]] = {}
    for one in records:
        first = one.seen.tiers[0] if one.seen and one.seen.tiers else ""
        if one.outcome and first and first != (one.tier or one.route.tier):
            told.setdefault(one.outcome.source, []).append(first in one.outcome.tiers)
    return {source for source, each in told.items() if sum(each) > len(each) / 2}


def example(one: Recorded, agree: float, whoever: Collection[str] = (), asked: bool = False) -> Example | None:
    """The decision; None without a local score. `whoever`: the sources that judge the first tier whoever answered, so
    that each outcome of theirs stands for its own request alone. `asked`: what has no verdict is decided otherwise."""
    facts = one.read_facts()
    if facts.score is None:
        return None
    tiers = one.seen.tiers if one.seen else ()
    p_complex = one.verdict.p_complex if one.verdict else None
    compared = one.outcome is not None and one.outcome.source == SHADOW
    least = agree if compared else GOOD
    return Example(
        id=f"{one.caller}/{one.id}",
        score=facts.score,
        at=one.at or None,
        caller=one.caller or None,
        conversation=one.conversation or None,
        measures=facts.measures,
        p_complex=p_complex,
        question=one.seen.question if one.seen and p_complex is not None else None,
        flash_ok=good(one, tiers[:1], least),
        pro_ok=good(one, tiers[1:][-1:], least),
        agree=agree if compared else None,
        weight=1.0 if one.outcome and one.outcome.source in whoever else stands_for(one, tiers[:1]),
        source=one.outcome.source if one.outcome else "",
        fixed=rank(one, tiers) if asked and one.verdict is None else None,
        explored=1 - max(one.route.logged.values()),
    )


def rank(one: Recorded, tiers: Sequence[str]) -> int:
    """The rank of the tier that the decision chose; of one that is gone the lowest."""
    return tiers.index(one.route.tier) if one.route.tier in tiers else 0


def stands_for(one: Recorded, first: Sequence[str]) -> float:
    """The importance weight of the first tier's outcome: one over its propensity, where that tier answered because
    exploration chose it at random; else 1."""
    chances, answered = one.route.chances, one.tier or one.route.tier
    by_chance = one.outcome is not None and first and answered == first[0] == one.route.tier
    return 1 / chances[first[0]] if by_chance and chances.get(first[0]) else 1.0


def good(one: Recorded, tier: Sequence[str], least: float) -> bool | None:
    """Whether that tier's answer was good; None when nobody judged it or there is no such tier."""
    if one.outcome is None or not tier:
        return None
    known = {one.tier or one.route.tier: one.outcome.quality, **one.outcome.tiers}
    return None if tier[0] not in known else known[tier[0]] >= least


def told(one: Example) -> Mapping[str, float]:
    """The numbers that the decision was made on, by name: score, p_complex where known, and the measures."""
    return row(one.score, one.p_complex, one.measures)
