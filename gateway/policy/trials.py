"""What is in a policy file's own test?"""

from dataclasses import field
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from gateway.policy.model import Reason, Share
from gateway.policy.sections import section
from gateway.types import Label


@section
class TestCaller:
    __test__ = False
    plan: Annotated[str, Field(description="the caller's plan")] = ""
    name: Annotated[str, Field(description="the caller's name")] = "test"


@section
class TestSession:
    """How the test's conversation stands; its tier was decided for it."""

    __test__ = False
    tier: Annotated[str, Field(description="the tier that answered last")]
    age: Annotated[float, Field(ge=0, description="seconds since that answer")] = 0.0
    turns: Annotated[int, Field(ge=0, description="user turns in a row that this tier answered")] = 1


@section
class TestVerdict:
    """A verdict as the classifier would give it: a probability, a label, or both."""

    __test__ = False
    p_complex: Annotated[Share | None, Field(description="probability of complex")] = None
    label: Annotated[Label | None, Field(description="the classifier's word")] = None

    def __post_init__(self) -> None:
        if self.p_complex is None and self.label is None:
            raise ValueError("give p_complex, label or both")


def shape_of_verdict(value: object) -> str:
    return "verdict" if isinstance(value, dict | TestVerdict) else "failure"


def verdict_or_failure(value: object) -> object:
    if isinstance(value, dict | TestVerdict) or value in get_args(Reason):
        return value
    raise ValueError(f"expected {{p_complex: 0.9}}, {{label: complex}} or how it fails: {', '.join(get_args(Reason))}")


StubVerdict = Annotated[
    Annotated[TestVerdict, Tag("verdict")] | Annotated[Reason, Tag("failure")],
    Discriminator(shape_of_verdict),
    BeforeValidator(verdict_or_failure),
]


@section
class Expect:
    """What must come out; what is left out is not looked at."""

    tier: Annotated[str | None, Field(description="the tier that answers")] = None
    rule: Annotated[str | None, Field(description='the rule\'s id, or "caller" for a wish')] = None
    triaged: Annotated[bool | None, Field(description="the rule asks for a verdict")] = None
    reason: Annotated[str | None, Field(description="why this tier")] = None
    band: Annotated[str | None, Field(description="the key of the band that the verdict falls in")] = None


@section
class PolicyTest:
    """A request and what the policy must do with it; run by `policy check` and before every reload."""

    name: Annotated[str, Field(min_length=1, description="the sentence that the test proves")]
    request: Annotated[dict[str, Any], Field(description="a request body; model is auto when left out")]
    expect: Annotated[Expect, Field(description="what must come out")]
    caller: Annotated[TestCaller, Field(description="who asks; the default plan when left out")] = TestCaller()
    headers: Annotated[dict[str, str], Field(description="request headers")] = field(default_factory=dict)
    load: Annotated[dict[str, int], Field(description="requests in flight, by tier")] = field(default_factory=dict)
    waiting: Annotated[dict[str, int], Field(description="requests in the servers' queues, by tier")] = field(
        default_factory=dict
    )
    session: Annotated[TestSession | None, Field(description="how the conversation stands")] = None
    verdict: Annotated[StubVerdict | None, Field(description="what the classifier says, or how it fails")] = None
