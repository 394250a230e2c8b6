"""What may an operator decide about what is remembered?"""

from dataclasses import field
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway.policy.matching import Range
from gateway.policy.model import Duration
from gateway.policy.rules import source
from gateway.policy.sections import LISTED, section


@section
class CachingWhen:
    """A request is remembered only if it matches: an explicit temperature in the range, and no tools unless allowed."""

    temperature: Annotated[Range, Field(description="explicit temperatures that are remembered")] = field(
        default_factory=lambda: Range(max=0.0)
    )
    tools: Annotated[bool, Field(description="remember requests that bring tools, too")] = False


@section
class Caching:
    """Which answers are given again to the same request."""

    ttl: Annotated[Duration, Field(description="how long an answer is remembered")] = 600.0
    wait: Annotated[Duration, Field(description="the longest wait for the same answer in another process")] = 20.0
    when: Annotated[CachingWhen, Field(description="which requests are remembered")] = CachingWhen()


@section
class Sessions:
    """How conversations are told apart, and how long and when one stays on its tier.

    The first of `key` that a request has names its conversation, among its caller's; `prefix` stands for all that its
    user said before this turn. `stay`: until_escalated: once a rule or a verdict chose a higher tier, no verdict
    takes it down; on the lower tier each user turn may escalate. turn: each user turn goes where its verdict says, but
    down only where that costs no more than it saves. always: it stays where it began.
    """

    key: Annotated[
        tuple[Annotated[str, AfterValidator(partial(source, alone="prefix"))], ...],
        LISTED,
        Field(min_length=1, description="what names a conversation: header:NAME, metadata:NAME, prefix"),
    ] = ("header:x-session-id", "metadata:session_id", "prefix")
    ttl: Annotated[Duration, Field(description="how long a conversation is remembered after an answer")] = 3600.0
    stay: Annotated[
        Literal["until_escalated", "turn", "always"], Field(description="when a conversation may change its tier")
    ] = "until_escalated"

    def __post_init__(self) -> None:
        if "prefix" in self.key[:-1]:
            raise ValueError("every conversation has a prefix: it must be the last key")

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers among the keys."""
        return tuple(source.removeprefix("header:") for source in self.key if source.startswith("header:"))
