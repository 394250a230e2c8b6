"""Which tokens is a request's prompt?"""

import msgspec

from backends.sim.protocol import JSON, ChatRequest, CompletionRequest, content_text
from backends.sim.tokens import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, pieces

# DeepSeek's 0731 encoding (deepseek_v4.md 1.5) puts the effort's text before all else, so an answer that thinks with
# effort high or max shares no prefix with a call that does not think; with effort low they differ at the tail only.
_EFFORT = {
    "low": "",
    "high": "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n",
    "max": "Reasoning Effort: Beyond maximum, exhaustive and relentless.\n",
}
_LOW = frozenset({"low", "minimal", "medium"})


def thinks(request: ChatRequest, default: bool) -> bool:
    """Whether the model thinks: by chat template kwargs, else `reasoning_effort`, else the server's default."""
    kwargs = request.chat_template_kwargs or {}
    for key in ("thinking", "enable_thinking"):
        if key in kwargs:
            return bool(kwargs[key])
    effort = kwargs.get("reasoning_effort", request.reasoning_effort)
    return default if effort is None else effort != "none"


def effort(request: ChatRequest) -> str:
    """`low`, `high` or `max`, from chat template kwargs or the request's `reasoning_effort`."""
    kwargs = request.chat_template_kwargs or {}
    asked = str(kwargs.get("reasoning_effort", request.reasoning_effort))
    if asked in _LOW:
        return "low"
    return "max" if asked in ("max", "xhigh") else "high"


def chat_prompt(request: ChatRequest, thinking: bool) -> list[str]:
    """Tokens of the conversation in the shape of DeepSeek V4's chat encoding."""
    system = [content_text(m) for m in request.messages if m["role"] in ("system", "developer")]
    head = BOS + (_EFFORT[effort(request)] if thinking else "") + "\n".join(system)
    if request.tools:  # with tool_choice "none" too, unless the server has --exclude-tools-when-tool-choice-none
        head += _tools_text(request.tools)
    parts = [head]
    parts += [_turn(message) for message in request.messages]
    parts.append(ASSISTANT + (THINK if thinking else END_THINK))
    return pieces("".join(parts))


def completion_texts(request: CompletionRequest) -> list[str]:
    """The text of each prompt; a token id is written as a marker with its number."""
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    ids = [item for item in prompts if isinstance(item, int)]
    return [_written(ids)] if ids else [_written(item) for item in prompts if not isinstance(item, int)]


def _written(prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else "".join(f"<｜{token}｜>" for token in prompt)


def completion_prompt(request: CompletionRequest) -> list[str]:
    """Tokens of all prompts together."""
    return pieces("".join(completion_texts(request)))


def _tools_text(tools: list[JSON]) -> str:
    schemas = "\n".join(msgspec.json.encode(tool.get("function")).decode() for tool in tools)
    return f"\n\n## Tools\n\n### Available Tool Schemas\n\n{schemas}\n"


def _turn(message: JSON) -> str:
    role = message["role"]
    if role == "user":
        return USER + content_text(message)
    if role in ("tool", "function"):
        return f"{USER}<tool_result>{content_text(message)}</tool_result>"
    if role == "assistant":
        calls = message.get("tool_calls")
        called = msgspec.json.encode(calls).decode() if calls else ""
        return f"{ASSISTANT}{END_THINK}{content_text(message)}{called}{EOS}"
    return ""
