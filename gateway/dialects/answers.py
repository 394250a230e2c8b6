"""How does each dialect answer: what ends a stream, what was used, how is an error told?"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec

from gateway import sse
from gateway.errors import Refusal

MOST_TOKENS = 1 << 25  # of one answer, and of one prompt: a token is at least a byte, and bodies have 32 MB by default
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
_encode = msgspec.json.encode
# How vLLM and SGLang end an answer when they stop or go to sleep; all else is as ever, with the last event (vLLM issue
# 57082). As messages vLLM has no word for it: their stop_reason is null.
_ABORTED = re.compile(rb'"finish_reason"\s*:\s*"abort"')
_ENDED = re.compile(rb'"(?:finish|stop)_reason"\s*:\s*"')


class _Cached(msgspec.Struct):
    cached_tokens: Tokens | None = None


class Counted(msgspec.Struct):
    """A usage object, OpenAI's or Anthropic's. One with a count that no answer can have counts nothing, and the ledger
    has an estimate: a negative one would give a caller money back, a huge one take a budget at once."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    prompt_tokens_details: _Cached | None = None
    prompt_cache_hit_tokens: Tokens | None = None  # DeepSeek's own API says it so
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    input_tokens_details: _Cached | None = None
    cache_read_input_tokens: Tokens | None = None  # Anthropic's: input_tokens is what is left without these two
    cache_creation_input_tokens: Tokens | None = None

    def counts(self) -> tuple[int | None, int | None, int | None]:
        """Of the prompt, the part of it that was cached, and the completion."""
        prompt, made = self.prompt_tokens, self.completion_tokens
        if prompt is None and self.input_tokens is not None:
            prompt = self.input_tokens + (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        if made is None:
            made = self.output_tokens
        if made is None and self.prompt_tokens is not None and self.total_tokens is not None:
            # Embeddings tell a prompt and the same number as the total.
            made = max(0, self.total_tokens - self.prompt_tokens)
        if details := self.prompt_tokens_details or self.input_tokens_details:
            return prompt, details.cached_tokens, made
        read = self.cache_read_input_tokens
        return prompt, self.prompt_cache_hit_tokens if read is None else read, made


class Whole(msgspec.Struct):
    """What we look at in a JSON answer, or in a chunk of chat. `usage` is its JSON, empty where it has none."""

    usage: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()
    stop_reason: Any = ""
    error: Any = None

    def given_up(self, data: bytes) -> bool:
        """Whether the server stopped before the answer's end; `data`: the answer."""
        return self.stop_reason is None or (data.find(b'"abort"') >= 0 and _ABORTED.search(self.choices) is not None)


class Seen(msgspec.Struct):
    """What we look at in one event's data. Only chat tells a usage without choices."""

    type: Any = None
    usage: Any = None
    choices: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None
    delta: Any = None
    message: Any = None
    response: Any = None

    def inner(self, name: str) -> Any:
        """A member of the whole message or response that an event carries."""
        whole = self.message if isinstance(self.message, dict) else self.response
        return whole.get(name) if isinstance(whole, dict) else None

    def used(self) -> Any:
        """The usage object, if any."""
        return self.usage or self.inner("usage")

    def wrong(self) -> Any:
        """What the server says went wrong, None for nothing."""
        return self.error or self.inner("error") or (self.type if self.type == "error" else None)

    def given_up(self) -> bool:
        """As of Whole."""
        ended = self.delta if isinstance(self.delta, dict) else {}
        return ended.get("stop_reason", "") is None or _ABORTED.search(self.choices) is not None


@dataclass(frozen=True, slots=True)
class Answers:
    """The form of a dialect's answers.

    `holds`: bytes that every whole answer contains; `why`: what stands before the reason for its end. `ends`: the types
    of the events that end a stream; empty: `[DONE]` does. `marks`: only events with one of these are parsed. `error`: a
    refusal as the body of an answer; `broken`: as the event that ends a stream, after so many events. `text`: what
    stands before the string in which most events differ. `usage_on_request`: a stream has usage only if the request
    asks for it. `id_name`: the header of the request's id that its SDKs read, besides x-request-id.
    """

    holds: bytes
    ends: frozenset[str]
    marks: tuple[bytes, ...]
    error: Callable[[Refusal], bytes]
    broken: Callable[[Refusal, int], bytes]
    text: bytes = b'"text":"'
    usage_on_request: bool = False
    id_name: bytes = b""
    why: bytes = b""

    def ended(self, data: bytes) -> bool:
        """Whether an answer came to its end: the last reason that it gives is one, where its dialect has such."""
        return _ENDED.match(data, data.rfind(self.why)) is not None if self.why else data.find(self.holds) >= 0


# By status; https://docs.anthropic.com/en/api/errors. Others are invalid_request_error, or api_error from 500 on.
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _anthropic(refusal: Refusal) -> bytes:
    kind = _KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
    error = {"type": kind, "message": refusal.told()["message"]}
    return _encode({"type": "error", "error": error})


def _responses_broken(refusal: Refusal, events: int) -> bytes:
    """The event as documented; `error` beside it is what OpenAI's own server sends, and what its SDK raises for."""
    error = refusal.told()
    told = {"type": "error", "sequence_number": events, "code": error["code"], "message": error["message"]}
    return sse.named_event("error", _encode({**told, "param": error["param"], "error": error}))


CHUNKS = Answers(
    b'"choices"',
    frozenset(),
    (sse.DONE, b'"usage"', b'"error"', b'"abort"'),
    Refusal.body,
    lambda refusal, _: sse.event(refusal.body()),
    b'"content":"',
    usage_on_request=True,
    why=b'"finish_reason"',
)
MESSAGES = Answers(
    b'"stop_reason"',
    frozenset({"message_stop"}),
    (b'"usage"', b'"error"', b'"message_stop"'),
    _anthropic,
    lambda refusal, _: sse.named_event("error", _anthropic(refusal)),
    id_name=b"request-id",
    why=b'"stop_reason"',
)
EMBEDDINGS, COUNTS = replace(CHUNKS, holds=b'"data"', why=b""), replace(MESSAGES, holds=b'"input_tokens"', why=b"")
RESPONSES = Answers(
    b'"output"',
    frozenset({"response.completed", "response.incomplete", "response.failed"}),
    (b'"usage"', b'"error"', b'"response.completed"', b'"response.incomplete"', b'"response.failed"'),
    Refusal.body,
    _responses_broken,
)
