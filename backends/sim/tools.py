"""Which tool does the model call, and with which arguments?"""

import json
import random
import re

from backends.sim import schema, text
from backends.sim.protocol import JSON, ChatRequest, content_text, named_tool, tool_name

_WORDS = re.compile(r"[a-z]{3,}")
_EMPTY = set(_WORDS.findall("the and for get with from this that use tool call function given return returns"))


def call(request: ChatRequest, rng: random.Random) -> JSON | None:
    """The call to make, with id, name and JSON arguments; None for a text answer.

    `auto` calls the tool whose name and description share most words with the last user message, if any do, and
    never directly after a tool's result.
    """
    tools = request.tools or []
    choice = request.tool_choice or "auto"
    if not tools or choice == "none":
        return None
    if isinstance(choice, dict):
        picked = next(t for t in tools if tool_name(t) == named_tool(choice))
        return _call(picked, request, rng)
    ranked = sorted(tools, key=lambda tool: -_overlap(tool, request))
    asked = request.messages[-1]["role"] == "user" and _overlap(ranked[0], request) > 0
    return _call(ranked[0], request, rng) if choice == "required" or asked else None


def finish(request: ChatRequest) -> str:
    """vLLM ends a named call with `stop`, any other with `tool_calls`."""
    return "stop" if isinstance(request.tool_choice, dict) else "tool_calls"


def _said(request: ChatRequest) -> str:
    users = [m for m in request.messages if m["role"] == "user"]
    return content_text(users[-1]) if users else ""


def _overlap(tool: JSON, request: ChatRequest) -> int:
    function = tool["function"]
    described = f"{function['name'].replace('_', ' ')} {function.get('description') or ''}".lower()
    about = set(_WORDS.findall(described)) - _EMPTY
    return len(about & set(_WORDS.findall(_said(request).lower())))


def _call(tool: JSON, request: ChatRequest, rng: random.Random) -> JSON:
    function = tool["function"]
    value = schema.fit(function.get("parameters") or {"type": "object"}, rng, text.keywords(_said(request)))
    arguments = json.dumps(value if isinstance(value, dict) else {}, ensure_ascii=False)
    return {"id": f"chatcmpl-tool-{rng.getrandbits(64):016x}", "name": function["name"], "arguments": arguments}
