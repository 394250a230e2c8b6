"""Which values describe a request on its way?   In the order of its life."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from gateway.body import Body, Fields
from gateway.dialects import DIALECTS, Api, Dialect
from gateway.errors import BadRequest
from gateway.store import Line
from gateway.trace import Trace

# gc=False, here and where else a request makes values: they are in no reference cycle, so the collector need not look
# through those that are kept.
Headers = list[tuple[bytes, bytes]]
Label = Literal["simple", "complex"]
Strategy = Literal["choice", "decisions", "json_logprobs", "json"]  # the better ones first (triage.py)
_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")


class Own(msgspec.Struct, frozen=True, cache_hash=True):
    """A key's own limits and permissions, in place of its plan's; None: as the plan has it."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd: float | None = None
    may: tuple[str, ...] | None = None
    explain: bool | None = None


class Caller(msgspec.Struct, frozen=True):
    """An API key's owner. `salt` is the cache_salt that keeps its KV cache apart from others'."""

    id: str
    name: str
    plan: str
    salt: str
    own: Own = Own()


@dataclass(slots=True)
class Usage:
    """What the model server says of its answer, filled in while that passes. Tokens as it counted them, None where it
    did not say. `said` is its own usage object, decoded or as JSON. `failed`: it told an error inside the answer.
    `events` counts those of a stream that came; `complete`: the counts are of the whole answer."""

    prompt: int | None = None
    cached: int | None = None
    completion: int | None = None
    said: Any = field(default=None, compare=False)
    failed: bool = False
    events: int = field(default=0, compare=False)
    complete: bool = field(default=False, compare=False)


class Bill(msgspec.Struct, gc=False):
    """One call to a tier for a request. `void`: it used nothing. `lost`: the tier failed, nothing was relayed.
    `stream`: it makes events. `at`: time.perf_counter() when it was asked for. `server`: a question's replica. `made`:
    about how many tokens a draft made that was dropped."""

    tier: str
    kind: Literal["answer", "triage", "draft"]
    usage: Usage = msgspec.field(default_factory=Usage)
    void: bool = False
    lost: bool = False
    stream: bool = False
    at: float = msgspec.field(default_factory=time.perf_counter)
    server: str = ""
    made: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """How a conversation stands: who answered last (`tier`), `age` seconds ago, `turns` user turns in a row; the tier
    that was decided for it (`level`); and whether the request `continues` a turn: it brings no word of the user's."""

    tier: str
    level: str
    age: float = 0.0
    turns: int = 1
    continues: bool = False


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How a caller stands with its limits: the part of its budget that is used or held, what follows from that
    (warn | flash_only), whose budget that is (caller | all), and why it is kept on its lowest tier (budget | share), if
    it is. `session`: how the request's conversation stands, where that is known."""

    budget_used: float = 0.0
    budget: str | None = None
    budget_of: str | None = None
    capped: str | None = None
    session: Session | None = None


EVEN = Standing()  # no budget and no share restrict the caller


class ChatRequest(msgspec.Struct, frozen=True, gc=False):
    """What a caller asked: the few fields that we decide on, and the rest of the body untouched. `path` is the upstream
    path, and says the dialect; `headers` has lower-case names; `started` is time.perf_counter() when the head arrived.
    `bills` gathers the calls to tiers made for it, `costs` is what they came to, once settled. `chance`, from 0 to
    1, is drawn for it: at 1 nothing is explored. `trace`: where it is sampled."""

    id: str
    caller: Caller
    path: str
    body: Body
    fields: Fields
    headers: Mapping[str, str]
    started: float
    bills: list[Bill] = msgspec.field(default_factory=list)
    chance: float = 1.0
    trace: Trace | None = None
    costs: list[Line] = msgspec.field(default_factory=list)

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.path]

    def left(self) -> float | None:
        """Seconds until the end of the time that the caller gives the whole exchange (x-request-timeout, counted from
        its head); None when it does not say. Raises BadRequest."""
        given = self.headers.get("x-request-timeout")
        if given is None:
            return None
        if not _SECONDS.fullmatch(given) or not float(given):
            raise BadRequest("x-request-timeout must be a number of seconds above 0.", code="invalid_timeout")
        return float(given) - (time.perf_counter() - self.started)


class Facts(msgspec.Struct, frozen=True, gc=False):
    """All that a rule may look at; no prompt text, so it may be recorded.

    `api` is the member of a tier's `can` that the request's path needs. `wish` is a tier's name, "fast", "best" or
    None, `wished_by` says which of name, header, metadata, path said so. `characters` counts the last user turn;
    `turns` counts user messages; `context` estimates prompt tokens. `load`: requests in flight per tier, from this
    gateway; `waiting`: requests in the servers' own queues, of tiers that a rule asks it of and that tell. `headers`
    holds only headers that a rule names. `budget_used`, `budget`, `budget_of`, `capped` and `session` are of Standing,
    `chance` of ChatRequest. `may`: the tiers above the first that the caller's key names in place of its plan. `caller`
    is the key owner's name. `max_tokens` is the longest answer that the caller wants, None when not said. `score` is
    the local one from 0 (looks simple) to 1, and `measures` what it was made of: None and empty where nothing looks."""

    model: str
    caller: str
    plan: str
    api: Api = "chat"
    wish: str | None = None
    wished_by: str | None = None
    characters: int = 0
    turns: int = 1
    context: int = 0
    tools: bool = False
    json_schema: bool = False
    vision: bool = False
    signals: frozenset[str] = frozenset()
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    load: Mapping[str, int] = msgspec.field(default_factory=dict)
    waiting: Mapping[str, int] = msgspec.field(default_factory=dict)
    max_tokens: int | None = None
    budget_used: float = 0.0
    budget: str | None = None
    budget_of: str | None = None
    capped: str | None = None
    may: tuple[str, ...] | None = None
    score: float | None = None
    measures: Mapping[str, float] = {}
    chance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    session: Session | None = None


class TierState(NamedTuple):
    """Calls that are open, requests that wait, which replicas are asked (in policy order), how many may be open."""

    inflight: int
    queued: int
    up: tuple[bool, ...]
    places: int


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Simple or complex, how sure, who says so and why.

    A verdict without a label is a failed classification; `reason` then says how it failed
    (timeout | parse | truncated | empty | overloaded | error), else it is "ok". `seconds` is what asking took.
    `source` is triage, shared (another request's question), cache, or local where the score stands in for a failure.
    `cut`: the classifier saw head and tail only. `strategy` and `prompt` (name and version) say how it was asked."""

    label: Label | None
    p_complex: float | None
    reason: str = "ok"
    source: str = "triage"
    seconds: float = 0.0
    cut: bool = False
    strategy: str = ""
    prompt: str = ""


class Route(msgspec.Struct, frozen=True, gc=False):
    """Tiers to try in order, the rule that said so, why. `chances`: of each to be first, where chance had a part."""

    tiers: tuple[str, ...]
    rule: str
    reason: str
    chances: Mapping[str, float] = msgspec.field(default_factory=dict)


class Ask(msgspec.Struct, frozen=True):
    """The rule wants a verdict first. `draft` is the tier that may start its answer meanwhile, if any; `early` the
    highest one, which may in its place."""

    rule: str
    draft: str | None
    early: str | None = None


class Held(msgspec.Struct, frozen=True):
    """What became of a start that was kept back, why, for how many seconds: kept (tokens | wait | end; unanswered:
    weak, but nobody else answered), escalated (the sign), broken (the failure). `figures`: mean_logprob and margin."""

    outcome: Literal["kept", "escalated", "broken"]
    reason: str
    seconds: float
    figures: Mapping[str, float] = {}


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Why this tier answered: kept for explain, log and replay. `draft`: kept | wasted | none; `wasted`: its tokens;
    `won`: the seconds to the first byte that a kept one saved."""

    facts: Facts
    verdict: Verdict | None
    route: Route
    draft: str = "none"
    wasted: int = 0
    won: float = 0.0
    held: Held | None = None
