"""Is a policy file right, its own tests included?"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import msgspec

from gateway.dialects import CHAT, TEXT
from gateway.errors import BadRequest, Refusal
from gateway.facts import observe
from gateway.fields import read
from gateway.policy import (
    Bands,
    Document,
    Policy,
    PolicyError,
    PolicyTest,
    Problem,
    Reason,
    StubVerdict,
    TestVerdict,
    build_policy,
    file_text,
    read_document,
)
from gateway.routing import band, first_match, route
from gateway.turns import continues
from gateway.types import Ask, Caller, ChatRequest, Facts, Label, Session, Standing, Verdict

Texts = Mapping[str, str | None]  # of files, by name; None: cannot be read


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of one of a file's own tests. `got`: tier, rule, triaged, reason and band; None: it was refused."""

    name: str
    got: dict[str, Any] | None
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of loading and testing a policy's text: the policy, or what is wrong. `files` were read for it;
    `document` None: it is not YAML.
    """

    policy: Policy | None
    problems: Sequence[Problem]
    files: Texts
    trials: Sequence[Trial] = ()
    document: Document | None = None


def checked(path: Path, env: Mapping[str, str] | None = None) -> Policy:
    """The policy in a file, checked, and its own tests passed. `env` fills its variables, os.environ by default.

    Raises PolicyError; for a failing test it names the line of the expectation that does not hold.
    """
    found = attempted(path, env=env)
    if not found.policy:
        raise PolicyError(found.problems)
    return found.policy


def attempted(
    path: Path,
    text: str | None = None,
    env: Mapping[str, str] | None = None,
    others: Collection[str] | None = None,
    calibration: str | None = None,
) -> Attempt:
    """Loads and tests the file, or `text` in its place; `env` fills its variables, os.environ by default. `others`: the
    files in other folders that it may name, None: any. `calibration`: a text in place of the calibration's file."""
    document: Document | None = None
    try:
        text = file_text(path) if text is None else text
        document = read_document(text, str(path), os.environ if env is None else env)
        document.others, document.calibration = others, calibration
        policy = build_policy(document)
    except PolicyError as error:
        return Attempt(None, error.problems, document.files if document else {str(path): text}, (), document)
    found = trials(policy, document)
    problems = tuple(problem for trial in found for problem in trial.problems)
    return Attempt(None if problems else policy, problems, document.files, found, document)


def trials(policy: Policy, document: Document) -> list[Trial]:
    """Runs the file's own tests, in their order, then those of its candidate."""
    found = [tried(policy, document, at) for at in range(len(policy.tests))]
    if policy.candidate and document.candidate:
        found += trials(policy.candidate.policy, document.candidate)
    return found


def tried(policy: Policy, document: Document, at: int) -> Trial:
    """Runs test number `at`, from 0."""
    test = policy.tests[at]
    try:
        got = outcome(test, policy)
    except Refusal as refusal:
        told = f'"{test.name}" fails: the request was refused: {refusal.message}'
        return Trial(test.name, None, [document.problem(("tests", at, "request"), told)])
    wanted = {key: value for key in got if (value := getattr(test.expect, key)) is not None}
    problems = [
        document.problem(
            ("tests", at, "expect", key), f'"{test.name}" fails: expected {spelled(value)}, got {spelled(got[key])}'
        )
        for key, value in wanted.items()
        if got[key] != value
    ]
    return Trial(test.name, got, problems)


def outcome(test: PolicyTest, policy: Policy) -> dict[str, Any]:
    """What `policy` does with a test's request: tier, rule, triaged, reason and band. Raises Refusal when it
    refuses."""
    facts, verdict = facts_of(test, policy), stub(test, policy)
    found = route(facts, verdict, policy)
    if isinstance(found, Ask):
        return {"tier": None, "rule": found.rule, "triaged": True, "reason": None, "band": None}
    triaged, target = isinstance(route(facts, None, policy), Ask), first_match(facts, policy).route
    falls = (
        band(target.steps, verdict).key if triaged and verdict and verdict.label and isinstance(target, Bands) else None
    )
    return {
        "tier": found.tiers[0],
        "rule": found.rule,
        "triaged": triaged,
        "reason": found.reason,
        "band": falls,
    }


def facts_of(test: PolicyTest, policy: Policy) -> Facts:
    """The facts of a test's request, as the gateway would see them. Raises Refusal, also for a text that no request can
    have: with half of a surrogate pair.
    """
    try:
        body, fields = read(msgspec.json.encode(test.request))
    except UnicodeEncodeError as error:
        raise BadRequest(f"The request is no Unicode text: {error.reason}.") from None
    caller = Caller("test", test.caller.name, test.caller.plan or policy.callers.default.plan, "")
    path = CHAT if fields.prompt is None else TEXT
    headers = {name.lower(): value for name, value in test.headers.items()}
    request = ChatRequest(id="test", caller=caller, path=path, body=body, fields=fields, headers=headers, started=0.0)
    given, goes_on = test.session, continues(fields)
    session = Session(given.tier, given.tier, given.age, given.turns, goes_on) if given else None
    return observe(request, policy, test.load, Standing(session=session), test.waiting)


def stub(test: PolicyTest, policy: Policy) -> Verdict | None:
    """The verdict that a test gives in the classifier's place, None: none; a label left out follows from p_complex."""
    given = test.verdict
    if isinstance(given, TestVerdict):
        hard = (given.p_complex or 0.0) >= policy.triage.threshold
        return Verdict(given.label or ("complex" if hard else "simple"), given.p_complex, "ok", "test")
    return None if given is None else Verdict(None, None, given, "test")


def parsed_verdict(text: str) -> StubVerdict:
    """Parses a verdict for tests and explain: a probability, a label, or how the classifier fails. Raises
    ValueError."""
    if text in get_args(Reason):
        return cast("Reason", text)
    if text in get_args(Label):
        return TestVerdict(label=cast("Label", text))
    try:
        p_complex = float(text)
    except ValueError:
        p_complex = -1.0
    if not 0.0 <= p_complex <= 1.0:
        known = ", ".join(get_args(Reason))
        raise ValueError(f"{text}: expected a probability from 0 to 1, simple, complex, {known}")
    return TestVerdict(p_complex=p_complex)


def spelled(value: object) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "none, as without a verdict (give the test a `verdict`)"
    return str(value).lower() if isinstance(value, bool) else str(value)
