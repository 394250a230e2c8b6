"""How do clients learn our interface?   OpenAPI for the paths that are served without FastAPI."""

from typing import Any

from fastapi import FastAPI

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_REFUSED = {"description": "An OpenAI error object", "content": {"application/json": {"schema": _ERROR}}}
_MODEL = {"type": "string", "default": "auto", "description": "auto, a tier, an alias, auto:fast or auto:best"}
_CHAT = {
    "type": "object",
    "required": ["messages"],
    "additionalProperties": True,
    "properties": {
        "model": _MODEL,
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"type": "string"},
                    "content": {"type": ["string", "array", "null"], "items": {"type": "object"}},
                },
            },
        },
        "stream": {"type": ["boolean", "null"]},
        "temperature": {"type": ["number", "null"]},
        "max_tokens": {"type": ["integer", "null"]},
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 16},
        "tools": {"type": ["array", "null"], "items": {"type": "object"}},
        "metadata": {"type": ["object", "null"], "description": "metadata.tier asks for a tier"},
    },
}
_COMPLETION = {
    "type": "object",
    "required": ["prompt"],
    "additionalProperties": True,
    "properties": {"model": _MODEL, "prompt": {"type": ["string", "array"]}, "stream": {"type": ["boolean", "null"]}},
}
_HEADERS = [
    ("x-route-tier", "Ask for a tier; going up takes the caller's permission."),
    ("x-route-explain", "1: put the whole decision into the answer as `route`."),
    ("x-request-timeout", "Seconds from here to the whole answer; then a 504, or an error event in a stream."),
    ("x-request-id", "Echoed; 1 to 128 of A-Z a-z 0-9 . _ -"),
]
_TOLD = [
    ("x-request-id", "The request's id"),
    ("x-route-tier", "The tier that answered, or none"),
    ("x-route-rule", "The rule that chose it"),
    ("x-route-reason", "Why"),
    ("x-route-policy", "Name, revision and digest of the policy"),
    ("x-route-cache", "hit, miss, bypass or coalesced"),
    (
        "x-gateway-overhead-ms",
        "Milliseconds before the first byte that were the gateway's own; waiting for servers is not",
    ),
    ("x-ratelimit-limit-requests", "Requests in a minute; -remaining- and -reset- alike"),
]


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of FastAPI's routes and of the completion paths."""
    if app.openapi_schema is None:
        told = FastAPI.openapi(app)
        told["paths"]["/v1/chat/completions"] = {"post": _post("Answer a conversation", _CHAT)}
        told["paths"]["/v1/completions"] = {"post": _post("Continue a text", _COMPLETION)}
        schemes = told["components"]["securitySchemes"]
        schemes["key"] = {"type": "http", "scheme": "bearer", "description": "A caller's API key"}
        _refusing(told)
        app.openapi_schema = told
    return app.openapi_schema


def _refusing(told: dict[str, Any]) -> None:
    """FastAPI's routes refuse as all others do, and never with FastAPI's own 422."""
    for path in told["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"].setdefault("default", _REFUSED)
    for name in ("HTTPValidationError", "ValidationError"):
        told["components"]["schemas"].pop(name, None)


def _post(summary: str, body: dict[str, Any]) -> dict[str, Any]:
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
        "security": [{"key": []}],
        "parameters": headers,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": answer, "default": {**_REFUSED, "headers": told}},
    }
