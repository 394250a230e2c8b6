"""How is one fact compared with what a rule wants?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from gateway.policy.sections import listed, section
from gateway.types import Facts

Matcher = Callable[[Facts], bool]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(listed, json_schema_input_type=str | tuple[str, ...]),
    Field(min_length=1),
]
Bound = Annotated[float | None, Field(ge=0)]


@section
class Range:
    """Both ends belong to it; an end that is left out is open."""

    min: Annotated[Bound, Field(description="smallest value that matches")] = None
    max: Annotated[Bound, Field(description="largest value that matches")] = None

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"can never match: min {self.min:g} is above max {self.max:g}")

    def __str__(self) -> str:
        ends = {"min": self.min, "max": self.max}
        return ", ".join(f"{name} {end:g}" for name, end in ends.items() if end is not None)


@section
class Except:
    """All names but these."""

    names: Annotated[Names, Field(alias="not", description="names that do not match")]


def shape_of_choice(value: object) -> str:
    return "except" if isinstance(value, dict | Except) else "names"


Choice = Annotated[Annotated[Names, Tag("names")] | Annotated[Except, Tag("except")], Discriminator(shape_of_choice)]
Values = tuple[float, float] | frozenset[str] | Except


@dataclass(frozen=True, slots=True)
class Check:
    """One compiled matcher: its `key` in `when`, the `test`, the `fact` that it looks at, and what it wants, in words
    (`wanted`) and as `values`: a range, a set of which one must be given, or all names except some.
    """

    key: str
    test: Matcher
    fact: Callable[[Facts], Any]
    wanted: str
    values: Values


def covers(wider: Values, narrower: Values) -> bool:
    """Whether every value that matches `narrower` matches `wider`."""
    if isinstance(wider, tuple):
        return isinstance(narrower, tuple) and wider[0] <= narrower[0] and narrower[1] <= wider[1]
    if isinstance(wider, frozenset):
        return isinstance(narrower, frozenset) and narrower <= wider
    if isinstance(narrower, Except):
        return set(wider.names) <= set(narrower.names)
    return isinstance(narrower, frozenset) and narrower.isdisjoint(wider.names)


def told(value: object) -> str:
    """A fact's value for a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "none"
    if isinstance(value, float):
        return str(round(value, 4))
    return "not given" if value is None else str(value)


def check_range(key: str, read: Callable[[Facts], float], span: Range) -> Check:
    low = -float("inf") if span.min is None else span.min
    high = float("inf") if span.max is None else span.max
    return Check(key, lambda facts: low <= read(facts) <= high, read, str(span), (low, high))


def check_choice(key: str, read: Callable[[Facts], str | None], choice: tuple[str, ...] | Except) -> Check:
    if isinstance(choice, Except):
        refused = frozenset(choice.names)
        return Check(key, lambda facts: read(facts) not in refused, read, f"not {' or '.join(choice.names)}", choice)
    names = frozenset(choice)
    return Check(key, lambda facts: read(facts) in names, read, " or ".join(choice), names)
