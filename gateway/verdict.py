"""What did the small model say?   A verdict from a whole answer, or from a stream as soon as the label stands."""

import math
import re
from collections.abc import Callable
from functools import partial

import msgspec

from gateway.types import Label, Verdict

LABELS: tuple[Label, Label] = ("simple", "complex")
CERTAIN = 0.999  # a probability read from a few top tokens is never surer than this
BLANK = ' \t\r\n"`'
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")
_VALUE = re.compile(r'"complexity"\s*:\s*"?')
_STANDS = re.compile(r'\s*(?:```(?:json)?\s*)?\{\s*"complexity"\s*:\s*"(?:simple|complex)"?\s*\}?')
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Top(msgspec.Struct):
    token: str
    logprob: float


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None  # of a whole answer
    delta: _Message | None = None  # of a stream's chunk
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"null")  # read apart: odd ones must not cost the label


class _Answer(msgspec.Struct):
    choices: list[_Choice]


_ANSWER = msgspec.json.Decoder(_Answer)
_LOGPROBS = msgspec.json.Decoder(_Logprobs | None)


class Said:
    """What the model has said so far. Feed it chat completions or their chunks, then ask for the verdict."""

    def __init__(self) -> None:
        self._texts = {"content": "", "reasoning_content": "", "reasoning": ""}
        self._tokens: list[_Token] = []
        self._odd = False
        self._finish: str | None = None

    def add(self, data: bytes) -> None:
        """One JSON object: a whole answer or a chunk. What cannot be read says nothing."""
        try:
            choices = _ANSWER.decode(data).choices
        except _UNREADABLE:
            return
        for choice in choices[:1]:
            said = choice.message or choice.delta or _Message()
            for name in self._texts:
                self._texts[name] += getattr(said, name) or ""
            self._finish = choice.finish_reason or self._finish
            self._add_tokens(choice.logprobs)

    def _add_tokens(self, raw: msgspec.Raw) -> None:
        try:
            logprobs = _LOGPROBS.decode(raw)
        except _UNREADABLE:
            self._odd = True
        else:
            self._tokens += (logprobs.content if logprobs else None) or []

    @property
    def stands(self) -> bool:
        """The JSON has come to the end of its label: nothing that follows can change the verdict."""
        return _STANDS.fullmatch(self._texts["content"]) is not None

    def verdict(self) -> Verdict:
        """From `content` or the reasoning field, bare or fenced."""
        text = self._texts["content"]
        if self.stands and "}" not in text:
            text = text.rstrip().removesuffix('"') + '"}'
        for said in (text, self._texts["reasoning_content"], self._texts["reasoning"]):
            if label := _label(said):
                return Verdict(label, None if self._odd else _p_complex(self._tokens))
        return Verdict(None, None, "truncated" if self._finish == "length" else "parse")


def _label(text: str) -> Label | None:
    """The label in {"complexity": label} or a bare word; None for anything else."""
    text = _FENCE.sub("", text.strip())
    word: object = text.strip('"')
    if text.startswith("{"):
        try:
            word = msgspec.json.decode(text).get("complexity")
        except (msgspec.DecodeError, RecursionError):
            return None
    return next((label for label in LABELS if isinstance(word, str) and word.lower() == label), None)


def _p_complex(tokens: list[_Token]) -> float | None:
    """P(complex) over the two labels, at the token where the label begins; None without usable logprobs."""
    text = "".join(token.token for token in tokens)
    start = _value_at(text)
    begin = len(text) - len(text.lstrip(BLANK)) if start is None else start
    before = ""
    for token in tokens:
        if len(before) + len(token.token) > begin:
            return _share(token, partial(_begun, before, start is not None))
        before += token.token
    return None


def _value_at(text: str) -> int | None:
    """Where the last value of "complexity" begins; None in a text without one."""
    return max((found.end() for found in _VALUE.finditer(text)), default=None)


def _begun(before: str, in_json: bool, token: str) -> Label | None:
    """The label that a text of `before` and `token` ends with, or has begun to spell."""
    start = _value_at(before + token)
    if in_json and start is None:
        return None
    word = (before + token)[start or 0 :].lstrip(BLANK).lower()
    spelled = (label for label in LABELS if word and (label.startswith(word) or re.match(rf"{label}(?![a-z])", word)))
    return next(spelled, None)


def _share(token: _Token, begun: Callable[[str], Label | None]) -> float | None:
    """Complex's share of the two labels' probability; None when neither is among the likeliest tokens."""
    p = {top.token: math.exp(min(top.logprob, 0.0)) for top in (token, *(token.top_logprobs or ()))}
    mass = {label: sum(p[text] for text in p if begun(text) == label) for label in LABELS}
    label = begun(token.token)
    if not token.top_logprobs and label:
        mass = {other: mass[label] if other == label else 1 - mass[label] for other in LABELS}
    elif not any(begun(top.token) for top in token.top_logprobs or ()):
        return None
    total = sum(mass.values())
    return min(max(mass["complex"] / total, 1 - CERTAIN), CERTAIN) if total else None
