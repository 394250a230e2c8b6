"""What did the small model say?   A verdict from a whole answer, or from a stream as soon as the label stands."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

import msgspec

from gateway.policy import Prompt
from gateway.types import Label, Verdict

CERTAIN = 0.999  # a probability read from a few top tokens is never surer than this
BLANK = ' \t\r\n"`'
SIMPLE, COMPLEX = (frozenset({label}) for label in get_args(Label))
BOTH = SIMPLE | COMPLEX
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
Sides = frozenset[Label]
Mass = Mapping[Sides, float]


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


class _Option(msgspec.Struct):
    value: str
    probability: float


class _Decision(msgspec.Struct):
    choice: str
    probabilities: list[_Option]


class _Decisions(msgspec.Struct):
    answers: list[_Decision]


_ANSWER = msgspec.json.Decoder(_Answer)
_LOGPROBS = msgspec.json.Decoder(_Logprobs | None)
_DECISIONS = msgspec.json.Decoder(_Decisions)


class Said:
    """What the model has said so far to `prompt`. Feed it chat completions or their chunks, then ask for the verdict.

    `bare`: it was bound to a label and nothing else, so that the label stands without what JSON puts around it.
    """

    def __init__(self, prompt: Prompt, bare: bool = False) -> None:
        self._labels, self._member = prompt.labels, prompt.answer
        self._value = re.compile(rf'"{prompt.answer}"\s*:\s*"?')
        self._stands = re.compile(_standing(prompt, bare), re.IGNORECASE if bare else 0)
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
        """The answer has come to the end of its label: nothing that follows can change the verdict."""
        return self._stands.fullmatch(self._texts["content"]) is not None

    def verdict(self) -> Verdict:
        """From `content` or the reasoning field, bare or fenced."""
        text = self._texts["content"]
        if "{" in text and not text.rstrip().endswith("}") and self.stands:
            text = text.rstrip().removesuffix('"') + '"}'
        for said in (text, self._texts["reasoning_content"], self._texts["reasoning"]):
            if label := self._label(said):
                return Verdict(label, None if self._odd else self._p_complex())
        if self._finish and not text.strip():
            return Verdict(None, None, "empty")
        return Verdict(None, None, "truncated" if self._finish == "length" else "parse")

    def _label(self, text: str) -> Label | None:
        """The label in {member: label} or of a bare word; None for anything else, two labels included."""
        text = _FENCE.sub("", text.strip())
        word: object = text.strip('"')
        if text.startswith("{"):
            try:
                word = msgspec.json.decode(text).get(self._member)
            except (msgspec.DecodeError, RecursionError):
                return None
            if len(self._value.findall(text)) > 1:
                return None
        return self._labels.get(word.lower()) if isinstance(word, str) else None

    def _p_complex(self) -> float | None:
        """P(complex) over the labels, from the token where the label begins to the one that tells the two sides apart;
        None without usable logprobs."""
        text = "".join(token.token for token in self._tokens)
        start = self._value_at(text)
        begin = len(text) - len(text.lstrip(BLANK)) if start is None else start
        before, way, mass = "", 1.0, dict.fromkeys((SIMPLE, COMPLEX), 0.0)
        for token in self._tokens:
            begun = partial(self._begun, before, start is not None)
            before += token.token
            if len(before) <= begin:
                continue
            shares = _shares(token, begun)
            mass = {sides: share + way * shares.get(sides, 0.0) for sides, share in mass.items()}
            if begun(token.token) != BOTH:
                return _share(mass)
            way *= shares.get(BOTH, 0.0)
        return None

    def _value_at(self, text: str) -> int | None:
        """Where the last value of the member begins; None in a text without one."""
        return max((found.end() for found in self._value.finditer(text)), default=None)

    def _begun(self, before: str, in_json: bool, token: str) -> Sides:
        """The sides of the labels that a text of `before` and `token` ends with, or has begun to spell."""
        start = self._value_at(before + token)
        if in_json and start is None:
            return frozenset()
        word = (before + token)[start or 0 :].lstrip(BLANK).lower()
        spelled = (label for label in self._labels if word and _spells(word, label))
        return frozenset(self._labels[label] for label in spelled)


def decided(data: bytes, prompt: Prompt) -> Verdict:
    """The verdict in the answer of a decisions endpoint: one choice question, a probability for each label."""
    try:
        answer = _DECISIONS.decode(data).answers[0]
    except (*_UNREADABLE, IndexError):
        return Verdict(None, None, "parse")
    label = prompt.labels.get(answer.choice)
    mass: dict[Sides, float] = defaultdict(float)
    for option in answer.probabilities:
        if side := prompt.labels.get(option.value):
            mass[frozenset({side})] += max(option.probability, 0.0)
    return Verdict(label, _share(mass)) if label else Verdict(None, None, "parse")


def _standing(prompt: Prompt, bare: bool) -> str:
    """The pattern of an answer that has come to the end of its label."""
    label = "|".join(map(re.escape, prompt.labels))
    if bare:
        return rf'\s*"?(?:{label})"?\s*'
    thought = rf'"{prompt.before}"\s*:\s*"(?:[^"\\]|\\.)*"\s*,\s*' if prompt.before else ""
    return rf'\s*(?:```(?:json)?\s*)?\{{\s*{thought}"{prompt.answer}"\s*:\s*"(?:{label})"?\s*\}}?'


def _spells(word: str, label: str) -> bool:
    return label.startswith(word) or re.match(rf"{label}(?![a-z])", word) is not None


def _shares(token: _Token, begun: Callable[[str], Sides]) -> Mass:
    """How the probability of what may stand in `token`'s place falls to the sides; it adds up to 1, or is empty when
    none of the likeliest tokens begins a label."""
    p = {top.token: math.exp(min(top.logprob, 0.0)) for top in (token, *(token.top_logprobs or ()))}
    own = begun(token.token)
    if not token.top_logprobs:
        rest = {SIMPLE: COMPLEX, COMPLEX: SIMPLE}.get(own)
        return {own: p[token.token], rest: 1 - p[token.token]} if rest else {own: 1.0}
    mass: dict[Sides, float] = defaultdict(float)
    if any(begun(top.token) for top in token.top_logprobs):
        for text, share in p.items():
            mass[begun(text)] += share
    mass.pop(frozenset(), None)
    total = sum(mass.values())
    return {sides: share / total for sides, share in mass.items()} if total else {}


def _share(mass: Mass) -> float | None:
    """Complex's share of what fell to either side."""
    hard = mass.get(COMPLEX, 0.0)
    total = mass.get(SIMPLE, 0.0) + hard
    return min(max(hard / total, 1 - CERTAIN), CERTAIN) if total else None
