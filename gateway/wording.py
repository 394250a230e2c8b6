"""What has an answer said so far, and how likely were its tokens?"""

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


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    function: _Function | None = None


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"null")
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None


_ANSWER, _LOGPROBS = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Logprobs | None)


@dataclass(slots=True)
class Wording:
    """What an answer of one choice has said so far, without its thoughts; `thought`: there were some. `tokens` are
    counted by their log-probabilities, else one for each event that says something. `calls`: name and arguments of
    each, by its place. `finish` is why it ended, "" while it goes on, "end" when it ended without a reason.
    """

    text: str = ""
    tokens: int = 0
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    refused: bool = False
    thought: bool = False
    calls: dict[int, list[str]] = field(default_factory=dict)
    failed: bool = False
    finish: str = ""

    @property
    def whole(self) -> bool:
        """It ended, and not at its longest."""
        return self.finish not in ("", "end", "length")

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
            self.finish = choice.finish_reason or self.finish
            for at, call in enumerate(said.tool_calls or ()):
                self._call(call.index if choice.delta else at, call.function or _Function())
            known = _figures(choice.logprobs)
            self.thought = self.thought or bool(said.reasoning or said.reasoning_content)
            spoken = said.content or said.refusal or said.reasoning or said.reasoning_content or said.tool_calls
            self.tokens += len(known) or bool(spoken)
            self.logprobs += [logprob for logprob, _ in known]
            self.margins += [margin for _, margin in known if margin is not None]

    def _call(self, at: int, function: _Function) -> None:
        made = self.calls.setdefault(at, ["", ""])
        made[0] += function.name or ""
        made[1] += function.arguments or ""


def said(data: bytes, stream: bool) -> Wording:
    """What a whole answer says: JSON, or all of its events."""
    found = Wording()
    found.see(data, stream)
    return found


def _figures(logprobs: msgspec.Raw) -> list[tuple[float, float | None]]:
    """Of each token its log-probability, and by how much the likeliest alternative leads the second; None: not told."""
    try:
        told = _LOGPROBS.decode(logprobs) or _Logprobs()
    except UNREADABLE:
        return []
    if told.content is not None:
        return [(token.logprob, _lead([top.logprob for top in token.top_logprobs or ()])) for token in told.content]
    own = told.token_logprobs or []
    tops = told.top_logprobs or [None] * len(own)
    pairs = zip(own, tops, strict=False)
    return [(logprob, _lead(list((top or {}).values()))) for logprob, top in pairs if logprob is not None]


def _lead(tops: list[float]) -> float | None:
    first, second, *_ = (*sorted(tops, reverse=True), None, None)
    return None if first is None or second is None else first - second
