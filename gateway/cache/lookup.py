"""Under which key is a request's answer cached, and how is a cached answer given again?"""

import msgspec

from gateway.cache.entry import digest, unpacked
from gateway.cache.form import CONVERTIBLE, JSON, converted, form_of
from gateway.dialects import CHAT
from gateway.done import nothing
from gateway.policy import Policy
from gateway.reply import Reply
from gateway.stream import fill
from gateway.types import ChatRequest, Route, Usage

# Members that do not change the answer (IGNORED), or only its form: JSON or stream.
IGNORED = frozenset({"user", "safety_identifier", "prompt_cache_key", "request_id", "priority"})
FORM = frozenset({"stream", "stream_options"})
UNTOLD = IGNORED | FORM
NULL = msgspec.Raw(b"null")
ROUTING = ("x-route-tier", "x-route-holdback")
AFRESH = ("no-cache", "no-store")  # values of cache-control by which a caller wants an answer of its own
# Members whose answers have parts that exist in one form only: each form is cached by itself.
APART = frozenset({"return_token_ids", "return_prompt_text", "prompt_logprobs", "functions", "audio", "modalities"})
MARKED = UNTOLD | APART


def cache_key(request: ChatRequest, policy: Policy) -> bytes | None:
    """The key under which this request's answer is cached; None for one that may not be.

    The key covers the caller and its plan, the policy, the models and what they skip, the path, the headers that can
    change the route, and every member of the body save IGNORED and FORM, byte by byte; null counts as absent.

    The session's key is covered, as header, metadata or messages: an answer is given again in its own conversation
    only, so that an escalated one does not get a weaker tier's answer from another. Within a conversation the same
    request is a repetition and gets the same answer, whichever tier gave it. A hit does not change the session.
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
    rest = (caller.plan, caller.own.may, request.path, headers, apart)
    return digest(caller, answers + msgspec.msgpack.encode(rest), told)


def _depends(policy: Policy) -> tuple[bytes, tuple[str, ...]]:
    """What answers depend on besides the request, encoded; and the headers that can change the route."""
    models = [(name, tier.model, tier.skips) for name, tier in policy.tiers.items()]
    headers = (*ROUTING, *policy.watched_headers, *(policy.sessions.headers if policy.sessions else ()))
    return msgspec.msgpack.encode((policy.digest, models)), headers


def _apart(request: ChatRequest) -> bytes:
    """The request's form, if its answer cannot be converted to other forms; else b""."""
    form, body = form_of(request.fields), request.body
    # Only chunks are made whole, and back.
    whole = request.path == CHAT or (request.dialect.api == "chat" and body.raw("logprobs") is None)
    alike = APART.isdisjoint(body.members) or not any(map(body.raw, APART & body.members.keys()))
    if whole and alike and form in CONVERTIBLE:
        return b""
    return b"stream" + form if request.fields.stream else b"json"


def cached_reply(data: bytes | None, key: bytes | None, request: ChatRequest) -> Reply | None:
    """A cached answer in the form that the request wants, byte for byte if it was cached in that form.

    None for a miss: also for an entry that is not authentic, unreadable, or cannot be converted faithfully.
    """
    entry = unpacked(data, key, request.caller) if data and key else None
    if not entry:
        return None
    form = form_of(request.fields)
    told = converted(entry, form)
    if told is None:
        return None
    kind = entry.kind if entry.form == form else b"application/json" if form == JSON else b"text/event-stream"
    route, stream = Route((entry.tier,), entry.rule, "cache"), form != JSON
    usage = Usage()
    fill(usage, msgspec.Raw(entry.usage))
    return Reply(200, [(b"content-type", kind)], told, stream, entry.tier, nothing, usage, route=route, cache="hit")
