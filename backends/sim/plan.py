"""Which tokens will the model generate for a request?   Decided before any is timed."""

import itertools
import json
import random
import re
import zlib
from dataclasses import dataclass, replace
from typing import Any

from backends.sim import schema, text, tools
from backends.sim.constraint import Constraint, constraint
from backends.sim.faults import Fault
from backends.sim.prompt import completion_texts, thinks
from backends.sim.protocol import JSON, ChatRequest, CompletionRequest, Request, content_text
from backends.sim.settings import Settings
from backends.sim.tokens import pieces
from backends.sim.verdict import LABELS, PAIRS, Verdict, judge, question_at, spelled, subject

_LABEL = re.compile(rf'"({"|".join(itertools.chain(*PAIRS))})"')


@dataclass(frozen=True, slots=True)
class Step:
    """One token."""

    kind: str  # content, reasoning, refusal or tool
    text: str
    p: float  # its probability
    others: tuple[tuple[str, float], ...] = ()  # next likely tokens with their probabilities
    call: JSON | None = None  # id and name of a tool call that begins here


@dataclass(frozen=True, slots=True)
class Plan:
    """One choice: its tokens, `finish`: finish_reason, `stop`: the stop string that ended it."""

    steps: tuple[Step, ...]
    finish: str
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What planning needs to know of a request: its constraint on the output, whether it is a triage request and its
    verdict then, `hardness` (0 to 1: the probability of complex), `last`: the last user message, `words`: the labels
    for simple and complex."""

    constraint: Constraint
    triage: bool = False
    verdict: Verdict | None = None
    thinking: bool = False
    hardness: float = 0.0
    last: str = ""
    words: tuple[str, str] = LABELS


def asked(request: Request, settings: Settings) -> Asked:
    """Analyses the request. Raises RequestError on an invalid constraint."""
    bound = constraint(request)
    if isinstance(request, CompletionRequest):
        prompt = "\n".join(completion_texts(request))
        return Asked(bound, last=prompt, hardness=judge([{"role": "user", "content": prompt}], False).p_complex)
    thinking = thinks(request, settings.default_thinking)
    said = [m for m in request.messages if m["role"] == "user"] or request.messages
    question = question_at(request, bound.labels)
    if question is None:
        judged = judge(request.messages, obedient=False)
        return Asked(bound, thinking=thinking, hardness=judged.p_complex, last=content_text(said[-1]))
    judged = judge(subject(request.messages, question, whole=settings.obedient), settings.obedient)
    words = spelled(request, bound.labels)
    return Asked(bound, True, judged, thinking, 0.0, content_text(said[-1]), words)


def plans(request: Request, known: Asked, settings: Settings, fault: Fault) -> list[Plan]:
    """One plan for each prompt and each of its `n` choices. Deterministic: the same request gives the same plans."""
    if isinstance(request, ChatRequest):
        heads: list[tuple[object, Asked]] = [(request.messages, known)]
    else:
        heads = [(text, replace(known, last=text)) for text in completion_texts(request)]
    made: list[Plan] = []
    for head, about in heads:
        seed = zlib.crc32(repr((head, settings.seed, request.seed, settings.model)).encode("utf-8", "replace"))
        chances = [random.Random(seed + choice) for choice in range(request.n or 1)]
        made += [_bounded(_plan(request, about, settings, fault, chance), request) for chance in chances]
    return made


def _plan(request: Request, known: Asked, settings: Settings, fault: Fault, rng: random.Random) -> Plan:
    steps: list[Step] = []
    if isinstance(request, ChatRequest):
        if known.thinking:
            steps += _thinking(request, known, rng)
        call = None if known.triage else tools.call(request, rng)
        if call:
            steps += [Step("tool", "", 0.99, call=call), *spell("tool", call["arguments"], rng)]
            return Plan(tuple(steps), tools.finish(request))
    bound = Constraint() if fault.ignore_response_format else known.constraint
    if known.verdict:
        steps += _verdict_steps(known.verdict, known, fault.ignore_response_format, rng)
    else:
        steps += spell("content", _content(request, known, bound, settings, rng), rng)
    plan = Plan(tuple(steps), "stop")
    if fault.weak:
        return _weakened(plan, fault.weak, rng)
    return _spoiled(plan, fault.verdict, rng) if known.triage and fault.verdict else plan


def _thinking(request: ChatRequest, known: Asked, rng: random.Random) -> list[Step]:
    steps = spell("reasoning", text.thought(known.last, known.hardness, rng), rng)
    budget = request.thinking_token_budget
    return steps if budget is None else steps[:budget]


def _content(request: Request, known: Asked, bound: Constraint, settings: Settings, rng: random.Random) -> str:
    words = text.keywords(known.last)
    if bound.choices:
        return rng.choice(bound.choices)
    if bound.schema is not None:
        return dump(schema.fit(bound.schema, rng, words))
    if isinstance(request, ChatRequest) and request.messages[-1]["role"] in ("tool", "function"):
        return text.told(content_text(request.messages[-1]), settings.model)
    return text.answer(known.last, settings.model, known.hardness, rng)


def _verdict_steps(judged: Verdict, known: Asked, free: bool, rng: random.Random) -> list[Step]:
    """The tokens of the label, bare or in a JSON object; its first token has the verdict's probability.

    `free`: as from a server that does not enforce the constraint: in a sentence, or JSON with spaces.
    """
    bound, hard = known.constraint, judged.label == LABELS[1]
    word, other = known.words[hard], known.words[not hard]
    p = judged.p_complex if hard else 1.0 - judged.p_complex
    if bound.choices:
        written = f"I would call this {word}." if free else word
    else:
        value = schema.fit(bound.schema, rng, ["surface", "features"]) if bound.schema else {}
        name = schema.label_field(bound.schema, known.words) or _member(known, word)
        value = {**value, name: word} if isinstance(value, dict) else word
        written = json.dumps(value) if free else dump(value)
    steps = spell("content", written, rng, sure=not free)
    quoted = written.rfind(f'"{word}"')
    at = _value_at(steps, quoted + 1 if quoted >= 0 else written.find(word))
    steps[at] = replace(steps[at], p=p * 0.998, others=((pieces(other)[0], (1.0 - p) * 0.998),))
    return steps


def _member(known: Asked, word: str) -> str:
    """The name of the JSON member for the label in the question's text."""
    found = re.search(rf'"(\w+)":"{word}"', known.last)
    return found[1] if found else "complexity"


def _value_at(steps: list[Step], character: int) -> int:
    """Index of the step whose text has the character at that offset of the whole text."""
    ends = itertools.accumulate(len(step.text) for step in steps)
    return next(i for i, end in enumerate(ends) if end > character)


def spell(kind: str, written: str, rng: random.Random, sure: bool = False) -> list[Step]:
    """`written` as tokens of a kind, with random probabilities; `sure`: with 0.999, as under a grammar."""
    steps = []
    for piece in pieces(written):
        p = 0.999 if sure else 0.55 + 0.44 * rng.random()
        steps.append(Step(kind, piece, p))
    return steps


def dump(value: Any) -> str:
    """Compact JSON, as generated under xgrammar without whitespace."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _spoiled(plan: Plan, how: str, rng: random.Random) -> Plan:
    """The triage answer with the verdict fault `how` (faults.py)."""
    said = "".join(step.text for step in plan.steps if step.kind == "content")
    if how == "garbage":
        return Plan(tuple(spell("content", "Sure! It depends on many things, really", rng)), "stop")
    if how == "truncated":
        return Plan(tuple(spell("content", said[: max(1, len(said) // 2)], rng)), "length")
    if how == "wrong_label":
        wrong = _LABEL.sub('"medium"', said) if "{" in said else "medium"
        return Plan(tuple(spell("content", wrong, rng)), "stop")
    if how == "fenced":
        return Plan(tuple(spell("content", f"```json\n{said}\n```", rng)), "stop")
    if how == "reasoning":
        return Plan(tuple(replace(step, kind="reasoning") for step in plan.steps), "stop")
    return Plan(tuple(spell("reasoning", "The question is how hard", rng)), "length") if how == "null" else plan


def _weakened(plan: Plan, how: str, rng: random.Random) -> Plan:
    """The answer with the weakness `how` (faults.py)."""
    if how == "unsure":
        others = tuple((mark, 0.14) for mark in "?!.,;:")
        return replace(plan, steps=tuple(replace(step, p=0.15, others=others) for step in plan.steps))
    if how == "loop":
        return Plan(plan.steps[:2] + tuple(spell("content", " I think that" * 60, rng)), "length")
    if how == "refusal":
        return Plan(tuple(spell("refusal", "This is refused by the model itself.", rng)), "stop")
    if how == "filter":
        return Plan(plan.steps[:2], "content_filter")
    return Plan(tuple(spell("content", "I'm sorry, but I cannot do that." if how == "sorry" else "", rng)), "stop")


def _bounded(plan: Plan, request: Request) -> Plan:
    """The plan cut at the first stop string in its content, then at the token limit; padded under `ignore_eos`."""
    steps, finish, hit = plan.steps, plan.finish, None
    visible = "".join(step.text for step in steps if step.kind == "content")
    ends = [(visible.find(stop), stop) for stop in request.stops() if stop in visible]
    if ends:
        at, hit = min(ends)
        steps, finish = tuple(_until(steps, at)), "stop"
    limit = request.limit()
    steps = steps or (Step("content", "", 0.9),)
    if limit is not None and request.ignore_eos:
        steps = tuple(itertools.islice(itertools.chain(steps, itertools.cycle(steps[-50:])), limit + 1))
    if limit is not None and len(steps) > limit:
        return Plan(steps[:limit], "length")
    return Plan(steps, finish, hit)


def _until(steps: tuple[Step, ...], characters: int) -> list[Step]:
    kept, left = [], characters
    for step in steps:
        if step.kind != "content":
            kept.append(step)
            continue
        if left > 0:
            kept.append(replace(step, text=step.text[:left]))
        left -= len(step.text)
    return kept
