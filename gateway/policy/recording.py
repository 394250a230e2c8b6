"""What may an operator decide about records?"""

from typing import Annotated

from pydantic import Field

from gateway.policy.model import Count, Dollars, Duration, Share
from gateway.policy.sections import section


@section
class Shadow:
    """Which answers another tier gives once more, behind them, so that both may be compared; nobody sees the second."""

    tier: Annotated[str, Field(description="who is asked again, of answers of the tiers below it")]
    share: Annotated[Share, Field(description="the part of those answers that is compared")] = 0.01
    max_usd_per_day: Annotated[Dollars, Field(description="what that may cost in a day, UTC, at the tier's price")] = (
        1.0
    )


@section
class Recording:
    """Which decisions are recorded, and where beside the file that the settings may name; never prompt text."""

    decisions: Annotated[Share, Field(description="the part of the decisions that is recorded")] = 1.0
    keep: Annotated[Count, Field(le=1_000_000, description="records kept in memory, the newest")] = 10_000
    stream: Annotated[
        Count | None,
        Field(le=100_000_000, description="entries kept in the shared store's stream tg1:records; null: no stream"),
    ] = None
    feedback: Annotated[Duration, Field(description="how long after an answer its outcome is taken")] = 86400.0
    shadow: Annotated[
        Shadow | None, Field(description="answers that a higher tier gives once more, to compare; null: none")
    ] = None
    retry_within: Annotated[
        Duration | None,
        Field(description="an answer to the same, asked again so soon, is an outcome; null: nobody looks"),
    ] = None

    def __post_init__(self) -> None:
        if self.retry_within and self.retry_within > self.feedback:
            raise ValueError("retry_within is longer than feedback: so late no outcome is taken")
