"""Whose answers are kept back at first, and what makes their start too weak to be let out?"""

from dataclasses import fields
from typing import Annotated

from pydantic import Field

from gateway.ids import fingerprint
from gateway.policy.model import Count, Duration, Several
from gateway.policy.sections import LISTED, section

Patterns = Annotated[tuple[Annotated[str, Field(max_length=500)], ...], LISTED]


@section
class Most:
    max: Annotated[float, Field(description="weak at or below it")]


@section
class Weak:
    """Signs of a weak start; those left out are not looked for. The figures are means over the tokens kept back."""

    mean_logprob: Annotated[Most | None, Field(description="the tokens' own log-probability")] = None
    margin: Annotated[Most | None, Field(description="the likeliest token's log-probability less the second's")] = None
    refusal: Annotated[bool, Field(description="the server says so: a refusal field, or content_filter")] = False
    refusal_words: Annotated[Patterns, Field(description="regular expressions that a refusal matches")] = ()
    repetition: Annotated[bool, Field(description="the text has run into a loop")] = False
    schema_violation: Annotated[bool, Field(description="it can no longer become the JSON that was asked for")] = False
    empty: Annotated[bool, Field(description="it ended without content or a tool call")] = False

    def __post_init__(self) -> None:
        if not (self.figures or self.refusal_words or self.seen):
            raise ValueError("give at least one sign")

    @property
    def figures(self) -> bool:
        """Whether the servers must tell log-probabilities."""
        return self.mean_logprob is not None or self.margin is not None

    @property
    def seen(self) -> list[str]:
        """The signs that are looked for and have no bound."""
        return [one.name for one in fields(self) if getattr(self, one.name) is True]


@section
class Holdback:
    """The start of an answer is held back until it has `tokens`, or `wait` has passed since its first token; then it is
    let out unless it is weak."""

    tiers: Annotated[Several, Field(min_length=1, description="whose answers are kept back at first")]
    to: Annotated[str, Field(description="who answers in place of a weak start")]
    escalate_when: Annotated[Weak, Field(description="signs of a weak start")]
    tokens: Annotated[Count, Field(le=1000, description="how many tokens are kept back at most")] = 24
    wait: Annotated[Duration, Field(description="how long they are, from the first one")] = 0.4

    @property
    def looks(self) -> str:
        """An identifier of what is looked at in a start: equal for rules that differ only in the bounds of its
        figures."""
        when = self.escalate_when
        words = fingerprint("\n".join(when.refusal_words)) if when.refusal_words else ""
        told = [*when.seen, *(["words " + words] if words else []), *(["figures"] if when.figures else [])]
        return f"{self.tokens} tokens or {self.wait:g} s: {', '.join(told)}"
