"""Which earlier answer is this request's?"""

import msgspec

from gateway.cache.entry import digest, opened
from gateway.cache.form import CONVERTIBLE, JSON, converted, form_of
from gateway.dialects import CHAT
from gateway.done import nothing
from gateway.policy import Policy
from gateway.stream import fill
from gateway.types import ChatRequest, Reply, Route, Usage

# Members that change nothing in the answer, or only its form.
IGNORED = frozenset({"user", "safety_identifier", "prompt_cache_key", "request_id", "priority"})
FORM = frozenset({"stream", "stream_options"})
UNTOLD = IGNORED | FORM
NULL = msgspec.Raw(b"null")
ROUTING = ("x-route-tier", "x-route-holdback")
AFRESH = ("no-cache", "no-store")  # what a caller says in cache-control that wants an answer of its own
# Members whose answers have parts that only one form knows: each form of them is remembered for itself.
APART = frozenset({"return_token_ids", "return_prompt_text", "prompt_logprobs", "functions", "audio", "modalities"})
MARKED = UNTOLD | APART


def lookup(request: ChatRequest, policy: Policy) -> bytes | None:
    """The key under which this request's answer is remembered; None for one that may not be.

    The key covers the caller and its plan, the policy, the models and what they skip, the path, the headers that can
    change the route, and every member of the body save IGNORED and FORM, byte by byte; null counts as absent.

    What names a session is covered, as header, metadata or messages: an answer is given again in its own conversation
    only, so that one which was escalated gets no weaker tier's answer from another. Within a conversation the same
    request is a repetition: its answer stands, whatever tier gave it (the entry says which) and wherever the
    conversation went since. A hit leaves the session as it is.
    """
    rules, fields, body = policy.caching, request.fields, request.body
    if not rules or fields.temperature is None or (fields.tools and not rules.when.tools):
        return None
    low, high = rules.when.temperature.min, rules.when.temperature.max
    if (low is not None and fields.temperature < low) or (high is not None and fields.temperature > high):
        return None
    if fields.stream_options is not None and not fields.stream:
        return None  # a server refuses it: so must we
    control = request.headers.get("cache-control")
    if control and any(word in control.lower() for word in AFRESH):
        return None
    answers, names = policy.once(_depends)
    members, caller, apart = body.members, request.caller, b""
    if not MARKED.isdisjoint(members) or NULL in members.values() or request.path != CHAT:
        members = {name: value for name, value in members.items() if name not in UNTOLD and value != NULL}
        apart = _apart(request)
    told = msgspec.json.encode(members, order="sorted")
    headers = tuple(map(request.headers.get, names))
    whole = (caller.plan, caller.own.may, request.path, headers, apart, told)
    return digest(answers + msgspec.msgpack.encode(whole), caller)


def _depends(policy: Policy) -> tuple[bytes, tuple[str, ...]]:
    """What answers depend on beside the request, and the headers that can change its route."""
    models = [(name, tier.model, tier.skips) for name, tier in policy.tiers.items()]
    headers = (*ROUTING, *policy.watched_headers, *(policy.sessions.headers if policy.sessions else ()))
    return msgspec.msgpack.encode((policy.digest, models)), headers


def _apart(request: ChatRequest) -> bytes:
    """The request's form where no other form can be made of its answer, else b""."""
    form, body = form_of(request.fields), request.body
    # Only chunks are made whole, and back.
    whole = request.path == CHAT or (request.dialect.api == "chat" and body.raw("logprobs") is None)
    alike = APART.isdisjoint(body.members) or not any(map(body.raw, APART & body.members.keys()))
    if whole and alike and form in CONVERTIBLE:
        return b""
    return b"stream" + form if request.fields.stream else b"json"


def replay(data: bytes | None, key: bytes | None, request: ChatRequest) -> Reply | None:
    """A remembered answer in the form that the request wants, byte for byte if it was remembered in that form.

    None for a miss: also for an entry that cannot be trusted or read, or not be told faithfully in the other form.
    """
    entry = opened(data, key, request.caller) if data and key else None
    if not entry:
        return None
    form = form_of(request.fields)
    told = converted(entry, form)
    if told is None:
        return None
    kind = entry.kind if entry.form == form else b"application/json" if form == JSON else b"text/event-stream"
    route, stream = Route((entry.tier,), entry.rule, "cache"), form != JSON
    usage = Usage()
    fill(usage, msgspec.json.decode(entry.usage))
    return Reply(200, [(b"content-type", kind)], told, stream, entry.tier, nothing, usage, route=route, cache="hit")
