"""Where does each dialect have the few things that we decide on?   All are read into the same Fields.

Turns become messages as in vLLM: instructions become a system message, a tool's result a message of the role tool.
Members that no decision depends on are not read.
"""

from typing import Any

import msgspec

from gateway.body import Body, real
from gateway.errors import BadRequest
from gateway.fields import (
    MAX_PROMPTS,
    Fields,
    Length,
    Likely,
    Message,
    Part,
    Prompt,
    Tools,
    TopK,
    Turns,
    read,
    read_as,
)

# Members that refer to what a server kept of an earlier request: each request may go to another server.
KEPT = ("previous_response_id", "previous_response", "previous_input_messages", "conversation", "prompt")
# Types of tools that the caller runs itself; a namespace holds functions.
CALLERS_OWN = frozenset({"function", "custom", "namespace", "tool_search", "local_shell", "apply_patch"})
SEARCH = "web_search"  # how the types of a tool begin that coding agents offer unasked; models answer without it, too


class _Source(msgspec.Struct):
    url: str | None = None


class _Block(msgspec.Struct):
    """A piece of content in the Messages API; `content` is a tool's result."""

    type: str
    text: str | None = None
    source: _Source | None = None
    content: "str | Turns[_Block] | None" = None


class _Turn(msgspec.Struct):
    role: str
    content: str | Turns[_Block]


class _Format(msgspec.Struct):
    type: str | None = None


class _Thinking(msgspec.Struct):
    type: str


class _Output(msgspec.Struct):
    """How the answer shall look, and how hard the model shall think."""

    format: _Format | None = None
    effort: str | None = None


class _Common(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    metadata: dict[str, Any] | None = None
    top_k: TopK | None = None
    top_logprobs: Likely | None = None

    def fields(self, messages: list[Message], asked: _Output | None, effort: str | None, most: int | None) -> Fields:
        kind = asked.format.type if asked and asked.format else None
        return Fields(
            model=self.model,
            messages=messages,
            stream=self.stream,
            temperature=self.temperature,
            max_tokens=most,
            tools=self.tools,
            response_format={"type": kind} if kind else None,
            reasoning_effort=effort,
            chat_template_kwargs=self.chat_template_kwargs,
            cache_salt=self.cache_salt,
            metadata=self.metadata,
        )


class _Messages(_Common):
    messages: Turns[_Turn] | None = None
    system: str | Turns[_Block] | None = None
    max_tokens: Length | None = None
    output_config: _Output | None = None
    thinking: _Thinking | None = None

    def effort(self) -> str | None:
        """How hard the model shall think, if the caller says; "adaptive" leaves that open."""
        if self.output_config and self.output_config.effort:
            return self.output_config.effort
        return self.thinking.type if self.thinking and self.thinking.type != "adaptive" else None


class _Item(msgspec.Struct):
    """A piece of input in the Responses API: a message, a call, a call's output, what was thought."""

    type: str | None = None
    role: str | None = None
    content: str | Turns[Part] | None = None
    output: str | Part | Turns[Part] | None = None
    arguments: str | dict[str, msgspec.Raw] | None = None
    input: str | None = None


class _Responses(_Common):
    input: str | Turns[_Item] | None = None
    instructions: str | None = None
    max_output_tokens: Length | None = None
    text: _Output | None = None
    reasoning: _Output | None = None


class _Embeddings(msgspec.Struct):
    model: str | None = None
    input: Prompt | None = None
    cache_salt: str | None = None


class _Tool(msgspec.Struct):
    type: str = "function"


_MESSAGES = msgspec.json.Decoder(_Messages, float_hook=real)
_RESPONSES = msgspec.json.Decoder(_Responses, float_hook=real)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)
_TOOL = msgspec.json.Decoder(_Tool)
_MESSAGE, _TURN, _ITEM = msgspec.json.Decoder(Message), msgspec.json.Decoder(_Turn), msgspec.json.Decoder(_Item)


def texts(data: bytes) -> tuple[Body, Fields]:
    """OpenAI's text completions. Raises BadRequest."""
    body, fields = read(data)
    return body, _bounded(fields, "prompt")


def messages(data: bytes) -> tuple[Body, Fields]:
    """Anthropic's Messages API as vLLM serves it. Raises BadRequest."""
    body, asked = read_as(_MESSAGES, data)
    said = [] if asked.system is None else [Message("system", _content(asked.system))]
    said += [message for turn in asked.messages or () for message in _turn(turn)]
    return body, asked.fields(said, asked.output_config, asked.effort(), asked.max_tokens)


def count(data: bytes) -> tuple[Body, Fields]:
    """The same for a count of its tokens, which is never streamed. Raises BadRequest."""
    body, fields = messages(data)
    fields.stream = None
    return body, fields


def responses(data: bytes) -> tuple[Body, Fields]:
    """OpenAI's Responses API as vLLM serves it. Raises BadRequest, also for state that would be kept on a server and
    for tools that a server would run."""
    body, asked = read_as(_RESPONSES, data)
    _alone(body, asked)
    body, asked.tools = _own(body, asked.tools)
    said = [] if asked.instructions is None else [Message("system", asked.instructions)]
    given = asked.input
    said += [Message("user", given)] if isinstance(given, str) else map(_item, given or ())
    effort = asked.reasoning.effort if asked.reasoning else None
    return body, asked.fields(said, asked.text, effort, asked.max_output_tokens)


def embeddings(data: bytes) -> tuple[Body, Fields]:
    """Raises BadRequest."""
    body, asked = read_as(_EMBEDDINGS, data)
    return body, _bounded(Fields(model=asked.model, prompt=asked.input, cache_salt=asked.cache_salt), "input")


def _bounded(fields: Fields, name: str) -> Fields:
    """The same fields. Raises BadRequest for more prompts, in the member `name`, than a request may hold."""
    if fields.prompts() * (fields.n or 1) > MAX_PROMPTS:
        raise BadRequest(f"'{name}' holds too many prompts: {MAX_PROMPTS} at most, times 'n'.", param=name)
    return fields


def message(data: bytes) -> list[Message]:
    """An element of `messages` in chat."""
    return [_MESSAGE.decode(data)]


def turn(data: bytes) -> list[Message]:
    """An element of `messages` in the Messages API."""
    return _turn(_TURN.decode(data))


def _turn(turn: _Turn) -> list[Message]:
    """The tools' results first, then what else the turn holds."""
    if isinstance(turn.content, str):
        return [Message(turn.role, turn.content)]
    results = [Message("tool", _content(block.content)) for block in turn.content if block.type == "tool_result"]
    rest = [block for block in turn.content if block.type != "tool_result"]
    return [*results, Message(turn.role, _content(rest))] if rest or not results else results


def _content(said: str | list[_Block] | None) -> str | list[Part] | None:
    if not isinstance(said, list):
        return said
    return [Part(block.type, block.text, block.source.url if block.source else None) for block in said]


def _alone(body: Body, asked: _Responses) -> None:
    """Raises BadRequest for a request that goes on from another one, or goes on after its answer."""
    kept = [name for name in KEPT if body.raw(name) is not None]
    if isinstance(asked.input, list) and any(item.type == "item_reference" for item in asked.input):
        kept.append("input")
    if kept:
        told = "No response is kept here: send the whole conversation as 'input', as SDKs do with 'store': false."
        raise BadRequest(told, param=kept[0])
    if body.raw("background") not in (None, b"false"):
        raise BadRequest("No response is made in the background here.", param="background")


def _own(body: Body, tools: list[msgspec.Raw] | None) -> tuple[Body, list[msgspec.Raw] | None]:
    """The request without its searches of the web, and its tools then. Raises BadRequest for other tools that a server
    would run, and for a search that is not left to the model."""
    kinds = [read_as(_TOOL, bytes(tool))[1].type for tool in tools or ()]
    foreign = [kind for kind in kinds if kind not in CALLERS_OWN]
    if not tools or not foreign:
        return body, tools
    if any(not kind.startswith(SEARCH) for kind in foreign):
        raise BadRequest("Tools that the server runs are not offered; send functions.", param="tools")
    choice = body.raw("tool_choice") or b""
    if choice.startswith(b"{") and read_as(_TOOL, choice)[1].type.startswith(SEARCH):
        raise BadRequest("The server searches no web; leave it out of 'tool_choice'.", param="tool_choice")
    kept = [tool for tool, kind in zip(tools, kinds, strict=True) if kind in CALLERS_OWN]
    return Body(body.edit({"tools": b"[%b]" % b",".join(map(bytes, kept)) if kept else None})), kept


def item(data: bytes) -> list[Message]:
    """An element of `input` in the Responses API."""
    return [_item(_ITEM.decode(data))]


def _item(item: _Item) -> Message:
    """A message with all text that the item may hold, whatever its type: a server may read any of these members."""
    role = "tool" if (item.type or "").endswith("_output") else "assistant"
    said = (item.content, item.output, item.arguments, item.input)
    return Message(item.role or role, [part for one in said for part in _parts(one)])


def _parts(said: str | Part | list[Part] | dict[str, msgspec.Raw] | None) -> list[Part]:
    if isinstance(said, list):
        return said
    if isinstance(said, dict):  # arguments, which vLLM writes out as JSON
        return [Part("text", msgspec.json.encode(said).decode())]
    return [] if said is None else [said if isinstance(said, Part) else Part("text", said)]
