"""Which requests does a rule match, and where does it send them?"""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Discriminator, Field, Tag

from gateway.policy.matching import Check, Choice, Names, Range, Values, check_choice, check_range, covers, told
from gateway.policy.sections import section
from gateway.types import Facts

SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie", "x-api-key")
ASKING = re.compile(r"<(0?\.[0-9]+|1|1\.0+)")


def header_name(name: str) -> str:
    """Header names in lower case. Raises ValueError for headers that carry secrets: facts may be recorded."""
    if name.lower() in SECRET_HEADERS:
        raise ValueError("this header carries a secret, a rule may not look at it")
    return name.lower()


def source(text: str, alone: str) -> str:
    """What in a request names something: header:NAME, metadata:NAME, or what stands `alone`. Raises ValueError."""
    kind, _, name = text.partition(":")
    if text != alone and not (kind in ("header", "metadata") and name):
        raise ValueError(f"this is header:NAME, metadata:NAME or {alone}")
    return f"header:{header_name(name)}" if kind == "header" else text


def band(text: str) -> str:
    """A band's key: "<0.35" or "else"."""
    if text != "else" and not ASKING.fullmatch(text):
        raise ValueError('a band is "<" and a probability up to 1, as in "<0.35", or else')
    return text


def part(span: Range | None) -> Range | None:
    """A range of a fact from 0 to 1. Raises ValueError for what looks like percentages."""
    if span and max(span.min or 0, span.max or 0) > 1:
        raise ValueError("goes from 0 to 1: 0.9 is 90 %")
    return span


HeaderName = Annotated[str, AfterValidator(header_name)]
Part = Annotated[Range | None, AfterValidator(part)]
Band = Annotated[str, AfterValidator(band)]


@section
class CallerMatch:
    """Who asks."""

    plan: Annotated[Choice | None, Field(description="the caller's plan: a name, a list, or {not: name}")] = None
    name: Annotated[Choice | None, Field(description="the key owner's name: a name, a list, or {not: name}")] = None

    def __post_init__(self) -> None:
        if self.plan is None and self.name is None:
            raise ValueError("give plan, name or both")


@section
class TierLoad:
    """How busy a tier is. A queue of unknown length matches no range."""

    inflight: Annotated[Range | None, Field(description="requests that this gateway has open to the tier")] = None
    waiting: Annotated[Range | None, Field(description="requests in the queues of the tier's servers")] = None

    def __post_init__(self) -> None:
        if self.inflight is None and self.waiting is None:
            raise ValueError("give inflight, waiting or both")


@section
class SessionMatch:
    """How the conversation stands. One that is not known has no tier and no age."""

    tier: Annotated[Choice | None, Field(description="the tier that answered last: a name, a list, or {not: name}")] = (
        None
    )
    age: Annotated[Range | None, Field(description="seconds since that answer")] = None
    turns: Annotated[Range | None, Field(description="user turns in a row that this tier answered")] = None

    def __post_init__(self) -> None:
        if self.tier is None and self.age is None and self.turns is None:
            raise ValueError("give tier, age, turns or several of them")


@section
class When:
    """A request matches when all that is given holds."""

    characters: Annotated[Range | None, Field(description="length of the last user turn, in characters")] = None
    turns: Annotated[Range | None, Field(description="number of user messages")] = None
    context: Annotated[Range | None, Field(description="estimated prompt tokens")] = None
    budget_used: Annotated[
        Part, Field(description="the part of the caller's budget that is used or held, from 0 to 1")
    ] = None
    score: Annotated[Part, Field(description="how hard the last user turn looks, from 0 to 1")] = None
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
    session: Annotated[SessionMatch | None, Field(description="how the conversation stands")] = None

    def __post_init__(self) -> None:
        if all(getattr(self, one.name) is None for one in fields(self)):
            raise ValueError("is empty; a rule for every request has no `when`")


@section
class Split:
    """A route with two tiers, between which the verdict decides."""

    simple: Annotated[str, Field(description="the tier when p_complex is below the threshold")]
    complex: Annotated[str, Field(description="the tier when p_complex is at or above the threshold")]


class Step(NamedTuple):
    """One band: p_complex from `low` to below `high`, its key in the file, and its tier."""

    low: float
    high: float
    key: str
    tier: str


@section
class Bands:
    """A route with several tiers, between which p_complex decides: {"<0.35": tier, "<0.7": tier, else: tier}, rising.

    `steps` are the bands in rising order; the first begins at -inf, the last ends at inf.
    """

    p_complex: Annotated[dict[Band, str], Field(min_length=2, description="tiers by p_complex, the last key is else")]
    steps: tuple[Step, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = [-math.inf, *(math.inf if key == "else" else float(key[1:]) for key in self.p_complex)]
        steps = zip(ends, ends[1:], self.p_complex.items(), strict=False)
        object.__setattr__(self, "steps", tuple(Step(low, high, *named) for low, high, named in steps))


def shape_of_route(value: object) -> str | None:
    if isinstance(value, str):
        return "tier"
    if isinstance(value, Bands) or (isinstance(value, dict) and "p_complex" in value):
        return "bands"
    return "split" if isinstance(value, Split | dict) else None


Target = Annotated[
    Annotated[str, Tag("tier")] | Annotated[Split, Tag("split")] | Annotated[Bands, Tag("bands")],
    Discriminator(
        shape_of_route,
        custom_error_type="route",
        custom_error_message="expected a tier, {simple: tier, complex: tier}, or {p_complex: bands}",
    ),
]


@section
class Rule:
    """One line of the policy: which requests, to which tier. A rule without `when` matches every request.

    `checks` are the compiled matchers, cheapest first.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64, description="stable name")]
    route: Annotated[Target, Field(description="a tier, {simple: tier, complex: tier}, or {p_complex: bands}")]
    when: Annotated[When | None, Field(description="all that is given must hold")] = None
    explore: Annotated[
        float, Field(ge=0, le=0.5, description="the part of the judged requests that takes another side, by chance")
    ] = 0.0
    checks: tuple[Check, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.explore and not self.asks:
            raise ValueError("a rule with one tier has no other side to explore")
        object.__setattr__(self, "checks", tuple(compiled(self.when)) if self.when else ())

    @property
    def asks(self) -> bool:
        """Whether it wants a verdict."""
        return not isinstance(self.route, str)

    def matches(self, facts: Facts) -> bool:
        for check in self.checks:  # noqa: SIM110  (a generator in all() would cost as much as the checks)
            if not check.test(facts):
                return False
        return True

    def covers(self, asked: Mapping[str, Values]) -> bool:
        """Whether this rule matches every request that another one does, whose checks want the values `asked`, by
        key."""
        for check in self.checks:  # noqa: SIM110  (as in `matches`: each rule is held against all before it)
            if check.key not in asked or not covers(check.values, asked[check.key]):
                return False
        return True

    def why_not(self, facts: Facts) -> str | None:
        """The first matcher that does not hold, with the fact's value; None when the rule matches."""
        for check in self.checks:
            if not check.test(facts):
                return f"{check.key} is {told(check.fact(facts))}, wanted {check.wanted}"
        return None


def compiled(when: When) -> list[Check]:
    """The matchers of `when` as closures over facts, cheapest first."""
    given = {one.name: getattr(when, one.name) for one in fields(when)}
    checks = [check_flag(key, wanted) for key, wanted in given.items() if isinstance(wanted, bool)]
    checks += [check_fact(key, span) for key, span in given.items() if isinstance(span, Range)]
    if when.model:
        checks.append(check_choice("model", operator.attrgetter("model"), when.model))
    if when.caller and when.caller.plan:
        checks.append(check_choice("caller.plan", operator.attrgetter("plan"), when.caller.plan))
    if when.caller and when.caller.name:
        checks.append(check_choice("caller.name", operator.attrgetter("caller"), when.caller.name))
    checks += [check_header(name, values) for name, values in (when.header or {}).items()]
    checks += [check for tier, load in (when.load or {}).items() for check in check_load(tier, load)]
    checks += check_session(when.session) if when.session else ()
    if when.signals:
        checks.append(check_signals(when.signals))
    return checks


def check_flag(key: str, wanted: bool) -> Check:
    read = operator.attrgetter(key)
    return Check(key, read if wanted else lambda facts: not read(facts), read, told(wanted), frozenset({told(wanted)}))


def check_fact(key: str, span: Range) -> Check:
    """A fact that is a number. A request that was not scored matches no range of the score."""
    read: Callable[[Facts], Any] = operator.attrgetter(key)
    if key != "score":
        return check_range(key, read, span)
    inside = check_range(key, lambda facts: math.nan if facts.score is None else facts.score, span)
    return Check(inside.key, inside.test, read, inside.wanted, inside.values)


def check_load(tier: str, load: TierLoad) -> list[Check]:
    checks = []
    if load.inflight:
        checks.append(check_range(f"load.{tier}.inflight", lambda facts: facts.load.get(tier, 0), load.inflight))
    if load.waiting:
        checks.append(
            check_range(f"load.{tier}.waiting", lambda facts: facts.waiting.get(tier, math.nan), load.waiting)
        )
    return checks


def check_session(wanted: SessionMatch) -> list[Check]:
    def of(name: str, unknown: Any) -> Callable[[Facts], Any]:
        return lambda facts: getattr(facts.session, name, unknown)

    checks = []
    if wanted.tier:
        checks.append(check_choice("session.tier", of("tier", None), wanted.tier))
    if wanted.age:
        checks.append(check_range("session.age", of("age", math.nan), wanted.age))
    if wanted.turns:
        checks.append(check_range("session.turns", of("turns", 0), wanted.turns))
    return checks


def check_header(name: str, values: tuple[str, ...]) -> Check:
    return check_choice(f"header.{name}", lambda facts: facts.headers.get(name), values)


def check_signals(names: tuple[str, ...]) -> Check:
    wanted = frozenset(names)
    read = operator.attrgetter("signals")
    return Check("signals", lambda facts: not wanted.isdisjoint(facts.signals), read, " or ".join(names), wanted)
