"""How do clients learn our interface?   OpenAPI for the paths that are served without FastAPI."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi

JSON = dict[str, Any]
_TEXT, _FLAG, _NUMBER, _COUNT, _PAIRS = (
    {"type": [kind, "null"]} for kind in ("string", "boolean", "number", "integer", "object")
)
_TOOLS = {"type": ["array", "null"], "items": {"type": "object"}}


def _object(*required: str, **properties: JSON) -> JSON:
    return {"type": "object", "required": list(required), "properties": properties}


def _by_name(value: JSON) -> JSON:
    return {"type": "object", "additionalProperties": value}


def _json(schema: JSON) -> JSON:
    return {"application/json": {"schema": schema}}


def shaped(kind: type) -> JSON:
    """What stands for a shape that is among the components (`described`)."""
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _body(*required: str, **properties: JSON) -> JSON:
    """What a request may hold beside these is the model server's business."""
    model = {"type": "string", "default": "auto", "description": "auto, a tier, an alias, auto:fast or auto:best"}
    return _object(*required, model=model, **properties) | {"additionalProperties": True}


_CODE = {"type": ["string", "integer", "null"], "description": "Of a model server: its status"}
_ERROR = _object(
    "error",
    error=_object(
        "message", "type", "param", "code",
        message={"type": "string"}, type={"type": "string"}, param=_TEXT, code=_CODE,
    ),
)  # fmt: skip
_REFUSED = {"description": "An OpenAI error object", "content": {"application/json": {"schema": _ERROR}}}
_ANTHROPIC = _object(
    "type", "error",
    type={"const": "error"},
    error=_object("type", "message", type={"type": "string"}, message={"type": "string"}),
)  # fmt: skip
_METADATA = {**_PAIRS, "description": "tier, session_id, holdback and shadow say what the headers of these names do"}
_CHAT = _body(
    "messages",
    messages={
        "type": "array",
        "minItems": 1,
        "items": _object(
            "role",
            role={"type": "string"},
            content={"type": ["string", "array", "null"], "items": {"type": "object"}},
        ),
    },
    stream=_FLAG,
    temperature=_NUMBER,
    max_tokens=_COUNT,
    n={**_COUNT, "minimum": 1, "maximum": 16},
    tools=_TOOLS,
    metadata=_METADATA,
)
_INTS = {"type": "array", "minItems": 1, "items": {"type": "integer"}}
_TEXTS = {"type": "array", "minItems": 1, "items": {"type": "string"}}
_WRITTEN = {"anyOf": [{"type": "string"}, _TEXTS, _INTS, {"type": "array", "minItems": 1, "items": _INTS}]}
_COMPLETION = _body("prompt", prompt=_WRITTEN, stream=_FLAG)
_TURN = _object(
    "role", "content",
    role={"enum": ["user", "assistant"]},
    content={"type": ["string", "array"], "items": _object("type", type={"type": "string"})},
)  # fmt: skip
_ASKED: JSON = {"messages": {"type": "array", "minItems": 1, "items": _TURN}, "system": _TEXT, "tools": _TOOLS}
_COUNTED = _body("model", "messages", **_ASKED)
_MOST = {"type": "integer", "minimum": 1}
_MESSAGES = _body(
    "model", "messages", "max_tokens",
    **_ASKED, max_tokens=_MOST, stream=_FLAG, temperature=_NUMBER, metadata=_METADATA,
)  # fmt: skip
_RESPONSES = _body(
    "input",
    input={"type": ["string", "array"], "minItems": 1, "items": {"type": "object"}},
    instructions=_TEXT,
    max_output_tokens={**_COUNT, "minimum": 1},
    stream=_FLAG,
    temperature=_NUMBER,
    tools={**_TOOLS, "description": "Those that the caller runs; web searches are left out, others refused"},
    metadata=_METADATA,
) | {"description": "No response is kept: previous_response_id, conversation and background are refused."}
_EMBEDDINGS = _body("input", input=_WRITTEN)
DECIDED: JSON = {"anyOf": [_CHAT, _COMPLETION, _RESPONSES]}  # of what /v1/route tells where it would go
_HEADERS = [
    ("x-route-tier", "Ask for a tier; going up takes the caller's permission."),
    ("x-route-holdback", "off: let the answer out from its first token on."),
    ("x-route-shadow", "off: do not compare the answer with a higher tier's."),
    ("x-session-id", "Names the conversation, where the policy has sessions by this header."),
    ("cache-control", "no-cache: answer afresh; nothing is recalled, nor remembered of it."),
    ("x-route-explain", "1: put the whole decision into the answer as `route`."),
    ("x-request-timeout", "Seconds from here to the whole answer; then a 504, or an error event in a stream."),
    ("x-request-id", "Echoed; 1 to 128 of A-Z a-z 0-9 . _ -"),
]
_SPOKEN: dict[str, tuple[str, JSON, JSON]] = {
    "/v1/chat/completions": ("Answer a conversation", _CHAT, _ERROR),
    "/v1/completions": ("Continue a text", _COMPLETION, _ERROR),
    "/v1/messages": ("Answer a conversation, in Anthropic's words", _MESSAGES, _ANTHROPIC),
    "/v1/messages/count_tokens": ("Count a conversation's tokens; free", _COUNTED, _ANTHROPIC),
    "/v1/responses": ("Answer a conversation, in the words of OpenAI's Responses API", _RESPONSES, _ERROR),
    "/v1/embeddings": ("Turn texts into vectors, where a tier can", _EMBEDDINGS, _ERROR),
}
_LEFT = {**_COUNT, "description": "null where the store does not tell"}
_SHARE = _object("max", "window", max={"type": "number"}, window={"type": "string"})
_BUDGET = _object(
    "usd", "used", "left", "window", "resets", "then",
    usd={"type": "number", "description": "US dollars in a window"},
    used={**_NUMBER, "description": "What was spent, and what is held for calls that are not over"},
    left=_NUMBER,
    window={"type": "string", "description": "How long a window is, or month"},
    resets={"type": "integer", "description": "When the next one begins; Unix seconds"},
    then={"enum": ["flash_only", "refuse"], "description": "What becomes of a request that does not fit"},
)  # fmt: skip
_KEY = _object(
    "id", "name", "plan", "expires", "models", "requests", "tokens", "concurrency", "pro_share", "budget",
    id={"type": "string"},
    name={"type": "string"},
    plan={"type": "string"},
    expires={**_NUMBER, "description": "Unix seconds; null: it does not"},
    models={"type": "array", "items": {"type": "string"}, "description": "auto, and the tiers that may answer"},
    requests=_object("per_minute", "left", per_minute={"type": "integer"}, left=_LEFT),
    tokens={"anyOf": [_object("per_minute", "left", per_minute={"type": "integer"}, left=_LEFT), {"type": "null"}]},
    concurrency={"type": "integer", "description": "Requests at once"},
    pro_share={"anyOf": [_SHARE, {"type": "null"}], "description": "The part that may go above the first tier"},
    budget={"anyOf": [_BUDGET, {"type": "null"}]},
)  # fmt: skip
KEYED: JSON = {"security": [{"key": []}, {"x-api-key": []}]}
_NAMED: JSON = {"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]}
_PLAIN: JSON = {"text/plain": {"schema": {"type": "string"}}}
_WORD, _WHOLE, _WORDS = {"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "string"}}
_PRICES = _object("prompt", "completion", "input_cache_read", prompt=_WORD, completion=_WORD, input_cache_read=_WORD)
_MODEL = _object(
    "id", "object", "created", "owned_by",
    id=_WORD,
    object={"const": "model"},
    created={**_WHOLE, "description": "Unix seconds"},
    owned_by=_WORD,
    root={**_WORD, "description": "The name that the tier's servers know"},
    max_model_len={**_WHOLE, "description": "Tokens that a prompt may have"},
    context_length={**_WHOLE, "description": "The same"},
    pricing=_PRICES | {"description": "US dollars a token, where the tier has a price"},
)  # fmt: skip
_MODELS = _object("object", "data", object={"const": "list"}, data={"type": "array", "items": _MODEL})
_STATE = _object(
    "inflight", "queued", "up", "places",
    inflight=_WHOLE,
    queued=_WHOLE,
    up={"type": "array", "items": {"type": "boolean"}, "description": "Its replicas, in the policy's order"},
    places={**_WHOLE, "description": "How many calls may be in flight"},
)  # fmt: skip
_READY = _object(
    "status", "workers", "store", "processes", "limits", "policy", "load", "tiers",
    status={"enum": ["ok", "leaving"]},
    workers=_WHOLE,
    store={"enum": ["memory", "ok", "down"]},
    processes={**_WHOLE, "description": "That share the store"},
    keys_file={"enum": ["ok", "broken"], "description": "Where there is one"},
    limits=_by_name({"enum": ["shared", "local", "deny", "allow"]}),
    policy=_object(
        "name", "revision", "digest", "source", "problems",
        name=_WORD, revision=_WORD, digest=_WORD, source={"enum": ["file", "rollback"]}, problems=_WORDS,
    ),
    load=_by_name(_WHOLE),
    tiers=_by_name(_STATE),
)  # fmt: skip
_OFTEN: dict[str, tuple[str, JSON, JSON]] = {
    "/health": ("Is the process alive?", _json(_object("status", status={"const": "ok"})), {}),
    "/ready": ("Can it serve?", _json(_READY), {}),
    "/metrics": ("Metrics in Prometheus' format", _PLAIN, {}),
    "/v1/key": ("What may the key that asks do, and what is left of that?", _json(_KEY), KEYED),
    "/v1/models": ("The names that `model` may have", _json(_MODELS), KEYED),
    "/v1/models/{model}": ("One of them", _json(_MODEL), KEYED | _NAMED),
}
_TOLD = [
    ("x-request-id", "The request's id; in /v1/messages also as request-id"),
    ("x-route-tier", "The tier that answered, or none"),
    ("x-route-rule", "The rule that chose it"),
    ("x-route-reason", "Why"),
    ("x-route-policy", "Name, revision and digest of the policy"),
    ("x-route-cache", "hit, miss, bypass or coalesced"),
    ("x-route-stripped", "Fields that were taken out of the request, where some were"),
    ("x-route-skips", "How the tier's servers skip experts, where they do"),
    ("x-answer-usd", "What the caller pays for the answer, in US dollars; of JSON answers, from tiers with a price"),
    (
        "x-gateway-overhead-ms",
        "Milliseconds before the first byte that were the gateway's own; waiting for servers is not",
    ),
    ("x-ratelimit-limit-requests", "Requests in a minute; -remaining- and -reset- alike, and -tokens where limited"),
    ("x-budget", "warn or flash_only, once the budget says so; x-budget-used and x-budget-of (caller, all) tell why"),
]


def described(app: FastAPI, shapes: Sequence[type]) -> None:
    """Adds /openapi.json to an app that has all its other routes, which name these `shapes`. The document takes
    as long to make as they do: it is made when it is first asked for, in a thread, where it holds up no stream."""

    @cache
    def document() -> bytes:
        return msgspec.json.encode(_document(app, shapes))

    def description(_: Request) -> Response:
        return Response(document(), media_type="application/json")

    app.add_route("/openapi.json", description, include_in_schema=False)


def _document(app: FastAPI, shapes: Sequence[type]) -> JSON:
    """What there is to say of FastAPI's routes, and of all others."""
    told = get_openapi(title=app.title, version=app.version, routes=app.routes)
    often = {path: {"get": _get(*about)} for path, about in _OFTEN.items()}
    often["/ready"]["get"]["responses"]["503"] = {"description": "The same, where it leaves", "content": _json(_READY)}
    told["paths"] = {path: {"post": _post(*about)} for path, about in _SPOKEN.items()} | often | told["paths"]
    named = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")[1]
    told["components"]["schemas"] |= {name: one | {"description": _plain(one)} for name, one in named.items()}
    schemes = told["components"]["securitySchemes"]
    schemes["key"] = {"type": "http", "scheme": "bearer", "description": "A caller's API key"}
    schemes["x-api-key"] = {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same"}
    _refusing(told)
    return told


def _plain(schema: JSON) -> str:
    """Its description, a docstring, on one line."""
    return " ".join(schema["description"].split())


def _refusing(told: dict[str, Any]) -> None:
    """FastAPI's routes refuse as all others do, and never with FastAPI's own 422."""
    for path in told["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"].setdefault("default", _REFUSED)
    for name in ("HTTPValidationError", "ValidationError"):
        told["components"]["schemas"].pop(name, None)


def _get(summary: str, answer: JSON, more: JSON) -> JSON:
    return {"summary": summary, **more, "responses": {"200": {"description": "The answer", "content": answer}}}


def _post(summary: str, body: JSON, error: JSON) -> JSON:
    """`error`: how we refuse; a model server may refuse with OpenAI's error object everywhere."""
    refused = _REFUSED
    if error is not _ERROR:
        kind = "An error object of Anthropic's; a model server's own may be OpenAI's"
        refused = {"description": kind, "content": {"application/json": {"schema": {"anyOf": [error, _ERROR]}}}}
    answer = {
        "description": "The model server's answer, as it gave it",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    text = {"type": "string"}
    headers = [
        {"name": name, "in": "header", "required": False, "description": told, "schema": text}
        for name, told in _HEADERS
    ]
    told = {name: {"description": what, "schema": text} for name, what in _TOLD}
    answer["headers"] = told
    return {
        "summary": summary,
        **KEYED,
        "parameters": headers,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": answer, "default": {**refused, "headers": told}},
    }
