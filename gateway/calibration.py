"""How likely is it that Pro is needed, by what a calibration file says?"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

SCHEMA = 1
BELIEVED = ("score", "p_complex")  # inputs that are probabilities of their own; taken as log odds
EDGE = 0.001  # log odds are taken from probabilities that keep this far from 0 and 1

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights by input name, for inputs less their mean in units of their scale. A missing input counts as its mean."""

    intercept: float
    weights: Mapping[str, float]
    means: Mapping[str, float]
    scales: Mapping[str, float]

    def p(self, row: Row) -> float:
        """The probability that Pro is needed, from 0 to 1."""
        total = self.intercept
        for name, weight in self.weights.items():
            if name in row:
                total += weight * (taken(name, row[name]) - self.means[name]) / self.scales[name]
        return sigmoid(total)


def taken(name: str, value: float) -> float:
    """An input as the layer takes it."""
    if name not in BELIEVED:
        return value
    sure = min(max(value, EDGE), 1 - EDGE)
    return math.log(sure / (1 - sure))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def load(text: str) -> tuple[Layer, tuple[float, ...]]:
    """The layer and the edges of a file's text. Raises ValueError for anything but a calibration of this schema."""
    told = json.loads(text)
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        raise ValueError(f"no calibration of schema {SCHEMA}")
    try:
        layer = Layer(**{name: told["layer"][name] for name in Layer.__slots__})
        edges = tuple(map(float, told["edges"]))
        whole = layer.p(dict.fromkeys(layer.weights, 0.5))
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"not a whole calibration: {error!r}") from None
    if not all(map(math.isfinite, (whole, *edges))):
        raise ValueError("its numbers are not finite")
    if list(edges) != sorted(edges):
        raise ValueError("edges are not in order")
    return layer, edges
