"""How good would other choices have been, judging by those that chance made?   Off-policy evaluation; pure.

Each outcome has a weight: the probability that the judged policy chooses what was chosen, over the probability that it
had when it was chosen (the propensity). The weighted mean is unbiased if every choice of the judged policy had a
chance. Values lie between 0 and 1.

Requests that the policy sends where few were sent have few outcomes, of great weight. How many there are of them is
known, so their mean is taken apart: by weights alone they would count as much as chance happened to choose for them.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEAST = 30.0  # effective outcomes below which nothing is claimed
RARE = 2.0  # expected square of a weight above which a request was mostly sent elsewhere
FEWEST, MOST, TURNS = 30, 100, 5  # blocks to take a variance over, and neighbours in each where there are enough
Z = 1.959964  # of 95 %


class Weighed(NamedTuple):
    """An outcome. `square`: what the weight's square was expected to be, by the propensities; 0 where all is known.
    `conversation`: its name, None where it is not known."""

    weight: float
    value: float
    square: float = 0.0
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A self-normalised mean (SNIPS) with its 95 % interval. `plain` is not normalised (IPS). `effective`: the
    effective sample size of these `outcomes`."""

    value: float
    low: float
    high: float
    plain: float
    effective: float
    outcomes: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Unknown(Exception):
    """The outcomes do not say enough; the message says why."""


@dataclass(slots=True)
class Mean:
    """A weighted mean: its `value`, and the `middle` of its interval, which is the mean with one bad and one good
    outcome more (as Agresti and Coull have it). `pulls`: the influence of each outcome on it. `unseen`: the influence
    of those two, taken from the requests that fewest outcomes tell of; without them outcomes that are all alike would
    have an interval without width. `worth`: the effective sample size."""

    value: float
    middle: float
    pulls: list[float]
    unseen: list[float]
    worth: float


def estimate(outcomes: Sequence[Weighed], unsupported: float = 0.0) -> Estimate:
    """The mean value of `outcomes`, in an order in which those that are alike follow each other. `unsupported`: the
    part of the choices that could not have been made when these were.

    Raises Unknown when choices lack support or too few outcomes count: those that came, or those that the propensities
    let expect. There seem to be more where the rare choices, which weigh most, have not come yet.
    """
    if not outcomes:
        raise Unknown("no outcome is known")
    if unsupported > 0:
        raise Unknown(f"{unsupported:.1%} of its choices had no chance when these were made: no outcome tells of them")
    mean = mean_of(outcomes)
    if mean.worth < LEAST:
        raise Unknown(f"{mean.worth:.0f} effective outcomes of {len(outcomes)}, at least {LEAST:.0f} are needed")
    found, plain = around(mean, outcomes), sum(one.weight * one.value for one in outcomes) / len(outcomes)
    return Estimate(found.value, found.low, found.high, plain, mean.worth, len(outcomes))


def rate(of: Sequence[Weighed]) -> Interval:
    """The mean value of requests, in an order as `estimate` takes them; anything from 0 to 1 where there are none."""
    return around(mean_of(of), of) if of else Interval(0.0, 0.0, 1.0)


def around(mean: Mean, outcomes: Sequence[Weighed]) -> Interval:
    """The mean of the outcomes with its interval."""
    off = deviation(mean.pulls, mean.unseen, [one.conversation for one in outcomes])
    low, high = min(mean.middle - off, mean.value), max(mean.middle + off, mean.value)
    return Interval(mean.value, max(0.0, low), min(1.0, high))


def difference(one: Sequence[Weighed], other: Sequence[Weighed]) -> Interval:
    """How much better the first way is, by outcomes of the same requests in the same order: what both ways do alike
    does not blur it. Raises Unknown."""
    if list(one) == list(other):
        return Interval(0.0, 0.0, 0.0)
    here, there = mean_of(one), mean_of(other)
    pulls = [mine - yours for mine, yours in zip(here.pulls, there.pulls, strict=True)]
    value, middle = here.value - there.value, here.middle - there.middle
    off = deviation(pulls, [*here.unseen, *there.unseen], [mine.conversation for mine in one])
    return Interval(value, max(-1.0, min(middle - off, value)), min(1.0, max(middle + off, value)))


def mean_of(outcomes: Sequence[Weighed]) -> Mean:
    """The mean of the rare ones and that of the others, as many as there are of each. Raises Unknown."""
    found, variance = Mean(0.0, 0.0, [0.0] * len(outcomes), [], 0.0), 0.0
    names = names_of([one.conversation for one in outcomes])
    rare = [at for at, one in enumerate(outcomes) if one.square > RARE]
    others = [at for at, one in enumerate(outcomes) if one.square <= RARE]
    for rows in (others, rare):
        if rows:
            variance += _add(found, outcomes, rows, len(rows) / len({names[at] for at in rows}))
    found.pulls = [pull - found.middle / len(outcomes) for pull in found.pulls]
    found.worth = 1 / variance
    return found


def _add(mean: Mean, outcomes: Sequence[Weighed], rows: Sequence[int], turns: float) -> float:
    """Adds the mean of one group of outcomes, `rows`, by its part of all; `turns`: how many of them a conversation has
    on average. Returns the variance that it brings, for values of variance 1. An outcome more (`unit`) weighs what the
    propensities let expect, where those that came weigh less."""
    mine, part = [outcomes[at] for at in rows], len(rows) / len(outcomes)
    total, squares = sum(one.weight for one in mine), sum(one.weight**2 for one in mine)
    if not total:
        raise Unknown(f"0 effective outcomes of {part:.1%} of the requests")
    valued, expected = sum(one.weight * one.value for one in mine), sum(one.square for one in mine)
    unit = max(squares / total, expected / len(rows)) + turns - 1
    whole, middle = total + 2 * unit, (valued + unit) / (total + 2 * unit)
    mean.value += part * valued / total
    mean.middle += part * middle
    for at, one in zip(rows, mine, strict=True):
        mean.pulls[at] = part * one.weight * (one.value - middle) / whole + middle / len(outcomes)
    mean.unseen = [part * unit * (value - middle) / whole for value in (0.0, 1.0)]
    return part * part / min(total * total / squares, len(rows) ** 2 / expected if expected else math.inf)


def deviation(pulls: Sequence[float], unseen: Sequence[float], conversations: Sequence[str | None]) -> float:
    """Half of a 95 % interval, by the variance between blocks of outcomes (batch means): the turns of a conversation,
    which are alike, are in one block."""
    sums = [0.0] * min(len(pulls), MOST, max(FEWEST, len(pulls) // TURNS))
    for run, pull in zip(runs(conversations, len(sums)), pulls, strict=True):
        sums[run] += pull
    return Z * math.sqrt(sum(pull * pull for pull in (*sums, *unseen)))


def runs(names: Sequence[Hashable], several: int) -> list[int]:
    """Of requests in order, in which of `several` blocks of the same length each is: with its neighbours, and with all
    of its name, which stand where the first of them does."""
    groups: dict[Hashable, list[int]] = {}
    for at, name in enumerate(names_of(names)):
        groups.setdefault(name, []).append(at)
    found, before = [0] * len(names), 0
    for group in groups.values():
        for at in group:
            found[at] = before * several // len(names)
        before += len(group)
    return found


def names_of(names: Sequence[Hashable]) -> list[Hashable]:
    """The names; in place of None, and of a name that most have, as conversations have that all begin alike, one that
    no other request has."""
    counts = Counter(names)
    return [(at,) if name is None or counts[name] * 2 > len(names) else name for at, name in enumerate(names)]


def effective(weights: Sequence[float]) -> float:
    """The effective sample size of weighted outcomes (Kish)."""
    total, squares = sum(weights), sum(weight * weight for weight in weights)
    return total * total / squares if squares else 0.0
