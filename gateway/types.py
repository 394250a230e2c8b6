"""Which values describe a request, from its arrival to its answer?   In the order of its life."""

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from gateway.body import Body
from gateway.dialects import DIALECTS, Api, Dialect
from gateway.errors import BadRequest
from gateway.fields import Fields
from gateway.store import Line
from gateway.trace import Trace

# gc=False, here and where else a request makes values: they are in no reference cycle, so the collector need not look
# through those that are kept.
Headers = list[tuple[bytes, bytes]]
Label = Literal["simple", "complex"]
Strategy = Literal["choice", "decisions", "json_logprobs", "json"]  # the better ones first (triage.py)
BARE: Collection[Strategy] = ("choice", "decisions")  # their answer is a label alone, with no thought before it
_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")


class Own(msgspec.Struct, frozen=True, cache_hash=True):
    """A key's own limits and permissions, which override its plan's; None: the plan's holds. `usd` and `window` are
    of its budget."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd: float | None = None
    window: str | None = None
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
    """What a model server reports of its answer, filled in while that is relayed. Token counts are the server's; None:
    not reported. `said` is its own usage object, decoded or as JSON. `failed`: the answer contains an error. `events`
    counts the events of a stream so far, `bulk` the bytes of large ones, which hold more tokens than others;
    `complete`: the counts cover the whole answer."""

    prompt: int | None = None
    cached: int | None = None
    completion: int | None = None
    said: Any = field(default=None, compare=False)
    failed: bool = False
    events: int = field(default=0, compare=False)
    bulk: int = field(default=0, compare=False)
    complete: bool = field(default=False, compare=False)

    @property
    def tokens(self) -> int:
        """The tokens of the answer: as the server counted them, else about one for each event that came."""
        return self.completion or self.events


class Bill(msgspec.Struct, gc=False):
    """One call to a tier on behalf of a request. `void`: it used nothing. `lost`: it failed before it was relayed.
    `stream`: its answer is a stream. `at`: time.perf_counter() when it began. `server`: the replica that a triage
    question went to. `made`: about how many tokens a dropped draft had made that the server did not tell of. `line`: as
    it is booked, where that was worked out before."""

    tier: str
    kind: Literal["answer", "triage", "draft"]
    usage: Usage = msgspec.field(default_factory=Usage)
    void: bool = False
    lost: bool = False
    stream: bool = False
    at: float = msgspec.field(default_factory=time.perf_counter)
    server: str = ""
    made: int = 0
    line: Line | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """The state of a conversation: the tier that answered last, `age` seconds ago, for `turns` user turns in a row; the
    tier decided for it (`level`); and whether the request `continues` a user's turn, without a new user message."""

    tier: str
    level: str
    age: float = 0.0
    turns: int = 1
    continues: bool = False


class Standing(msgspec.Struct, frozen=True, gc=False):
    """A caller's state with regard to its limits: `budget_used`, the part of its budget that is spent or reserved; the
    consequence (`budget`: warn | flash_only) and whose budget that is (`budget_of`: caller | all); which limit keeps it
    on its lowest tier, if one does (`capped`: budget | share). `session`: its conversation's state, where known."""

    budget_used: float = 0.0
    budget: str | None = None
    budget_of: str | None = None
    capped: str | None = None
    session: Session | None = None


EVEN = Standing()  # no budget and no share restrict the caller


class ChatRequest(msgspec.Struct, frozen=True, gc=False):
    """What a caller asked: the few fields that the gateway decides on, and the body, of which the rest is not touched.
    `path` is the upstream path and determines the dialect; `headers` has lower-case names; `started` is
    time.perf_counter() when the head arrived. `bills` collects the calls made to tiers for it, `costs` what they cost,
    once settled. `chance` is a random number from 0 to 1; at 1 nothing is explored. `trace`: None: not sampled."""

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
    token_ids: bool = False
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
    """A tier at this moment: calls in flight, requests in its queue, which replicas are in use (in the policy's order),
    and how many calls may be in flight."""

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
    """The rule wants a verdict first. Meanwhile the tier `draft`, of the simplest outcome, may start its answer, or in
    its place the tier `early`, of the hardest one; None: it may not."""

    rule: str
    draft: str | None
    early: str | None = None


class Held(msgspec.Struct, frozen=True):
    """The outcome of hold-back and its `reason`: kept (tokens | wait | end; unanswered: weak, but no other tier
    answered), escalated (the sign of weakness) or broken (the failure); `seconds`: for how long the start was held
    back. `figures`: mean_logprob and margin."""

    outcome: Literal["kept", "escalated", "broken"]
    reason: str
    seconds: float
    figures: Mapping[str, float] = {}


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Why this tier answered: for explain, log and replay. `draft`: kept | wasted | none; `wasted`: the tokens of a
    wasted one; `won`: the seconds by which a kept one brought the first byte forward."""

    facts: Facts
    verdict: Verdict | None
    route: Route
    draft: str = "none"
    wasted: int = 0
    won: float = 0.0
    held: Held | None = None
