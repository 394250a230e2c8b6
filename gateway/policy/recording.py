"""What may an operator decide about records?"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from gateway.policy.matching import STRICT
from gateway.policy.model import Count, Duration, Share


@dataclass(frozen=True, slots=True)
class Recording:
    """Which decisions are recorded, and where beside the file that the settings may name; never prompt text."""

    __pydantic_config__ = STRICT
    decisions: Annotated[Share, Field(description="the part of the decisions that is recorded")] = 1.0
    keep: Annotated[Count, Field(le=1_000_000, description="records kept in memory, the newest")] = 10_000
    stream: Annotated[
        Count | None,
        Field(le=100_000_000, description="entries kept in the shared store's stream tg1:records; null: no stream"),
    ] = None
    feedback: Annotated[Duration, Field(description="how long after an answer its outcome is taken")] = 86400.0
