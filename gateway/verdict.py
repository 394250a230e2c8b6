"""What did the classifier say?   Reads a verdict from a whole answer, or from a stream as soon as its label is
complete."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from gateway.errors import UNREADABLE
from gateway.policy import Prompt
from gateway.types import Label, Verdict

CERTAIN = 0.999  # highest p, and 1 - it the lowest: a few top tokens say no more than that
BLANK = ' \t\r\n"`'
SIMPLE, COMPLEX, BOTH = 1, 2, 3  # bit mask: the sides of the labels that a text may still become; 0: none
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")
SIDES: Mapping[Label, int] = {"simple": SIMPLE, "complex": COMPLEX}
Sides = int


# gc=False: what is decoded holds no reference cycles, so the collector need not track it.
class _Top(msgspec.Struct, gc=False):
    token: str
    logprob: float


class _Token(_Top):
    top_logprobs: msgspec.Raw = msgspec.Raw(b"null")  # decoded only where a label begins: they are most of a chunk


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Token] | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None  # of a whole answer
    delta: _Message | None = None  # of a stream's chunk
    finish_reason: str | None = None


class _Likely(_Choice):
    logprobs: _Logprobs | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Likely]


class _Plain(msgspec.Struct, gc=False):
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
_PLAIN = msgspec.json.Decoder(_Plain)
_TOPS = msgspec.json.Decoder(list[_Top] | None)
_DECISIONS = msgspec.json.Decoder(_Decisions)
NOTHING = _Message()


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """How an answer to a prompt gives its label. `labels`: verdicts by word; `begun`: by each prefix of a label, the
    sides that it may become; `member`: the JSON member that holds the label; `value` matches what precedes the label in
    JSON; `standing` matches an answer whose label is complete, which is its group."""

    labels: Mapping[str, Label]
    begun: Mapping[str, Sides]
    member: str
    value: re.Pattern[str]
    standing: re.Pattern[str]


def label_format(prompt: Prompt, bare: bool = False) -> LabelFormat:
    """The LabelFormat of a prompt. `bare`: the answer is a label alone, without JSON around it."""
    begun: dict[str, Sides] = {}
    for label, side in prompt.labels.items():
        for end in range(1, len(label) + 1):
            begun[label[:end]] = begun.get(label[:end], 0) | SIDES[side]
    value = re.compile(rf'"{prompt.answer}"\s*:\s*"?')
    standing = re.compile(_standing(prompt, bare), re.IGNORECASE if bare else 0)
    return LabelFormat(prompt.labels, begun, prompt.answer, value, standing)


class LabelReader:
    """Reads the label from a chat completion or its chunks: `add` each, then ask for the `verdict`.

    `stands`: the label, once nothing that follows can change the verdict.
    """

    __slots__ = ("_content", "_finish", "_form", "_odd", "_reasoning", "_thought", "_tokens", "stands")

    def __init__(self, form: LabelFormat) -> None:
        self._form = form
        self._content = self._reasoning = self._thought = ""
        self._tokens: list[_Token] = []
        self._odd = False
        self._finish: str | None = None
        self.stands: Label | None = None

    def add(self, data: bytes) -> bool:
        """Add one JSON object, a whole answer or a chunk. What cannot be read, or follows the label, is ignored.
        Returns whether what follows can change the verdict."""
        if self.stands:
            return False
        try:
            choices: Sequence[_Choice] = _ANSWER.decode(data).choices
        except UNREADABLE:
            choices = self._plain(data)
        if not choices:
            return True
        choice = choices[0]
        self._finish = choice.finish_reason or self._finish
        if isinstance(choice, _Likely) and choice.logprobs:
            self._tokens += choice.logprobs.content or ()
        said = choice.message or choice.delta or NOTHING
        if said.reasoning_content:
            self._thought += said.reasoning_content
        if said.reasoning:
            self._reasoning += said.reasoning
        if said.content:
            self._content += said.content
            found = self._form.standing.fullmatch(self._content)
            self.stands = self._form.labels.get(found[1].lower()) if found else None
        return not self.stands

    def _plain(self, data: bytes) -> Sequence[_Choice]:
        """Decodes without log-probabilities: malformed ones must not cost the label."""
        try:
            choices = _PLAIN.decode(data).choices
        except UNREADABLE:
            return ()
        self._odd = True
        return choices

    def verdict(self) -> Verdict:
        """The verdict, from the content or else the reasoning fields; JSON may be fenced as Markdown. Without a label
        the reason is empty, truncated or parse."""
        if self.stands:
            return Verdict(self.stands, self._likelihood())
        for said in (self._content, self._thought, self._reasoning):
            if label := self._label(said):
                return Verdict(label, self._likelihood())
        if self._finish and not self._content.strip():
            return Verdict(None, None, "empty")
        return Verdict(None, None, "truncated" if self._finish == "length" else "parse")

    def _label(self, text: str) -> Label | None:
        """The label of {member: label}, or of a bare word; None for anything else, two labels included."""
        text = text.strip()
        if "```" in text:
            text = _FENCE.sub("", text)
        if not text.startswith("{"):
            return self._form.labels.get(text.strip('"').lower())
        try:
            word = msgspec.json.decode(text).get(self._form.member)
        except (msgspec.DecodeError, RecursionError):
            return None
        if len(self._form.value.findall(text)) > 1:
            return None
        return self._form.labels.get(word.lower()) if isinstance(word, str) else None

    def _likelihood(self) -> float | None:
        """P(complex); None without usable logprobs."""
        try:
            return None if self._odd or not self._tokens else self._p_complex()
        except UNREADABLE:
            return None

    def _p_complex(self) -> float | None:
        """P(complex), over the tokens from where the label begins to the first that decides between the two sides; None
        where none does. Raises UNREADABLE."""
        text = "".join([token.token for token in self._tokens])
        start = self._value_at(text)
        begin = len(text) - len(text.lstrip(BLANK)) if start is None else start
        said, way, simple, hard = "", 1.0, 0.0, 0.0
        for token in self._tokens:
            before, said = said, said + token.token
            if len(said) <= begin:
                continue
            begun, shares = self._shares(before, start, token)
            simple, hard = simple + way * shares.get(SIMPLE, 0.0), hard + way * shares.get(COMPLEX, 0.0)
            if begun != BOTH:
                return _share(simple, hard)
            way *= shares.get(BOTH, 0.0)
        return None

    def _value_at(self, text: str) -> int | None:
        """The index at which the label's value in JSON begins, for the last such member; None: there is none."""
        end = None
        for found in self._form.value.finditer(text):
            end = found.end()
        return end

    def _shares(self, before: str, start: int | None, token: _Token) -> tuple[Sides, Mapping[Sides, float]]:
        """The sides that the label may become once `token` follows the text `before`; and the probability of each set
        of sides over all alternatives to the token, normalised to 1, or empty when none of them begins a label.
        `start`: the index of the value in the whole answer, None where the label is a bare word."""
        known = start if start is not None and start <= len(before) else self._value_at(before)
        # If so, a token without a quote cannot move the place where the value begins.
        settled = '"' not in before[known or 0 :] and (known is None or before[known - 1] == '"')
        own, tops, listed = token.token, _TOPS.decode(token.top_logprobs) or (), False
        likely = {own: token.logprob}
        for top in tops:
            likely[top.token] = top.logprob
            listed = listed or top.token == own
        mass: dict[Sides, float] = {}
        begun, named = 0, False  # the sides of the token itself; whether any alternative begins a label
        for text, logprob in likely.items():
            at = known if settled and '"' not in text else self._value_at(before + text)
            word = "" if start is not None and at is None else (before + text)[at or 0 :].lstrip(BLANK).lower()
            sides = _spelled(word, self._form) if word else 0
            if text == own:
                begun = sides
            if sides:
                mass[sides] = mass.get(sides, 0.0) + (math.exp(logprob) if logprob < 0 else 1.0)
                named = named or listed or text != own
        if not tops:
            p = math.exp(min(token.logprob, 0.0))
            return begun, {begun: p, BOTH - begun: 1 - p} if begun in (SIMPLE, COMPLEX) else {begun: 1.0}
        total = sum(mass.values()) if named else 0.0
        return begun, {sides: share / total for sides, share in mass.items()} if total else {}


def decisions_verdict(data: bytes, prompt: Prompt) -> Verdict:
    """The verdict in the answer of a decisions endpoint: one choice question, a probability for each label."""
    try:
        answer = _DECISIONS.decode(data).answers[0]
    except (*UNREADABLE, IndexError):
        return Verdict(None, None, "parse")
    label = prompt.labels.get(answer.choice)
    mass = {"simple": 0.0, "complex": 0.0}
    for option in answer.probabilities:
        if side := prompt.labels.get(option.value):
            mass[side] += max(option.probability, 0.0)
    return Verdict(label, _share(mass["simple"], mass["complex"])) if label else Verdict(None, None, "parse")


def _standing(prompt: Prompt, bare: bool) -> str:
    """The pattern of an answer whose label is complete."""
    label = "|".join(map(re.escape, prompt.labels))
    if bare:
        return rf'\s*"?({label})"?\s*'
    thought = rf'"{prompt.before}"\s*:\s*"(?:[^"\\]|\\.)*"\s*,\s*' if prompt.before else ""
    return rf'\s*(?:```(?:json)?\s*)?\{{\s*{thought}"{prompt.answer}"\s*:\s*"({label})"?\s*\}}?'


def _spelled(word: str, form: LabelFormat) -> Sides:
    """The sides of the labels that a word equals or is a prefix of."""
    begun = form.begun.get(word)
    if begun is not None:
        return begun
    for label in form.labels:
        size = len(label)
        if word[:size] == label and not "a" <= word[size : size + 1] <= "z":
            return form.begun[label]
    return 0


def _share(simple: float, hard: float) -> float | None:
    """Complex's share of the probability of both sides, within CERTAIN; None where there is none."""
    total = simple + hard
    return min(max(hard / total, 1 - CERTAIN), CERTAIN) if total else None
