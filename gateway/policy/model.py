"""What may an operator decide about tiers, triage and failover?

Field names equal the YAML keys. All values are frozen: a request keeps the policy that it began with.
Durations are seconds, written with a unit in YAML ("800ms", "2s", "10m"). The loader checks and fills these classes.
"""

import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from gateway.dialects import Api
from gateway.policy.prompts import Prompt
from gateway.policy.sections import LISTED, listed, section
from gateway.types import Strategy

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST = 36_525 * UNITS["d"]
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")


def seconds(text: object) -> float:
    """ "800ms" -> 0.8. Raises ValueError when the unit is missing or unknown, below 1ms and above LONGEST."""
    found = DURATION.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise ValueError('a duration needs a number and a unit: "800ms", "2s", "10m", "1h", "7d"')
    length = float(found[1]) * UNITS[found[2]]
    if not UNITS["ms"] <= length <= LONGEST:
        raise ValueError("a duration is at least 1ms, and at most 36525d")
    return length


def window_of(text: object) -> float | Literal["month"]:
    """The seconds of a duration, or "month". Raises ValueError."""
    try:
        return "month" if text == "month" else seconds(text)
    except ValueError as error:
        raise ValueError(f"{error}; or month, the calendar's") from None


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema({"type": "string", "pattern": f"^{DURATION.pattern}$|^\\$\\{{.*\\}}$"}),
]
Window = Annotated[
    float | Literal["month"],
    BeforeValidator(window_of),
    WithJsonSchema({"type": "string", "pattern": f"^month$|^{DURATION.pattern}$|^\\$\\{{.*\\}}$"}),
]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Dollars = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]
Printable = Annotated[str, Field(pattern=r"^[ -~]*$", max_length=100)]
LOCAL = "local"  # in place of a tier: the local score decides
Reason = Literal["timeout", "parse", "truncated", "empty", "overloaded", "error"]
Failure = Literal["connect", "overloaded", "first_byte", "5xx"]
Several = Annotated[tuple[str, ...], LISTED]


@section
class Timeouts:
    """`first_byte` and `idle` bind streams; a JSON answer has `total`, and about `first_byte` where its server stands
    still and another one is well. Where vLLM's engine hangs, a silent stream ends after three times `first_byte`, and
    so does a JSON answer of which no other replica is well. Seconds."""

    connect: Annotated[Duration, Field(description="until a connection stands")] = 1.0
    first_byte: Annotated[Duration, Field(description="until a stream's first byte")] = 20.0
    idle: Annotated[Duration, Field(description="between two pieces of a stream; a tool's argument may be one")] = 300.0
    total: Annotated[Duration, Field(description="until the whole answer is there")] = 600.0


@section
class TierLimits:
    """`max_inflight`: requests that this gateway keeps open to the tier; the next `queue` wait, by their plan's
    priority, for at most `queue_timeout`; who comes after them is refused as overloaded at once. `adaptive`: fewer are
    open while requests wait in the servers, by vLLM's own queue or, where that is not told, by streams' time to the
    first byte.
    """

    max_inflight: Annotated[Count, Field(description="requests open to the tier at once")] = 256
    adaptive: Annotated[bool, Field(description="fewer are open while requests wait inside the servers")] = False
    queue: Annotated[int, Field(ge=0, le=100_000, description="requests that may wait; the next is overloaded")] = 128
    queue_timeout: Annotated[Duration, Field(description="the longest wait for a place")] = 2.0


@section
class Price:
    """US dollars per million tokens."""

    input_per_m: Annotated[Dollars, Field(description="prompt tokens, US dollars per million")] = 0.0
    cached_input_per_m: Annotated[Dollars, Field(description="prompt tokens served from the KV cache")] = 0.0
    output_per_m: Annotated[Dollars, Field(description="answer tokens")] = 0.0


@section
class Can:
    """What the tier's servers can do; a request that needs more goes to a tier that has it. `context` in tokens."""

    tools: Annotated[bool, Field(description="tool calls")] = True
    json_schema: Annotated[bool, Field(description="answers after a JSON schema")] = True
    vision: Annotated[bool, Field(description="images in the prompt")] = False
    chat: Annotated[bool, Field(description="/v1/chat/completions and /v1/completions")] = True
    messages: Annotated[bool | None, Field(description="/v1/messages; null: openai cannot")] = None
    responses: Annotated[bool | None, Field(description="/v1/responses; null: openai cannot")] = None
    embeddings: Annotated[bool, Field(description="/v1/embeddings")] = False
    token_ids: Annotated[
        bool | None, Field(description="prompts of token ids; null: sglang cannot, as wrong ids end it")
    ] = None
    context: Annotated[Count, Field(description="longest prompt, in tokens")] = 1048576


@section
class Tier:
    """A model and the servers that run it. `set` holds request defaults; a caller's own value wins.

    `api_key_env` names the environment variable that holds the servers' API key. `skips` is the operator's name for
    what the servers leave out: another name means other answers from the same model.
    """

    model: Annotated[str, Field(min_length=1, max_length=256, description="the name that the servers know")]
    replicas: Annotated[Several, Field(min_length=1, description="server URLs: http(s)://host[:port][/prefix]")]
    engine: Annotated[
        Literal["vllm", "sglang", "openai"], Field(description="openai: not sent the fields that vLLM and SGLang share")
    ] = "vllm"
    balance: Annotated[
        Literal["prefix_affinity", "least_inflight", "least_waiting", "round_robin"],
        Field(description="how a replica is chosen"),
    ] = "prefix_affinity"
    limits: Annotated[TierLimits, Field(description="what this gateway asks of the tier at most")] = TierLimits()
    timeouts: Annotated[Timeouts, Field(description="how long we wait, with units")] = Timeouts()
    price: Annotated[Price, Field(description="US dollars per million tokens, for cost figures")] = Price()
    can: Annotated[Can, Field(description="what a request may need of the tier")] = Can()
    set: Annotated[dict[str, Any], Field(description="request defaults; a caller's own value wins")] = field(
        default_factory=dict
    )
    api_key_env: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="environment variable with the servers' API key"),
    ] = None
    skips: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="how its servers skip experts; null: they do not"
        ),
    ] = None

    @property
    def asks_queue(self) -> bool:
        """Whether its servers are asked for their queues, whatever the rules say."""
        return self.balance == "least_waiting" or (self.limits.adaptive and self.engine != "openai")

    def has(self, need: str) -> bool:
        """Whether its servers have what a request needs, by its name in `can`."""
        told: bool | None = getattr(self.can, need)
        return self.engine != "sglang" if told is None else told

    def serves(self, api: Api) -> bool:
        """Whether its servers have the paths of `api`."""
        told: bool | None = getattr(self.can, api)
        return self.engine != "openai" if told is None else told


@section
class TriageInput:
    """A conversation of more `characters` of JSON is judged by its head and tail, asked in the `system` layout."""

    characters: Annotated[int, Field(ge=200, description="longest conversation that is asked whole")] = 400000


@section
class Waste:
    """No draft starts while more than `max` of the tokens of its caller's drafts, of all callers' where those are few,
    were thrown away, over about the last `window`."""

    max: Annotated[Share, Field(description="the part of drafts' tokens that may be thrown away")] = 0.2
    window: Annotated[Duration, Field(description="over which time, about")] = 300.0


@section
class Early:
    """While the classifier is asked, the highest tier starts an answer, not the lowest, where the score is high."""

    score: Annotated[Share, Field(description="the local score from which it starts")] = 0.95
    max_share: Annotated[Share, Field(description="the part of the judged requests that may do so, at most")] = 0.05


@section
class Triage:
    """How the small model is asked whether it is enough. `otherwise`: the tier without a verdict, or LOCAL.

    In a loaded policy `tier` is never "" and `otherwise` holds every reason: both default to the first tier; `prompts`
    has the built-in ones, too, all by name and version.
    """

    tier: Annotated[str, Field(description="the tier that is asked; the first one by default")] = ""
    strategy: Annotated[
        Literal["auto", Strategy], Field(description="how the answer is bound to its labels; auto asks the servers")
    ] = "auto"
    prompt: Annotated[str, Field(description="name and version of the question")] = "complexity.v1"
    prompts: Annotated[dict[Name, Prompt], Field(description="own questions, beside the built-in ones")] = field(
        default_factory=dict
    )
    layout: Annotated[
        Literal["suffix", "system"], Field(description="the question after the conversation (shares KV) or before it")
    ] = "suffix"
    timeout: Annotated[Duration, Field(description="the longest wait for a verdict")] = 0.8
    calibration: Annotated[
        str | None,
        Field(min_length=1, description="a file of `policy calibrate`, relative to this one, that gives p_complex"),
    ] = None
    embeddings: Annotated[
        str | None,
        Field(
            min_length=1,
            description="a folder with a static embedding: its head gives the score, or its axes are measures",
        ),
    ] = None
    threshold: Annotated[
        Share, Field(description="complex when p_complex is at or above it; by default the calibration's, else 0.5")
    ] = 0.5
    speculate: Annotated[
        Literal["always", "when_idle", "never"], Field(description="when a draft starts beside the question")
    ] = "when_idle"
    waste: Annotated[Waste | None, Field(description="when speculation stops by itself; null: never")] = Waste()
    early: Annotated[
        Early | None, Field(description="when the highest tier starts before the verdict; null: never")
    ] = None
    input: Annotated[TriageInput, Field(description="how much of a conversation is asked")] = TriageInput()
    cache: Annotated[Duration | None, Field(description="how long a verdict is remembered; null: not at all")] = 3600.0
    unit: Annotated[
        Literal["user_turn", "request"], Field(description="user_turn: a tool's result goes where its turn went")
    ] = "user_turn"
    otherwise: Annotated[
        dict[Reason, str],
        Field(description="the tier without a verdict, by default the first; local: the score decides"),
    ] = field(default_factory=dict)


@section
class Failover:
    """Tiers to try after the named one failed in one of the ways in `on`, before the first byte only."""

    tiers: Annotated[dict[str, Several], Field(description="tiers to try after the named one, in order")] = field(
        default_factory=dict
    )
    on: Annotated[
        tuple[Failure, ...],
        BeforeValidator(listed, json_schema_input_type=tuple[Failure, ...]),
        Field(min_length=1, description="failures that count"),
    ] = ("connect", "overloaded", "first_byte", "5xx")
