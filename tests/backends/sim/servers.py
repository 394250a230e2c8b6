"""Simulated servers in processes of their own, for tests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from loadtest.servers import sim

JSON = dict[str, Any]
# One client for all: making one costs 30 ms, most of it the TLS settings that nobody needs here.
HTTP = httpx2.Client(timeout=10, verify=False, trust_env=False)
OFF: JSON = {"thinking": False, "enable_thinking": False}
VERDICT: JSON = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {
            "type": "object",
            "properties": {"complexity": {"type": "string", "enum": ["simple", "complex"]}},
            "required": ["complexity"],
            "additionalProperties": False,
        },
    },
}


@contextmanager
def served(*flags: str, tier: str = "flash") -> Iterator[str]:
    """Run one simulated server; gives its base URL."""
    with sim(tier, *flags) as server:
        yield server.url


def chat(url: str, text: str = "hi", headers: JSON | None = None, **fields: Any) -> httpx2.Response:
    """One chat completion without thinking; `fields` go into the body."""
    body = {"messages": [{"role": "user", "content": text}], "chat_template_kwargs": OFF, **fields}
    return HTTP.post(f"{url}/v1/chat/completions", json=body, headers=headers)


def triage(url: str, text: str, headers: JSON | None = None, **fields: Any) -> httpx2.Response:
    """The triage question after a conversation of one user message."""
    messages = [{"role": "user", "content": text}, {"role": "user", "content": "How hard is that? Answer in JSON."}]
    body = {"messages": messages, "chat_template_kwargs": OFF, "response_format": VERDICT, "max_tokens": 32}
    body |= {"temperature": 0, "logprobs": True, "top_logprobs": 5, **fields}
    return HTTP.post(f"{url}/v1/chat/completions", json=body, headers=headers)


def events(raw: str) -> list[JSON]:
    """The JSON events of a stream; the last must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in raw.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def state(url: str) -> JSON:
    """The server's /admin/state."""
    shown: JSON = HTTP.get(f"{url}/admin/state").json()
    return shown


def entry(url: str, request_id: str) -> JSON:
    """The request with this id in /admin/state."""
    return next(e for e in state(url)["requests"] if e["id"] == request_id)
