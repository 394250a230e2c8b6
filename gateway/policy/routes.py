"""Where may a rule send requests?"""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Discriminator, Field, Tag

STRICT = {"extra": "forbid"}
ASKING = re.compile(r"<(0?\.[0-9]+|1|1\.0+)")


def band(text: str) -> str:
    """A band's key: "<0.35" or "else"."""
    if text != "else" and not ASKING.fullmatch(text):
        raise ValueError('a band is "<" and a probability up to 1, as in "<0.35", or else')
    return text


Band = Annotated[str, AfterValidator(band)]


@dataclass(frozen=True, slots=True)
class Split:
    """Two ways, told apart by a verdict."""

    __pydantic_config__ = STRICT
    simple: Annotated[str, Field(description="the tier when p_complex is below the threshold")]
    complex: Annotated[str, Field(description="the tier when p_complex is at or above the threshold")]


class Step(NamedTuple):
    """One band: p_complex from `low` to below `high`, its key in the file, and its tier."""

    low: float
    high: float
    key: str
    tier: str


@dataclass(frozen=True, slots=True)
class Bands:
    """Several ways, told apart by a verdict's probability: {"<0.35": tier, "<0.7": tier, else: tier}, rising.

    `steps` are the bands as they rise; the lowest begins, and the highest ends, beyond every probability.
    """

    __pydantic_config__ = STRICT
    p_complex: Annotated[dict[Band, str], Field(min_length=2, description="tiers by p_complex, the last key is else")]
    steps: tuple[Step, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = [-math.inf, *(math.inf if key == "else" else float(key[1:]) for key in self.p_complex)]
        steps = zip(ends, ends[1:], self.p_complex.items(), strict=False)
        object.__setattr__(self, "steps", tuple(Step(low, high, *named) for low, high, named in steps))


def shape_of_route(value: object) -> str:
    if isinstance(value, str):
        return "tier"
    return "bands" if isinstance(value, Bands) or (isinstance(value, dict) and "p_complex" in value) else "split"


Target = Annotated[
    Annotated[str, Tag("tier")] | Annotated[Split, Tag("split")] | Annotated[Bands, Tag("bands")],
    Discriminator(shape_of_route),
]
