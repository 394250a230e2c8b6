"""Which requests does a rule match?"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from gateway.policy.routes import STRICT, Target
from gateway.types import Facts

SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie", "x-api-key")
Matcher = Callable[[Facts], bool]


def listed(value: object) -> object:
    """One name stands for a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def header_name(name: str) -> str:
    """Header names in lower case. Raises ValueError for headers that carry secrets: facts may be recorded."""
    if name.lower() in SECRET_HEADERS:
        raise ValueError("this header carries a secret, a rule may not look at it")
    return name.lower()


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(listed, json_schema_input_type=str | tuple[str, ...]),
    Field(min_length=1),
]
HeaderName = Annotated[str, AfterValidator(header_name)]
Bound = Annotated[float | None, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Range:
    """Both ends belong to it; an end that is left out is open."""

    __pydantic_config__ = STRICT
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


@dataclass(frozen=True, slots=True)
class Except:
    """All names but these."""

    __pydantic_config__ = STRICT
    names: Annotated[Names, Field(alias="not", description="names that do not match")]


def shape_of_choice(value: object) -> str:
    return "except" if isinstance(value, dict | Except) else "names"


Choice = Annotated[Annotated[Names, Tag("names")] | Annotated[Except, Tag("except")], Discriminator(shape_of_choice)]


@dataclass(frozen=True, slots=True)
class CallerMatch:
    """Who asks."""

    __pydantic_config__ = STRICT
    plan: Annotated[Choice | None, Field(description="the caller's plan: a name, a list, or {not: name}")] = None
    name: Annotated[Choice | None, Field(description="the key owner's name: a name, a list, or {not: name}")] = None

    def __post_init__(self) -> None:
        if self.plan is None and self.name is None:
            raise ValueError("give plan, name or both")


@dataclass(frozen=True, slots=True)
class TierLoad:
    """How busy a tier is. A queue of unknown length matches no range."""

    __pydantic_config__ = STRICT
    inflight: Annotated[Range | None, Field(description="requests that this gateway has open to the tier")] = None
    waiting: Annotated[Range | None, Field(description="requests in the queues of the tier's servers")] = None

    def __post_init__(self) -> None:
        if self.inflight is None and self.waiting is None:
            raise ValueError("give inflight, waiting or both")


@dataclass(frozen=True, slots=True)
class When:
    """A request matches when all that is given holds."""

    __pydantic_config__ = STRICT
    characters: Annotated[Range | None, Field(description="length of the last user turn, in characters")] = None
    turns: Annotated[Range | None, Field(description="number of user messages")] = None
    context: Annotated[Range | None, Field(description="estimated prompt tokens")] = None
    budget_used: Annotated[Range | None, Field(description="the part of the caller's budget that is used or held")] = (
        None
    )
    score: Annotated[Range | None, Field(description="how hard the last user turn looks, 0 to 1, no model asked")] = (
        None
    )
    tools: Annotated[bool | None, Field(description="the request brings tools")] = None
    json_schema: Annotated[bool | None, Field(description="the request wants an answer after a JSON schema")] = None
    vision: Annotated[bool | None, Field(description="the request holds an image")] = None
    signals: Annotated[Names | None, Field(description="signals, any of which is seen in the last user turn")] = None
    header: Annotated[
        dict[HeaderName, Names] | None, Field(min_length=1, description="request headers and their value or values")
    ] = None
    caller: Annotated[CallerMatch | None, Field(description="who asks")] = None
    model: Annotated[Names | None, Field(description="the model name that the caller wrote")] = None
    load: Annotated[dict[str, TierLoad] | None, Field(min_length=1, description="how busy tiers are")] = None

    def __post_init__(self) -> None:
        if not any(getattr(self, name) is not None for name in self.__slots__):
            raise ValueError("is empty; a rule for every request has no `when`")


@dataclass(frozen=True, slots=True)
class Check:
    """One compiled matcher: its key in `when`, the test, the fact it looks at, and what is wanted, in words."""

    key: str
    test: Matcher
    fact: Callable[[Facts], Any]
    wanted: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the policy: which requests, to which tier. A rule without `when` matches every request.

    `checks` are the compiled matchers, cheapest first.
    """

    __pydantic_config__ = STRICT
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64, description="stable name")]
    route: Annotated[Target, Field(description="a tier, {simple: tier, complex: tier}, or {p_complex: bands}")]
    when: Annotated[When | None, Field(description="all that is given must hold")] = None
    explore: Annotated[
        float, Field(ge=0, le=0.5, description="the part of the judged requests that takes another side, by chance")
    ] = 0.0
    checks: tuple[Check, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.explore and isinstance(self.route, str):
            raise ValueError("a rule with one tier has no other side to explore")
        object.__setattr__(self, "checks", tuple(compiled(self.when)) if self.when else ())

    def matches(self, facts: Facts) -> bool:
        for check in self.checks:  # noqa: SIM110  (a generator in all() would cost as much as the checks)
            if not check.test(facts):
                return False
        return True

    def why_not(self, facts: Facts) -> str | None:
        """The first matcher that does not hold, with the fact's value; None when the rule matches."""
        for check in self.checks:
            if not check.test(facts):
                return f"{check.key} is {told(check.fact(facts))}, wanted {check.wanted}"
        return None


def told(value: object) -> str:
    """A fact in words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "none"
    return "not given" if value is None else str(value)


def compiled(when: When) -> list[Check]:
    """The matchers of `when` as closures over facts, cheapest first."""
    flags = {"tools": when.tools, "json_schema": when.json_schema, "vision": when.vision}
    checks = [check_flag(key, wanted) for key, wanted in flags.items() if wanted is not None]
    checks += [
        check_range(key, operator.attrgetter(key), span)
        for key in ("characters", "turns", "context", "budget_used")
        if (span := getattr(when, key))
    ]
    if when.score:
        checks.append(check_score(when.score))
    if when.model:
        checks.append(check_choice("model", operator.attrgetter("model"), when.model))
    if when.caller and when.caller.plan:
        checks.append(check_choice("caller.plan", operator.attrgetter("plan"), when.caller.plan))
    if when.caller and when.caller.name:
        checks.append(check_choice("caller.name", operator.attrgetter("caller"), when.caller.name))
    checks += [check_header(name, values) for name, values in (when.header or {}).items()]
    checks += [check for tier, load in (when.load or {}).items() for check in check_load(tier, load)]
    if when.signals:
        checks.append(check_signals(when.signals))
    return checks


def check_flag(key: str, wanted: bool) -> Check:
    read = operator.attrgetter(key)
    return Check(key, read if wanted else lambda facts: not read(facts), read, told(wanted))


def check_range(key: str, read: Callable[[Facts], float], span: Range) -> Check:
    low = -float("inf") if span.min is None else span.min
    high = float("inf") if span.max is None else span.max
    return Check(key, lambda facts: low <= read(facts) <= high, read, str(span))


def check_score(span: Range) -> Check:
    """A request that was not scored matches no range."""
    inside = check_range("score", lambda facts: math.nan if facts.score is None else facts.score, span)
    return Check(inside.key, inside.test, operator.attrgetter("score"), inside.wanted)


def check_load(tier: str, load: TierLoad) -> list[Check]:
    checks = []
    if load.inflight:
        checks.append(check_range(f"load.{tier}.inflight", lambda facts: facts.load.get(tier, 0), load.inflight))
    if load.waiting:
        checks.append(
            check_range(f"load.{tier}.waiting", lambda facts: facts.waiting.get(tier, math.nan), load.waiting)
        )
    return checks


def check_choice(key: str, read: Callable[[Facts], str | None], choice: tuple[str, ...] | Except) -> Check:
    if isinstance(choice, Except):
        refused = frozenset(choice.names)
        return Check(key, lambda facts: read(facts) not in refused, read, f"not {' or '.join(choice.names)}")
    names = frozenset(choice)
    return Check(key, lambda facts: read(facts) in names, read, " or ".join(choice))


def check_header(name: str, values: tuple[str, ...]) -> Check:
    return check_choice(f"header.{name}", lambda facts: facts.headers.get(name), values)


def check_signals(names: tuple[str, ...]) -> Check:
    wanted = frozenset(names)
    read = operator.attrgetter("signals")
    return Check("signals", lambda facts: not wanted.isdisjoint(facts.signals), read, " or ".join(names))
