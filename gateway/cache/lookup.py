"""Which earlier answer is this request's?"""

import hmac

import msgspec

from gateway.cache.entry import opened
from gateway.cache.form import CONVERTIBLE, JSON, converted, form_of
from gateway.policy import Policy
from gateway.stream import fill
from gateway.types import ChatRequest, Reply, Route, Usage

# Members that change nothing in the answer, or only its form.
IGNORED = frozenset({"user", "safety_identifier", "prompt_cache_key", "request_id", "priority"})
FORM = frozenset({"stream", "stream_options"})
UNTOLD = IGNORED | FORM
ROUTING = ("x-route-tier", "x-route-holdback")
# Members whose answers have parts that only one form knows: each form of them is remembered for itself.
APART = frozenset({"return_token_ids", "return_prompt_text", "prompt_logprobs", "functions", "audio", "modalities"})


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
    members = [(name, value) for name in sorted(body.members) if name not in UNTOLD and (value := body.raw(name))]
    named = policy.sessions.headers if policy.sessions else ()
    headers = [(name, request.headers.get(name)) for name in (*ROUTING, *policy.watched_headers, *named)]
    whole = (
        policy.digest,
        policy.once(_models),
        request.caller.plan,
        request.caller.own.may,
        request.path,
        headers,
        _apart(request),
        members,
    )
    return hmac.digest(request.caller.salt.encode(), msgspec.msgpack.encode(whole), "sha256")


def _models(policy: Policy) -> list[tuple[str, str, str | None]]:
    return [(name, tier.model, tier.skips) for name, tier in policy.tiers.items()]


def _apart(request: ChatRequest) -> bytes:
    """The request's form where no other form can be made of its answer, else b""."""
    form, body = form_of(request.fields), request.body
    other = request.dialect.api != "chat"  # only chunks are made whole, and back
    whole = request.path.endswith("/chat/completions") or body.raw("logprobs") is None
    same = form in CONVERTIBLE and whole and not other and not any(map(body.raw, APART & body.members.keys()))
    return b"" if same else b"stream" + form if request.fields.stream else b"json"


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
    return Reply(200, [(b"content-type", kind)], told, stream, entry.tier, _nothing, usage, route=route, cache="hit")


async def _nothing() -> None:
    pass
