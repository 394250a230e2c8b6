"""How is an answer converted from JSON to a stream, and back?

The structs name every member that exists in both forms; those of type `None` must be null. An answer with any other
member is not converted: a conversion that cannot be faithful returns None.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from gateway.cache.entry import Entry
from gateway.errors import UNREADABLE
from gateway.fields import Fields
from gateway.sse import DONE, data_of, event, events_of

JSON = b""
BARE, WITH_USAGE = b"{}", b'{"include_usage":true}'
CONVERTIBLE = frozenset({JSON, BARE, WITH_USAGE})
KINDS = {"chat.completion.chunk": "chat.completion", "text_completion": "text_completion"}
STREAMED = {whole: chunk for chunk, whole in KINDS.items()}
THOUGHT = ("reasoning", "reasoning_content")
TEXTS = (*THOUGHT, "content", "refusal")

Piece = dict[str, Any]
Empty = Annotated[list[Any], msgspec.Meta(max_length=0)]
_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.encode


class Unfaithful(ValueError):
    """The other form cannot express this."""


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    function: _Function
    index: int | None = None
    id: str | None = None
    type: str | None = None


class _Said(msgspec.Struct, forbid_unknown_fields=True):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None


class _Logprobs(msgspec.Struct, forbid_unknown_fields=True):
    content: list[msgspec.Raw] | None = None
    refusal: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    index: int
    message: _Said | None = None
    delta: _Said | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: None = None
    prompt_token_ids: None = None
    prompt_logprobs: None = None
    routed_experts: None = None


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: msgspec.Raw = _NULL
    system_fingerprint: str | None = None
    service_tier: str | None = None
    obfuscation: str | None = None
    prompt_logprobs: None = None
    prompt_token_ids: None = None
    prompt_text: None = None
    kv_transfer_params: None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_UNFAITHFUL = (*UNREADABLE, Unfaithful)


def form_of(fields: Fields) -> bytes:
    """The form of the answer that a request wants: JSON, or its stream_options, normalised."""
    if not fields.stream:
        return JSON
    given = fields.stream_options
    if not given:
        return BARE
    options = {
        key: value for key, value in given.items() if value is not None and (key, value) != ("include_usage", False)
    }
    return _encode(options, order="sorted")


def converted(entry: Entry, form: bytes) -> bytes | None:
    """A remembered answer in `form`; None where that cannot be faithful."""
    if entry.form == form:
        return entry.data
    if not {entry.form, form} <= CONVERTIBLE:
        return None
    whole = entry.data if entry.form == JSON else assembled(entry.data, entry.usage)
    if whole is None or form == JSON:
        return whole
    return unrolled(whole, with_usage=form == WITH_USAGE)


def assembled(data: bytes, usage: bytes) -> bytes | None:
    """A whole stream as one JSON answer; `usage` (JSON) is put in where the stream has none."""
    try:
        chunks = [_ANSWER.decode(said) for said in map(data_of, events_of(data)) if said and said != DONE]
        return _encode(_whole(chunks, msgspec.Raw(usage or b"null")))
    except _UNFAITHFUL:
        return None


def unrolled(data: bytes, *, with_usage: bool) -> bytes | None:
    """One JSON answer as a stream: role, thoughts, words, tool calls and the end of each choice; then the usage."""
    try:
        answer = _ANSWER.decode(data)
        head = _head(answer, STREAMED)
        if with_usage and bytes(answer.usage) == b"null":
            return None
        rest = {"usage": None} if with_usage else {}
        chunks = [head | {"choices": [piece]} | rest for choice in answer.choices for piece in _pieces(choice)]
    except _UNFAITHFUL:
        return None
    if with_usage:
        chunks.append(head | {"choices": [], "usage": answer.usage})
    return b"".join([*(event(_encode(chunk)) for chunk in chunks), event(DONE)])


def _head(answer: _Answer, kinds: dict[str, str]) -> Piece:
    if answer.object not in kinds:
        raise Unfaithful(answer.object)
    head: Piece = {"id": answer.id, "object": kinds[answer.object], "created": answer.created, "model": answer.model}
    more = {"system_fingerprint": answer.system_fingerprint, "service_tier": answer.service_tier}
    return head | {name: value for name, value in more.items() if value is not None}


def _whole(chunks: list[_Answer], usage: msgspec.Raw) -> Piece:
    if len({(chunk.id, chunk.model, chunk.object) for chunk in chunks}) != 1:
        raise Unfaithful("chunks of several answers")
    choices: dict[int, list[_Choice]] = {}
    head: Piece = {}
    for chunk in chunks:
        head = _head(chunk, KINDS) | head
        usage = usage if bytes(chunk.usage) == b"null" else chunk.usage
        for choice in chunk.choices:
            choices.setdefault(choice.index, []).append(choice)
    if bytes(usage) == b"null" or not choices:
        raise Unfaithful("nothing told")
    return head | {"choices": [_joined(index, choices[index]) for index in sorted(choices)], "usage": usage}


def _joined(index: int, pieces: list[_Choice]) -> Piece:
    """One choice, joined from its pieces; exactly one of them must have a finish_reason."""
    ends = [piece for piece in pieces if piece.finish_reason]
    deltas = [piece.delta for piece in pieces if piece.delta]
    if len(ends) != 1 or (deltas and any(piece.text is not None for piece in pieces)):
        raise Unfaithful("an end is missing")
    said: Piece = {"message": _message(deltas)} if deltas else {"text": "".join(piece.text or "" for piece in pieces)}
    return {"index": index} | said | {"logprobs": _logprobs(pieces)} | _end(ends[0])


def _message(deltas: list[_Said]) -> Piece:
    texts = {name: "".join([getattr(delta, name) or "" for delta in deltas]) for name in TEXTS}
    calls = _calls([call for delta in deltas for call in delta.tool_calls or ()])
    role = next((delta.role for delta in deltas if delta.role), "assistant")
    content = texts.pop("content") or (None if calls or any(texts.values()) else "")
    message = {"role": role, "content": content, **{name: text for name, text in texts.items() if text}}
    return message | ({"tool_calls": calls} if calls else {})


def _calls(pieces: list[_Call]) -> list[Piece]:
    found: dict[int, dict[str, str]] = {}
    for piece in pieces:
        if piece.index is None:
            raise Unfaithful("a tool call without an index")
        call = found.setdefault(piece.index, {"id": "", "type": "", "name": "", "arguments": ""})
        call["arguments"] += piece.function.arguments or ""
        given = {"id": piece.id, "type": piece.type, "name": piece.function.name}
        call |= {name: _same(call[name], said) for name, said in given.items() if said}
    return [_call(found[index]) for index in sorted(found)]


def _same(known: str, said: str) -> str:
    if known not in ("", said):
        raise Unfaithful("a tool call changes its name")
    return said


def _call(said: dict[str, str]) -> Piece:
    if not said["id"] or not said["name"]:
        raise Unfaithful("a tool call without a name")
    function = {"name": said["name"], "arguments": said["arguments"]}
    return {"id": said["id"], "type": said["type"] or "function", "function": function}


def _logprobs(pieces: list[_Choice]) -> Piece | None:
    told = [piece.logprobs for piece in pieces if piece.logprobs]
    content = [token for one in told for token in one.content or ()]
    refusal = [token for one in told for token in one.refusal or ()]
    return {name: some for name, some in (("content", content), ("refusal", refusal)) if some} or None


def _end(choice: _Choice) -> Piece:
    reason = {} if choice.stop_reason is None else {"stop_reason": choice.stop_reason}
    return {"finish_reason": choice.finish_reason} | reason


def _pieces(choice: _Choice) -> Iterator[Piece]:
    """A choice's chunks; its log-probabilities come with its last text."""
    end, logprobs = _end(choice), _logprobs([choice])
    if not choice.finish_reason or (choice.message is None) == (choice.text is None):
        raise Unfaithful("an end is missing")
    if not choice.message:
        yield {"index": choice.index, "text": choice.text, "logprobs": logprobs} | end
        return
    deltas = _deltas(choice.message)
    worded = max((at for at, delta in enumerate(deltas) if at and "tool_calls" not in delta), default=None)
    for at, delta in enumerate(deltas):
        told = logprobs if at == worded else None
        yield {"index": choice.index, "delta": delta, "logprobs": told, "finish_reason": None}
    yield {"index": choice.index, "delta": {}, "logprobs": logprobs if worded is None else None} | end


def _deltas(message: _Said) -> list[Piece]:
    first: Piece = {"role": message.role or "assistant", "content": ""}
    texts = [{name: text} for name in TEXTS if (text := getattr(message, name))]
    calls = []
    for at, call in enumerate(message.tool_calls or ()):
        function = {"name": call.function.name or "", "arguments": call.function.arguments or ""}
        named = _call({"id": call.id or "", "type": call.type or "", **function})
        calls.append({"tool_calls": [{"index": at} | named]})
    return [first, *texts, *calls]
