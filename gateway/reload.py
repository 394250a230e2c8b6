"""Does a policy file do what its own tests say?"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.body import read
from gateway.errors import Refusal
from gateway.facts import observe
from gateway.policy import Bands, Document, Policy, PolicyError, PolicyTest, Problem, TestVerdict, open_policy
from gateway.routing import band, first_match, route
from gateway.sessions import continues
from gateway.types import Ask, Caller, ChatRequest, Facts, Session, Standing, Verdict


def checked(path: Path, env: Mapping[str, str] | None = None) -> Policy:
    """The policy in a file, checked and with its own tests passed; `env` is os.environ by default.

    Raises PolicyError; a failing test is a problem at the expectation that does not hold.
    """
    policy, document = open_policy(path, os.environ if env is None else env)
    problems = [problem for at in range(len(policy.tests)) for problem in tried(policy, document, at)]
    if problems:
        raise PolicyError(problems)
    return policy


def tried(policy: Policy, document: Document, at: int) -> list[Problem]:
    """What test number `at` finds wrong."""
    test = policy.tests[at]
    try:
        got = outcome(test, policy)
    except Refusal as refusal:
        told = f'"{test.name}" fails: the request was refused: {refusal.message}'
        return [document.problem(("tests", at, "request"), told)]
    wanted = {key: value for key in got if (value := getattr(test.expect, key)) is not None}
    return [
        document.problem(
            ("tests", at, "expect", key), f'"{test.name}" fails: expected {spelled(value)}, got {spelled(got[key])}'
        )
        for key, value in wanted.items()
        if got[key] != value
    ]


def outcome(test: PolicyTest, policy: Policy) -> dict[str, Any]:
    """tier, rule, triaged, reason and band for a test's request. Raises Refusal when the request is refused."""
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
    """The facts of a test's request, as the gateway would see them."""
    body, fields = read(msgspec.json.encode(test.request))
    caller = Caller("test", test.caller.name, test.caller.plan or policy.callers.default.plan, "")
    path = "/v1/completions" if fields.prompt is not None else "/v1/chat/completions"
    headers = {name.lower(): value for name, value in test.headers.items()}
    request = ChatRequest(id="test", caller=caller, path=path, body=body, fields=fields, headers=headers, started=0.0)
    given, goes_on = test.session, continues(fields)
    session = Session(given.tier, given.tier, given.age, given.turns, goes_on) if given else None
    return observe(request, policy, test.load, Standing(session=session), test.waiting)


def stub(test: PolicyTest, policy: Policy) -> Verdict | None:
    """The verdict that a test gives in the classifier's place; a label left out follows from the threshold."""
    given = test.verdict
    if isinstance(given, TestVerdict):
        hard = (given.p_complex or 0.0) >= policy.triage.threshold
        return Verdict(given.label or ("complex" if hard else "simple"), given.p_complex, "ok", "test")
    return None if given is None else Verdict(None, None, given, "test")


def spelled(value: object) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "none, as without a verdict (give the test a `verdict`)"
    return str(value).lower() if isinstance(value, bool) else str(value)
