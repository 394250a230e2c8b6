"""What may callers do, and what may they spend?"""

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway.policy.model import Count, Duration, Name, Several, Share, Window
from gateway.policy.rules import source
from gateway.policy.sections import LISTED, section
from gateway.store import Mode

TokenCount = Annotated[int, Field(ge=1, le=100_000_000)]


@section
class Budget:
    """What each caller of a plan, or all callers together, may spend in a window.

    Windows begin at multiples of their length since a Monday, UTC: 24h is a day, 7d a week, and `month` is the
    calendar's. A call reserves the most that it can cost until it is settled. `then`: what happens to a request whose
    cost on the highest tier that it may reach does not fit.
    """

    usd: Annotated[float, Field(gt=0, le=1e6, description="US dollars in a window")]
    window: Annotated[Window, Field(description="how long a window is, or month: the calendar's, UTC")] = 86400.0
    warn: Annotated[Share | None, Field(description="the part of it from which callers are told")] = 0.8
    then: Annotated[
        Literal["flash_only", "refuse"], Field(description="what does not fit: the first tier if that fits, or a 429")
    ] = "flash_only"


@section
class ProShare:
    """How many of a caller's requests may be answered above the first tier."""

    max: Annotated[Share, Field(description="the part of the requests in a window")]
    window: Annotated[Duration, Field(description="how long a window is")] = 3600.0


@section
class Plan:
    """What a caller may do. `may`: the tiers above the first that it may reach (and all that rank below them).

    `min_tier`: what would go lower goes to it; shares and `flash_only` count from it. `priority`: who waits for a tier
    with a higher one goes first. `fields`: privileged request fields that pass unchanged. `explain`: may ask for the
    whole decision.
    """

    requests_per_minute: Annotated[Count, Field(description="requests in a minute")] = 120
    concurrency: Annotated[Count, Field(description="requests at once")] = 16
    tokens_per_minute: Annotated[
        TokenCount | None, Field(description="tokens in a minute, prompts and answers; null is no limit")
    ] = None
    budget: Annotated[Budget | None, Field(description="what a caller may spend; null is no limit")] = None
    pro_share: Annotated[
        ProShare | None, Field(description="how much may be answered above the first tier; null is no limit")
    ] = None
    may: Annotated[Several, Field(description="tiers above the first that the caller may reach")] = ()
    min_tier: Annotated[
        str | None,
        Field(description="the lowest tier that answers; shares and flash_only count from it; null is the first"),
    ] = None
    priority: Annotated[int, Field(ge=0, le=100, description="who waits with a higher one goes first")] = 0
    fields: Annotated[Several, Field(description="privileged request fields that pass unchanged")] = ()
    explain: Annotated[bool, Field(description="may ask for the whole decision with x-route-explain")] = True


@section
class DefaultCaller:
    plan: Annotated[str, Field(description="the plan of callers that have no other")]


@section
class OnStoreFailure:
    """What becomes of a plan's limits while the shared store does not answer.

    deny   callers whose plan has the limit get a 503; for `pro_share`: the first tier only
    local  each gateway process keeps its share: the limit divided by the processes on the store; `pro_share` as it is
    allow  the limit is not kept
    """

    requests: Annotated[Mode, Field(description="requests_per_minute")] = "local"
    concurrency: Annotated[Mode, Field(description="concurrency")] = "local"
    tokens: Annotated[Mode, Field(description="tokens_per_minute")] = "local"
    budget: Annotated[Mode, Field(description="budgets; deny is a 503 also where `then` is flash_only")] = "deny"
    pro_share: Annotated[Mode, Field(description="pro_share; deny is the first tier only")] = "local"


@section
class Callers:
    default: Annotated[DefaultCaller, Field(description="for callers whose key names no plan")]
    plans: Annotated[dict[Name, Plan], Field(min_length=1, description="what callers may do, by plan")]
    on_store_failure: Annotated[
        OnStoreFailure, Field(description="what becomes of each limit while the store does not answer")
    ] = OnStoreFailure()
    user: Annotated[
        tuple[Annotated[str, AfterValidator(partial(source, alone="user"))], ...],
        LISTED,
        Field(description="what names who asks behind a key: header:NAME, metadata:NAME, user; it is logged"),
    ] = ()
