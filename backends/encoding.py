"""How is a conversation encoded into DeepSeek V4's prompt, and its completion decoded into a message?

The format is DeepSeek's (README and test vectors beside the V4 checkpoints, MIT); the texts on tools and reasoning
effort are part of it, to the byte. Two generations exist: `preview` (April), where only effort `max` adds a text, and
`0731`, where `high` adds that one and `max` a stronger one. Text content only. Nothing is escaped: as in DeepSeek's own
encoder, a special token's text in a message becomes that token.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

Message = Mapping[str, Any]
Thinking = Literal["chat", "thinking"]
Generation = Literal["preview", "0731"]

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
REMINDER = "<｜latest_reminder｜>"
THINK, END_THINK = "<think>", "</think>"
DSML = "｜DSML｜"
# Quick instructions: one token after a user's turn, and the model answers the classification.
TASKS = {task: f"<｜{task}｜>" for task in ("action", "query", "authority", "domain", "title", "read_url")}

_ABSOLUTE = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
)
_BEYOND = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the "
    "problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying "
    "cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain "
    "that no assumption remains unchecked and no error remains undiscovered.\n\n"
)
EFFORTS: dict[Generation, dict[str | None, str]] = {
    "preview": {None: "", "high": "", "max": _ABSOLUTE},
    "0731": {None: "", "low": "", "high": _ABSOLUTE, "max": _BEYOND},
}
_KNOWN = "; ".join(f"{generation} with {', '.join(map(str, efforts))}" for generation, efforts in EFFORTS.items())
_TOOLS = f"""## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
"<{DSML}tool_calls>" block like the following:

<{DSML}tool_calls>
<{DSML}invoke name="$TOOL_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$TOOL_NAME2">
...
</{DSML}invoke>
</{DSML}tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, \
objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning inside \
{THINK}...{END_THINK} BEFORE any tool calls or final response.

Otherwise, output directly after {END_THINK} with tool calls or final response.

### Available Tool Schemas

%s

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""
_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
_CALLS, _END_CALLS = f"\n\n<{DSML}tool_calls>\n", f"</{DSML}tool_calls>"
_INVOKE = re.compile(rf'<{DSML}invoke name="(.*?)">\n(.*?)</{DSML}invoke>\n', re.DOTALL)
_PARAMETER = re.compile(rf'<{DSML}parameter name="(.*?)" string="(true|false)">(.*?)</{DSML}parameter>\n', re.DOTALL)
_ASKS = ("user", "developer")
_json = partial(json.dumps, ensure_ascii=False)


class EncodingError(ValueError):
    """Messages that the format cannot express, or a completion that violates it; says which."""


def encode_messages(  # noqa: PLR0913  (the options of DeepSeek's own encoder, and its generations)
    messages: Sequence[Message],
    thinking_mode: Thinking,
    *,
    context: Sequence[Message] = (),
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    reasoning_effort: str | None = None,
    generation: Generation = "0731",
) -> str:
    """The prompt for OpenAI-style messages; `context`: messages before them whose prompt exists already.

    Beyond OpenAI's, a message may have `reasoning` (or `reasoning_content`), `task` (a quick instruction), `tools` and
    `response_format` (of a system or developer message), and `wo_eos` (an assistant's turn without the end token). With
    `drop_thinking`, reasoning before the last question is left out, unless a message has tools. Raises EncodingError.
    """
    if thinking_mode not in ("chat", "thinking"):
        raise EncodingError(f"thinking_mode is 'chat' or 'thinking', not {thinking_mode!r}")
    efforts = EFFORTS.get(generation, {})
    if reasoning_effort not in efforts:
        raise EncodingError(f"generation {generation!r} with effort {reasoning_effort!r}; there are {_KNOWN}")
    thinking, before, after = thinking_mode == "thinking", _merged(context), _merged(messages)
    turns = _ordered([*before, *after])
    keeps = not drop_thinking or any(turn.get("tools") for turn in turns)
    if thinking and not keeps:
        turns, before = _dropped(turns), _dropped(before)
    last = _last(turns)
    written = [BOS] if add_default_bos_token and not context else []
    if thinking and not before:
        written.append(efforts[reasoning_effort])
    for index in range(len(before), len(turns)):
        thinks = thinking and (keeps or index >= last)
        answers_task = bool(index) and turns[index - 1].get("task") is not None
        written += [_turn(turns[index], thinks and not answers_task), _transition(turns, index, thinking, thinks)]
    return "".join(written)


def with_tools(messages: Sequence[Message], tools: Sequence[Message]) -> list[Message]:
    """The messages with a request's tools on the first system message, or on a new one, as vLLM does it."""
    if not tools:
        return list(messages)
    at = next((i for i, message in enumerate(messages) if message.get("role") == "system"), None)
    if at is None:
        return [{"role": "system", "tools": tools}, *messages]
    return [*messages[:at], {**messages[at], "tools": tools}, *messages[at + 1 :]]


def _merged(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns: consecutive user messages and tool results become one user turn with `blocks` (call id or None, text)."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role, said = message.get("role"), text(message)
        if role not in ("user", "tool"):
            turns.append(dict(message))
            continue
        is_result = role == "tool"
        block = (message.get("tool_call_id") or "", f"<tool_result>{said}</tool_result>") if is_result else (None, said)
        follows = bool(turns) and turns[-1].get("role") == "user"
        if follows and (is_result or turns[-1].get("task") is None):
            turns[-1]["blocks"].append(block)  # as in DeepSeek's encoder, a task of the message that joins is lost
        else:
            turns.append({"role": "user", "task": None if is_result else message.get("task"), "blocks": [block]})
    return turns


def text(message: Message) -> str:
    """A message's content; parts are joined by an empty line. Raises EncodingError for content that is not text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise EncodingError(f"the content of a {message.get('role')} message is not text, but {str(part)[:60]}")
    return "\n\n".join(part["text"] for part in content)


def _ordered(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns with tool results sorted in the order of their calls."""
    order: dict[str, int] = {}
    for turn in turns:
        if turn.get("role") == "assistant" and turn.get("tool_calls"):
            order = {call["id"]: at for at, call in enumerate(turn["tool_calls"]) if call.get("id")}
        elif order and "blocks" in turn:
            results = sorted((b for b in turn["blocks"] if b[0] is not None), key=lambda b: order.get(b[0], 0))
            following = iter(results)
            turn["blocks"] = [next(following) if block[0] is not None else block for block in turn["blocks"]]
    return turns


def _last(turns: Sequence[Message]) -> int:
    """Index of the last user or developer turn, -1 without one."""
    return max((i for i, turn in enumerate(turns) if turn.get("role") in _ASKS), default=-1)


def _dropped(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns without developers' ones before the last question; earlier reasoning is left out by `_turn`."""
    last, kept = _last(turns), ("user", "system", "assistant", "latest_reminder")
    return [turn for i, turn in enumerate(turns) if i >= last or turn.get("role") in kept]


def _turn(turn: Message, thought: bool) -> str:
    """The text of one turn; `thought`: an assistant's begins with its reasoning, if any, and END_THINK."""
    role = turn.get("role")
    if role == "system":
        return text(turn) + _extras(turn)
    if role == "developer":
        if not turn.get("content"):
            raise EncodingError("a developer message has no content")
        return USER + text(turn) + _extras(turn)
    if role == "user":
        return USER + "\n\n".join(said for _, said in turn["blocks"])
    if role == "latest_reminder":
        return REMINDER + text(turn)
    if role != "assistant":
        raise EncodingError(f"unknown role {role!r}")
    reasoning = turn.get("reasoning_content") or turn.get("reasoning") or ""
    calls = "".join(_call(call) for call in turn.get("tool_calls") or ())
    called = f"{_CALLS}{calls}{_END_CALLS}" if calls else ""
    return (reasoning + END_THINK if thought else "") + text(turn) + called + ("" if turn.get("wo_eos") else EOS)


def _extras(turn: Message) -> str:
    """The sections on tools and on the response format."""
    tools, form = "\n".join(_json(_function(tool)) for tool in turn.get("tools") or ()), turn.get("response_format")
    return ("\n\n" + _TOOLS % tools if tools else "") + (f"\n\n{_FORMAT}{_json(form)}" if form else "")


def _function(tool: Message) -> Message:
    found = tool.get("function")
    if not isinstance(found, Mapping) or not found.get("name"):
        raise EncodingError("a tool or tool call has no function with a name")
    return found


def _call(call: Message) -> str:
    """One call in DSML, V4's XML-like form. Arguments that are no JSON object become one parameter `arguments`."""
    function = _function(call)
    given = function.get("arguments") or "{}"
    with suppress(ValueError):
        given = json.loads(given) if isinstance(given, str) else given
    arguments = given if isinstance(given, Mapping) else {"arguments": function["arguments"]}
    lines = "\n".join(_parameter(name, value) for name, value in arguments.items())
    return f'<{DSML}invoke name="{function["name"]}">\n{lines}\n</{DSML}invoke>\n'


def _parameter(name: str, value: object) -> str:
    is_string, written = ("true", value) if isinstance(value, str) else ("false", _json(value))
    return f'<{DSML}parameter name="{name}" string="{is_string}">{written}</{DSML}parameter>'


def _transition(turns: Sequence[Message], index: int, thinking: bool, thinks: bool) -> str:
    """What follows a turn before the assistant's: its token with THINK or END_THINK, or a task's token; else ""."""
    role, following = turns[index].get("role"), turns[index + 1].get("role") if index + 1 < len(turns) else "assistant"
    if following not in ("assistant", "latest_reminder"):
        return ""
    task = turns[index].get("task")
    if task is None:  # that a system message alone is answered is vLLM's addition
        asks = role in _ASKS or (role == "system" and following == "assistant")
        return ASSISTANT + (THINK if thinks else END_THINK) if asks else ""
    if task not in TASKS:
        raise EncodingError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    return (ASSISTANT + (THINK if thinking else END_THINK) if task == "action" else "") + TASKS[task]


def parse_message_from_completion_text(text: str, thinking_mode: Thinking) -> dict[str, Any]:
    """The assistant's message in a complete completion, its end token included.

    Has role, content, reasoning_content and tool_calls (OpenAI's form, without ids). Raises EncodingError for a text
    that is truncated or not in the format; nothing is repaired.
    """
    reasoning, rest = "", text
    if thinking_mode == "thinking":
        reasoning, found, rest = text.partition(END_THINK)
        if not found or _CALLS in reasoning:
            raise EncodingError(f"the reasoning is not closed by {END_THINK}")
    if not rest.endswith(EOS):
        raise EncodingError(f"the text does not end with {EOS}")
    content, called, block = rest.removesuffix(EOS).partition(_CALLS)
    for marker in (BOS, EOS, THINK, END_THINK, DSML):
        if marker in content or marker in reasoning:
            raise EncodingError(f"{marker} where text was expected")
    if called and not block.endswith(_END_CALLS):
        raise EncodingError("the tool calls are not closed, or text follows them")
    calls = [_called(*found.groups()) for found in _each(_INVOKE, block.removesuffix(_END_CALLS))]
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": calls}


def _called(name: str, body: str) -> dict[str, Any]:
    """One tool call, in OpenAI's form. Raises EncodingError for a parameter that occurs twice or is not JSON."""
    arguments: dict[str, str] = {}
    for found in _each(_PARAMETER, "" if body == "\n" else body):
        key, string, value = found.groups()
        if key in arguments:
            raise EncodingError(f"parameter {key!r} of {name} is there twice")
        try:
            arguments[key] = _json(value) if string == "true" else _json(json.loads(value))
        except ValueError as error:
            raise EncodingError(f"parameter {key!r} of {name} is not JSON: {error}") from None
    written = "{" + ", ".join(f"{_json(key)}: {value}" for key, value in arguments.items()) + "}"
    return {"type": "function", "function": {"name": name, "arguments": written}}


def _each(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Consecutive matches that cover the whole text. Raises EncodingError where they do not."""
    at = 0
    while at < len(text):
        found = pattern.match(text, at)
        if found is None:
            raise EncodingError(f"not a tool call at {text[at : at + 60]!r}")
        yield found
        at = found.end()
