"""What has an answer said so far, and how likely were its tokens?   And the answer without its log-probabilities."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from gateway.errors import UNREADABLE
from gateway.sse import data_of, events_of

Logprob = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]  # means of what is beyond can overflow


class _Top(msgspec.Struct):
    logprob: Logprob


class _Token(msgspec.Struct):
    logprob: Logprob
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    """`content` in chat; the two others are lists by token in text completions."""

    content: list[_Token] | None = None
    token_logprobs: list[Logprob | None] | None = None
    top_logprobs: list[dict[str, Logprob] | None] | None = None


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None


class _Probed(msgspec.Struct):
    logprobs: msgspec.Raw = msgspec.Raw(b"null")


class _Told(msgspec.Struct):
    choices: list[_Probed] = []


_KEY = re.compile(rb'"logprobs"\s*:\s*')
_ANSWER, _TOLD = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Told)


@dataclass(slots=True)
class Start:
    """What an answer of one choice has said so far. `finish` is why it ended, "" while it goes on, "end" when it ended
    without a reason. `tokens` are counted by their log-probabilities, else one for each event that says something.
    """

    text: str = ""
    tokens: int = 0
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    refused: bool = False
    called: bool = False
    failed: bool = False
    finish: str = ""

    def see(self, piece: bytes, stream: bool) -> None:
        """Add whole events, or a JSON answer; b"" is the end. What cannot be read is ignored."""
        if not piece:
            self.finish = self.finish or "end"
        for data in map(data_of, events_of(piece)) if stream else [piece]:
            try:
                self._note(_ANSWER.decode(data))
            except UNREADABLE:
                continue

    def _note(self, answer: _Answer) -> None:
        self.failed = self.failed or bool(answer.error)
        for choice in answer.choices:
            said = choice.delta or choice.message or _Said(choice.text)
            self.text += said.content or ""
            self.refused = self.refused or bool(said.refusal) or choice.finish_reason == "content_filter"
            self.called = self.called or bool(said.tool_calls)
            self.finish = choice.finish_reason or self.finish
            known = _figures(choice.logprobs) if choice.logprobs else []
            spoken = said.content or said.refusal or said.reasoning or said.reasoning_content or said.tool_calls
            self.tokens += len(known) or bool(spoken)
            self.logprobs += [logprob for logprob, _ in known]
            self.margins += [margin for _, margin in known if margin is not None]


def _figures(told: _Logprobs) -> list[tuple[float, float | None]]:
    """Of each token its log-probability, and by how much the likeliest alternative leads the second; None: not told."""
    if told.content is not None:
        return [(token.logprob, _lead([top.logprob for top in token.top_logprobs or ()])) for token in told.content]
    own = told.token_logprobs or []
    tops = told.top_logprobs or [None] * len(own)
    pairs = zip(own, tops, strict=False)
    return [(logprob, _lead(list((top or {}).values()))) for logprob, top in pairs if logprob is not None]


def _lead(tops: list[float]) -> float | None:
    first, second, *_ = (*sorted(tops, reverse=True), None, None)
    return None if first is None or second is None else first - second


def unprobed(piece: bytes, stream: bool) -> bytes:
    """The piece with null in place of log-probabilities, as a server writes it that was not asked for them. All other
    bytes stay as they are."""
    if b'"logprobs"' not in piece:
        return piece
    return b"".join(map(_without, events_of(piece))) if stream else _without(piece)


def _without(event: bytes) -> bytes:
    try:
        told = _TOLD.decode(data_of(event) or event)
    except UNREADABLE:
        return event
    parts, done, keys = [], 0, _KEY.finditer(event)
    for value in [bytes(choice.logprobs) for choice in told.choices]:
        # Inside of a string its quotes would be escaped: the value stands nowhere else behind this key.
        ends = (key.end() for key in keys if event.startswith(value, key.end()))
        if value != b"null" and (at := next(ends, 0)):
            parts += [event[done:at], b"null"]
            done = at + len(value)
    return b"".join([*parts, event[done:]])
