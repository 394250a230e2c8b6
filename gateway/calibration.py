"""How likely is it that Pro is needed, by what a calibration file says?"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

SCHEMA = 2
READ = (1, SCHEMA)  # the first has no trees
BELIEVED = ("score", "p_complex")  # inputs that are probabilities of their own; taken as log odds
EDGE = 0.001  # log odds are taken from probabilities that keep this far from 0 and 1
ALIKE = 0.25  # part that trees have in p; measured beside more and less (LOG.md, 2026-11-22)

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch of a tree: an input less than `cut` leads `below`. A number ends it: the probability there."""

    name: str
    cut: float
    below: "Branch | float"
    above: "Branch | float"


Node = Branch | float


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights by input name, for inputs less their mean in units of their scale. A missing input counts as its mean.

    `saved`: this one says that Flash fails, and that one that Pro does not where Flash does; None: this one says both.
    `trees` each tell what came of requests that look alike; without any, and where they ask for an input that is
    missing, p is by the weights alone.
    """

    intercept: float
    weights: Mapping[str, float]
    means: Mapping[str, float]
    scales: Mapping[str, float]
    saved: "Layer | None" = None
    trees: tuple[Node, ...] = ()

    @property
    def inputs(self) -> set[str]:
        """The names of all that p depends on."""
        named = {branch.name for branch in _branches(self.trees)}
        return {*self.weights, *(self.saved.inputs if self.saved else ()), *named}

    def p(self, row: Row) -> float:
        """The probability that Pro is needed, from 0 to 1."""
        total = self.intercept
        for name, weight in self.weights.items():
            if name in row:
                total += weight * (taken(name, row[name]) - self.means[name]) / self.scales[name]
        p = sigmoid(total) * (self.saved.p(row) if self.saved else 1.0)
        try:
            found = [_leaf(tree, row) for tree in self.trees]
        except KeyError:  # a verdict that did not come, or records of before
            return p
        return p + ALIKE * (sum(found) / len(found) - p) if found else p


def _leaf(node: Node, row: Row) -> float:
    while isinstance(node, Branch):
        node = node.below if row[node.name] < node.cut else node.above
    return node


def _branches(nodes: Iterable[Node]) -> Iterator[Branch]:
    for node in nodes:
        if isinstance(node, Branch):
            yield node
            yield from _branches((node.below, node.above))


def _leaves(nodes: Iterable[Node]) -> Iterator[float]:
    for node in nodes:
        yield from _leaves((node.below, node.above)) if isinstance(node, Branch) else (node,)


@dataclass(frozen=True, slots=True)
class Basis:
    """What a calibration was fitted on: how p was spread over its records (`counts` below, between and above `edges`),
    and with how many effective outcomes. `label` is what those count: needed | failed. `judged`: somebody's judgements
    were among them. `agree`: agreements were, and from which one Flash's answer counted as good. `question`: what the
    verdicts answered that p goes by; None: p goes by none, or nobody knows. `asked`: of the requests that verdicts
    decided, no others.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    outcomes: int
    label: Literal["needed", "failed"]
    judged: bool
    agree: float | None
    question: str | None = None
    asked: bool = False


class Fitted(NamedTuple):
    """What a file holds. `edges` are the thresholds; `basis` None: the file does not say."""

    layer: Layer
    edges: tuple[float, ...]
    basis: Basis | None


def row(score: float | None, p_complex: float | None, measures: Row) -> Row:
    """The numbers that a decision is made on, by name; what is None is not among them."""
    said = {"score": score, "p_complex": p_complex}
    return {**{name: value for name, value in said.items() if value is not None}, **measures}


def taken(name: str, value: float) -> float:
    """An input as the layer takes it."""
    if name not in BELIEVED:
        return value
    sure = min(max(value, EDGE), 1 - EDGE)
    return math.log(sure / (1 - sure))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def load(text: str) -> Fitted:
    """What a file's text holds. Raises ValueError for anything but a calibration of a schema in READ."""
    try:
        return _fitted(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _fitted(told: Any) -> Fitted:
    if not isinstance(told, dict) or told.get("schema") not in READ:
        raise ValueError(f"no calibration of schema {SCHEMA}")
    try:
        layer = msgspec.convert(told["layer"], Layer)
        edges = tuple(map(float, told["edges"]))
        basis = msgspec.convert(told["basis"], Basis) if told.get("basis") else None
        whole = layer.p(dict.fromkeys(layer.inputs, 0.5))
    except (KeyError, TypeError, ZeroDivisionError, OverflowError, msgspec.ValidationError) as error:
        raise ValueError(f"not a whole calibration: {error!r}") from None
    if not all(map(math.isfinite, (whole, *edges))):
        raise ValueError("its numbers are not finite")
    if not all(0 <= leaf <= 1 for leaf in _leaves(layer.trees)):
        raise ValueError("its trees do not end in probabilities")
    if list(edges) != sorted(edges):
        raise ValueError("edges are not in order")
    if basis and (len(basis.counts) != len(basis.edges) + 1 or min(basis.counts) < 1):
        raise ValueError("its basis does not fit together")
    return Fitted(layer, edges, basis)
