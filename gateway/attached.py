"""What goes with an answer?   Our response headers, and the explanation if the caller asks for it."""

import re
import time
from typing import Any

import msgspec

from gateway import sse
from gateway.body import Body
from gateway.dialects import CHAT, DIALECTS
from gateway.errors import BadRequest
from gateway.explain import explain
from gateway.policy import Policy
from gateway.pricing import charged
from gateway.reply import NOBODY, Reply
from gateway.splice import STRIPPED, stripped
from gateway.store import NANO
from gateway.types import ChatRequest
from gateway.wire import header_lines

_LAST = re.compile(
    rb"(?:^|\n\n|\r\r|\r\n\r\n)(data: ?\[DONE\]|event: ?(?:message_stop|response\.(?:completed|incomplete|failed))\b)"
)


def our_lines(request_id: str, path: str, policy: Policy, reply: Reply | None, overhead: float) -> bytes:
    """The header lines of every answer, refusals included (`reply` None: before anything was decided). `overhead`: the
    gateway's own seconds."""
    route = reply.route if reply else None
    tier, cache = (reply.tier or NOBODY, reply.cache) if reply else (NOBODY, "bypass")
    rule, reason = (route.rule, route.reason) if route else (NOBODY, NOBODY)
    chosen = policy.once(_chosen, tier, rule, reason, cache)
    name, named = DIALECTS[path].answers.id_name, request_id.encode()
    lines = b"x-request-id: %b\r\nx-gateway-overhead-ms: %.3f\r\n%b" % (named, overhead * 1000, chosen)
    return lines + b"%b: %b\r\n" % (name, named) if name else lines


def _chosen(tier: str, rule: str, reason: str, cache: str, policy: Policy) -> bytes:
    headers = [
        (b"x-route-tier", tier.encode()),
        (b"x-route-rule", _ascii(rule)),
        (b"x-route-reason", _ascii(reason)),
        (b"x-route-policy", _ascii(policy.version)),
        (b"x-route-cache", cache.encode()),
        *([(b"x-route-skips", skips.encode())] if (skips := policy.skips(tier)) else []),
    ]
    return header_lines(headers)


def stripped_line(request: ChatRequest, policy: Policy) -> bytes:
    """The header line x-route-stripped: the request's fields that were taken out. b"" for none."""
    if STRIPPED.isdisjoint(request.body.members):
        return b""
    names = stripped(request, policy.callers.plans[request.caller.plan])
    return header_lines([(b"x-route-stripped", _ascii(", ".join(names)))]) if names else b""


def paid_line(request: ChatRequest, reply: Reply, policy: Policy) -> bytes:
    """The header line x-answer-usd of a whole answer: what its caller pays for it. b"" for an error, and from a tier
    without a price."""
    price = policy.tiers[reply.tier].price if reply.status == 200 else None
    if not price or not (price.output_per_m or price.input_per_m):
        return b""
    return b"x-answer-usd: %.9f\r\n" % (charged(request, policy) / NANO)


def explanation(request: ChatRequest, reply: Reply, policy: Policy, overhead: float) -> dict[str, Any]:
    """The whole decision as JSON data; of an answer from the cache only what is kept with it. `tier` is the one that
    answered, `answer_usd` what the caller pays for that, `overhead` the gateway's own seconds."""
    decision, route = reply.decision, reply.route
    found: dict[str, Any] = {
        "tier": reply.tier,
        "skips": policy.skips(reply.tier),
        "cache": reply.cache,
        "draft": decision.draft if decision else "none",
        "holdback": msgspec.to_builtins(decision.held) if decision else None,
        "answer_usd": charged(request, policy) / NANO,
        "overhead_ms": round(overhead * 1000, 3),
    }
    if decision:
        return explain(decision.facts, decision.verdict, policy) | found
    chosen = {"tier": reply.tier, "rule": route.rule, "reason": route.reason} if route else None
    return {"policy": policy.told(), "route": chosen} | found


def explained_json(data: bytes, told: dict[str, Any]) -> bytes:
    """A JSON answer with the decision as its member `route`; unchanged when it is not one object."""
    try:
        return Body(data).edit({"route": msgspec.json.encode(told)})
    except BadRequest:
        return data


def ending(events: bytes) -> bool:
    """Whether the last event of a stream is among these, in any dialect."""
    return _LAST.search(events) is not None


def explained_events(events: bytes, request: ChatRequest, model: str, told: dict[str, Any]) -> bytes:
    """Whole events, with one more that holds the decision before the last; unchanged when that is not among them."""
    found = _LAST.search(events)
    if not found:
        return events
    at = found.start(1)
    if request.dialect.api != "chat":
        return (
            events[:at] + sse.named_event("route", msgspec.json.encode({"type": "route", "route": told})) + events[at:]
        )
    kind = "chat.completion.chunk" if request.path == CHAT else "text_completion"
    chunk = {
        "id": request.id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": [],
        "route": told,
    }
    return events[:at] + sse.event(msgspec.json.encode(chunk)) + events[at:]


def _ascii(text: str) -> bytes:
    """Text of ours, fit for a header."""
    return re.sub(rb"[^ -~]", b"?", text.encode("ascii", "replace"))
