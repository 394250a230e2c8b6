"""What are the bodies of vLLM's /v1/messages, /v1/responses and /v1/embeddings?   The first two become chats."""

import base64
import math
import struct
import zlib
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from backends.sim.generate import Generation, collected
from backends.sim.plan import Step
from backends.sim.protocol import JSON, ChatRequest, Positive, RequestError, decode
from backends.sim.replies import Shape
from backends.sim.tokens import pieces
from backends.sim.wire import Wire

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
DIMENSIONS = 8
SIGNATURE = "simulated"  # of a thought


class _Common(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = False
    temperature: Annotated[float, msgspec.Meta(ge=0.0)] | None = None
    tools: list[JSON] | None = None
    tool_choice: str | JSON | None = None
    chat_template_kwargs: JSON | None = None
    cache_salt: str | None = None

    def chat(self, messages: list[JSON], tools: list[JSON], **asked: Any) -> ChatRequest:
        return ChatRequest(
            model=self.model, messages=messages, stream=self.stream, temperature=self.temperature,
            tools=tools or None, tool_choice=self._choice() if tools else None,
            chat_template_kwargs=self.chat_template_kwargs, cache_salt=self.cache_salt, **asked,
        )  # fmt: skip

    def _choice(self) -> str | JSON:
        """As chat says it; Anthropic's "any" is "required"."""
        if not isinstance(self.tool_choice, dict):
            return self.tool_choice or "auto"
        kind, name = self.tool_choice.get("type"), self.tool_choice.get("name")
        return {"type": "function", "function": {"name": name}} if name else "required" if kind == "any" else str(kind)


class Options(msgspec.Struct):
    """What is read of `thinking`, `output_config`, `text` and `reasoning`."""

    type: str | None = None
    effort: str | None = None
    format: JSON | None = None
    budget_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def form(self) -> JSON | None:
        """The form of the output as chat names it."""
        schema = self.format and self.format.get("type") == "json_schema"
        return {"type": "json_schema", "json_schema": self.format} if schema else self.format


class MessagesRequest(_Common, kw_only=True):
    """Body of `/v1/messages`, and without `max_tokens` of `/v1/messages/count_tokens`; as vLLM 0.32 reads it."""

    messages: list[JSON]
    max_tokens: Positive | None = None
    system: str | list[JSON] | None = None
    thinking: Options | None = None
    output_config: Options | None = None

    def as_chat(self) -> ChatRequest:
        system = [{"role": "system", "content": _text(self.system)}] if self.system else []
        functions = [{"type": "function", "function": {"name": t.get("name"), "parameters": t.get("input_schema")}}
                     for t in self.tools or ()]  # fmt: skip
        thinking, output = self.thinking or Options(), self.output_config or Options()
        return self.chat(
            system + [turn for m in self.messages for turn in _turns(m)],
            functions,
            max_tokens=self.max_tokens,
            reasoning_effort="none" if thinking.type == "disabled" else output.effort,
            thinking_token_budget=thinking.budget_tokens,
            response_format=output.form(),
        )


class ResponsesRequest(_Common, kw_only=True):
    """Body of `/v1/responses`."""

    input: str | list[JSON]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    text: Options | None = None
    reasoning: Options | None = None

    def as_chat(self) -> ChatRequest:
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        turns = [{"role": item.get("role", "tool" if "output" in item else "assistant"),
                  "content": _text(item.get("output", item.get("content")))} for item in items]  # fmt: skip
        functions = [{"type": "function", "function": tool} for tool in self.tools or ()]
        return self.chat(
            system + turns,
            functions,
            max_tokens=self.max_output_tokens,
            reasoning_effort=(self.reasoning or Options()).effort,
            response_format=(self.text or Options()).form(),
        )


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """Body of `/v1/embeddings`."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"


SHAPES = {"/v1/messages": MessagesRequest, "/v1/responses": ResponsesRequest}


def as_chat(path: str, body: bytes) -> ChatRequest:
    """Raises RequestError."""
    request: MessagesRequest | ResponsesRequest = decode(body, SHAPES[path])  # type: ignore[arg-type]  # a type by path
    if isinstance(request, MessagesRequest) and not request.max_tokens:
        raise RequestError("Field required", "max_tokens")
    return request.as_chat()


def embedded(body: bytes, model: str) -> JSON:
    """The answer of /v1/embeddings: unit vectors, a function of the text. Raises RequestError."""
    request = decode(body, EmbeddingsRequest)
    given, vector = request.input, _encoded if request.encoding_format == "base64" else _vector
    ids = [item for item in given if isinstance(item, int)]
    texts: list[Any] = [given] if isinstance(given, str) else [ids] if ids else list(given)
    data = [{"object": "embedding", "index": i, "embedding": vector(str(text))} for i, text in enumerate(texts)]
    counted = sum(len(pieces(text)) if isinstance(text, str) else len(text) for text in texts)
    return {"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": counted, "total_tokens": counted,
            "completion_tokens": 0}}  # fmt: skip


def _vector(text: str) -> list[float]:
    raw = [math.sin(zlib.crc32(text.encode("utf-8", "replace"), i)) for i in range(DIMENSIONS)]
    length = math.hypot(*raw)
    return [x / length for x in raw]


def _encoded(text: str) -> str:
    """The vector as base64 of little-endian float32."""
    return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *_vector(text))).decode()


def _text(content: Any) -> str:
    """The text of a string, a content block or a list of blocks. Raises RequestError for media."""
    if isinstance(content, list):
        return "\n".join(map(_text, content))
    if isinstance(content, dict):
        if content.get("type") not in ("text", "thinking", "input_text", "output_text", "reasoning_text"):
            raise RequestError(f"This model takes text only, not {content.get('type')!r}.", "messages")
        return _text(content.get("text", ""))
    return content if isinstance(content, str) else ""


def _turns(message: JSON) -> list[JSON]:
    """An Anthropic message as chat messages; its tool results come first, as messages of their own."""
    content, role = message.get("content"), message.get("role")
    blocks = [b for b in content if isinstance(b, dict)] if isinstance(content, list) else []
    results = [{"role": "tool", "content": _text(b.get("content"))} for b in blocks if b.get("type") == "tool_result"]
    said = [b for b in blocks if b.get("type") not in ("tool_result", "tool_use")]
    calls = [{"id": b.get("id"), "function": {"name": b.get("name"), "arguments": b.get("input")}}
             for b in blocks if b.get("type") == "tool_use"]  # fmt: skip
    own = {"role": role, "content": content if isinstance(content, str) else _text(said)}
    return [*results, own | ({"tool_calls": calls} if calls else {})] if said or calls or not results else results


class Block(NamedTuple):
    """Consecutive tokens of one kind: a content block of Anthropic's, an output item of /v1/responses."""

    kind: str
    call: JSON | None
    steps: list[Step]

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)


def blocks(steps: list[Step]) -> list[Block]:
    found: list[Block] = []
    for step in steps:
        if begins(found, step):
            found.append(Block(step.kind, step.call, []))
        found[-1].steps.append(step)
    return found


def begins(found: list[Block], step: Step) -> bool:
    """Whether a block begins with this token after the blocks found."""
    return not found or found[-1].kind != step.kind or step.call is not None


def message_usage(generation: Generation) -> JSON:
    """The usage object as vLLM and Anthropic give it: `input_tokens` without the cached ones."""
    prompt, cached = len(generation.sequence.tokens), generation.sequence.cached
    return {"input_tokens": prompt - cached, "output_tokens": generation.entry.tokens,
            "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0}  # fmt: skip


def _content(block: Block) -> JSON:
    if block.kind in ("content", "refusal"):
        return {"type": "text", "text": block.text}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": SIGNATURE}
    call = block.call or {}
    return {"type": "tool_use", "id": call.get("id"), "name": call.get("name"),
            "input": msgspec.json.decode(block.text or "{}")}  # fmt: skip


def _message(shaped: Shape, content: list[JSON], stop: str | None, usage: JSON) -> JSON:
    return {"id": shaped.id, "type": "message", "role": "assistant", "content": content, "model": shaped.model,
            "stop_reason": stop, "stop_sequence": None, "usage": usage}  # fmt: skip


async def message(generation: Generation, shaped: Shape, wire: Wire) -> None:
    """Send a non-streamed answer of `/v1/messages`."""
    made = (await collected(generation))[0]
    stop = STOPS[generation.plans[0].finish]
    await wire.json(200, _message(shaped, [_content(b) for b in blocks(made)], stop, message_usage(generation)))


async def message_stream(generation: Generation, shaped: Shape, wire: Wire) -> None:
    """Send a streamed answer of `/v1/messages`."""
    said, begun = _Blocks(wire), False
    async for _, step in generation.steps():
        if not begun:
            start = _message(shaped, [], None, message_usage(generation) | {"output_tokens": 0})
            await _event(wire, "message_start", message=start)
        begun = True
        await said.say(step)
    await said.close()
    stop = {"stop_reason": STOPS[generation.plans[0].finish], "stop_sequence": None}
    await _event(wire, "message_delta", delta=stop, usage=message_usage(generation))
    await wire.done(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


class _Blocks:
    """Sends content blocks as events: start, a delta for each token, stop."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._index, self._kind = wire, -1, ""

    async def say(self, step: Step) -> None:
        if step.call or step.kind != self._kind:
            await self.close()
            await self._open(step)
        deltas: dict[str, JSON] = {
            "content": {"type": "text_delta", "text": step.text},
            "refusal": {"type": "text_delta", "text": step.text},
            "reasoning": {"type": "thinking_delta", "thinking": step.text},
            "tool": {"type": "input_json_delta", "partial_json": step.text},
        }
        await _event(self._wire, "content_block_delta", index=self._index, delta=deltas[step.kind])

    async def _open(self, step: Step) -> None:
        self._index, self._kind, call = self._index + 1, step.kind, step.call or {}
        empty: dict[str, JSON] = {
            "content": {"type": "text", "text": ""},
            "refusal": {"type": "text", "text": ""},
            "reasoning": {"type": "thinking", "thinking": ""},
            "tool": {"type": "tool_use", "id": call.get("id"), "name": call.get("name"), "input": {}},
        }
        await _event(self._wire, "content_block_start", index=self._index, content_block=empty[step.kind])

    async def close(self) -> None:
        if self._kind == "reasoning":
            signed = {"type": "signature_delta", "signature": SIGNATURE}
            await _event(self._wire, "content_block_delta", index=self._index, delta=signed)
        if self._index >= 0:
            await _event(self._wire, "content_block_stop", index=self._index)


async def _event(wire: Wire, kind: str, **body: Any) -> None:
    await wire.event({"type": kind, **body}, kind)
