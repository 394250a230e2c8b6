"""Which JSON objects does vLLM answer with?"""

import math
import time
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from backends.sim.likelihood import echoed, offsets, scored
from backends.sim.plan import Step
from backends.sim.prompt import completion_texts
from backends.sim.protocol import JSON, ChatRequest, Request
from backends.sim.settings import Settings

_FIELDS = {"reasoning": ("reasoning",), "reasoning_content": ("reasoning_content",),
           "both": ("reasoning", "reasoning_content")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """What all objects of one reply have in common, and which optional parts they have."""

    id: str
    model: str
    chat: bool
    created: int
    reasoning: tuple[str, ...]  # names of the fields with the reasoning
    top: int | None  # the number of top_logprobs; None: no logprobs
    ends: bool  # streams end with [DONE]
    echoes: bool = False  # `echo`
    scores: bool = False  # `prompt_logprobs`
    prompts: tuple[str, ...] = ()  # each choice's prompt, in text completions

    def envelope(self, streamed: bool) -> JSON:
        """id, object, created, model."""
        kind = "chat.completion" if self.chat else "text_completion"
        kind += ".chunk" if streamed and self.chat else ""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def shape(request: Request, settings: Settings, request_id: str, logprobs: bool) -> Shape:
    """The shape of the reply to `request`."""
    chat = isinstance(request, ChatRequest)
    prefix = "chatcmpl" if chat else "cmpl"
    top = (request.top_logprobs or 0) if isinstance(request, ChatRequest) else request.logprobs
    asked = bool(request.logprobs) if isinstance(request, ChatRequest) else request.logprobs is not None
    made = Shape(
        f"{prefix}-{request_id}", request.model or settings.model, chat, int(time.time()),
        _FIELDS[settings.reasoning_field], top if asked and logprobs else None,
        settings.engine != "transformers",
    )  # fmt: skip
    if isinstance(request, ChatRequest):
        return made
    prompts = (text for text in completion_texts(request) for _ in range(request.n or 1))
    scores = request.prompt_logprobs is not None and logprobs
    return replace(made, echoes=bool(request.echo), scores=scores, prompts=tuple(prompts))


def new_id() -> str:
    """A request id as vLLM makes them."""
    return uuid4().hex


def usage(prompt: int, completion: int, cached: int) -> JSON:
    """The usage object; `cached_tokens` as with --enable-prompt-tokens-details."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip


def role_delta() -> JSON:
    """The first delta of a choice."""
    return {"role": "assistant", "content": ""}


def delta(step: Step, shaped: Shape) -> JSON | str:
    """The delta for one token, or its text in a text completion."""
    if not shaped.chat:
        return step.text
    if step.kind == "reasoning":
        return dict.fromkeys(shaped.reasoning, step.text)
    if step.kind in ("content", "refusal"):
        return {step.kind: step.text}
    if step.call is None:
        return {"tool_calls": [{"index": 0, "function": {"arguments": step.text}}]}
    function = {"name": step.call["name"], "arguments": ""}
    return {"tool_calls": [{"id": step.call["id"], "type": "function", "index": 0, "function": function}]}


def chunk(shaped: Shape, index: int, body: JSON | str, step: Step | None) -> JSON:
    """One chunk of a stream for one choice, without a finish_reason; `body`: a chat delta or completion text."""
    logprobs = None if step is None or shaped.top is None else logprob_content([step], shaped)
    choice = {"index": index, "delta" if shaped.chat else "text": body, "logprobs": logprobs, "finish_reason": None}
    return {**shaped.envelope(True), "choices": [choice]}


def logprob_content(steps: list[Step], shaped: Shape) -> JSON:
    """Logprobs in the chat or the completions form."""
    if shaped.chat:
        return {"content": [_chat_logprob(step, shaped.top or 0) for step in steps]}
    texts = [step.text for step in steps]
    tops = [dict(_ranked(step, shaped.top or 0)) for step in steps]
    return {"text_offset": offsets(texts), "token_logprobs": [math.log(s.p) for s in steps], "tokens": texts,
            "top_logprobs": tops}  # fmt: skip


def _ranked(step: Step, top: int) -> list[tuple[str, float]]:
    """The `top` likeliest tokens with their logprobs; beyond the plan's own, filler tokens share the rest."""
    known = sorted(((step.text, step.p), *step.others), key=lambda pair: -pair[1])
    left = max(1e-9, 1.0 - sum(p for _, p in known))
    filler = [(text, left / 2 ** (i + 1)) for i, text in enumerate(_FILLER) if text not in dict(known)]
    return [(text, math.log(max(p, 1e-30))) for text, p in sorted([*known, *filler], key=lambda pair: -pair[1])[:top]]


_FILLER = (" the", ",", " a", ".", " of", " and", " to", " in", "\n", " is", " that", " for", " it", ":", " as", " on",
           " with", "-", " or", " be", "(")  # fmt: skip


def _chat_logprob(step: Step, top: int) -> JSON:
    own = _logprob(step.text, math.log(step.p))
    return {**own, "top_logprobs": [_logprob(text, value) for text, value in _ranked(step, top)]}


def _logprob(text: str, value: float) -> JSON:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def choice(shaped: Shape, index: int, steps: list[Step], finish: str, stop: str | None) -> JSON:
    """One choice of a non-streamed reply."""
    logprobs = logprob_content([s for s in steps if s.kind != "tool"], shaped) if shaped.top is not None else None
    common = {"index": index, "logprobs": logprobs, "finish_reason": finish, "stop_reason": stop}
    if not shaped.chat:
        told: JSON = {**common, "text": "".join(step.text for step in steps)}
        told |= {"prompt_logprobs": scored(shaped.prompts[index], shaped.model)} if shaped.scores else {}
        return echoed(told, shaped.prompts[index], shaped.model) if shaped.echoes else told
    return {**common, "message": _message(shaped, steps)}


def _message(shaped: Shape, steps: list[Step]) -> JSON:
    thought = _text(steps, "reasoning")
    message: dict[str, Any] = {
        "role": "assistant",
        "content": _text(steps, "content"),
        "refusal": _text(steps, "refusal"),
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    calls = _calls(steps)
    return message | ({"tool_calls": calls} if calls else {}) | dict.fromkeys(shaped.reasoning, thought)


def _text(steps: list[Step], kind: str) -> str | None:
    return "".join(step.text for step in steps if step.kind == kind) or None


def _calls(steps: list[Step]) -> list[JSON]:
    said = _text(steps, "tool") or ""
    return [{"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": said}}
            for call in (step.call for step in steps) if call]  # fmt: skip
