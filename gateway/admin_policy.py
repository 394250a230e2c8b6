"""What may operators see and change of the policy over HTTP?   The routes /admin/policy, behind the admin key."""

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin import Guard, Recent, guarded
from gateway.comparison import Comparison
from gateway.errors import BadRequest, NotFound
from gateway.explain import explain
from gateway.policy import (
    Document,
    Expect,
    Policy,
    PolicyTest,
    Problem,
    TestCaller,
    differences,
    schema,
)
from gateway.recorded import Recorded, RecordError
from gateway.replay import Deciding, Unrecorded, between
from gateway.revisions import PREVIOUS, Revision, Revisions
from gateway.uploads import received
from gateway.verify import Attempt, Trial, attempted, facts_of, parsed_verdict, stub

LONGEST = 1 << 20  # bytes of a policy's text
RECORDS = 1000  # the newest ones, which a candidate decides anew
VARIABLE = re.compile(r"\$\{(\w+)")
_YAML = {"requestBody": {"content": {"application/yaml": {"schema": {"type": "string"}}}}}
_RECORD = msgspec.json.Decoder(Recorded)
Json = dict[str, Any]


class Asked(BaseModel):
    """Body of POST /admin/policy/explain; as the options of `tiergate policy explain`."""

    model_config = ConfigDict(extra="forbid")
    request: Json = Field(description="a request body")
    verdict: float | str | None = Field(default=None, description="p_complex, simple, complex, or how it fails")
    plan: str = Field(default="", description="the caller's; else the policy's default")
    headers: dict[str, str] = Field(default_factory=dict)
    policy: str | None = Field(default=None, description="another policy's text; else the one in force")


class Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid")
    to: str = Field(description=f"a revision's digest, or {PREVIOUS}")


@dataclass(frozen=True, slots=True)
class Checked:
    """Whether a policy's text may come into force: it is valid and passes its own tests."""

    ok: bool
    digest: str | None
    problems: list[Problem]
    tests: list[Trial]


@dataclass(frozen=True, slots=True)
class RolledBack:
    digest: str
    note: str


async def text_of(request: Request) -> str:
    """The body, a policy's text. Raises TooLarge, BadRequest."""
    try:
        return (await received(request.stream(), LONGEST)).decode()
    except UnicodeDecodeError:
        raise BadRequest("A policy is UTF-8 text.") from None


Text = Annotated[str, Depends(text_of)]


@dataclass(frozen=True, slots=True)
class Desk:
    """What the routes work on. `load`: requests in flight by tier; `records`: the newest decisions of all workers."""

    revisions: Revisions
    comparison: Comparison
    load: Callable[[], Mapping[str, int]]
    records: Recent


def policy_routes(guard: Guard, desk: Desk) -> APIRouter:
    """The routes, behind `guard`."""
    routes = guarded(guard)
    _state(routes, desk)
    _texts(routes, desk)
    _change(routes, desk.revisions)
    return routes


def _state(routes: APIRouter, desk: Desk) -> None:
    revisions = desk.revisions

    @routes.get("/policy", summary="The policy in force, its revisions and candidate, and what is wrong with the file")
    async def policy() -> Json:
        return shown(revisions, await revisions.known())

    @routes.get("/policy/schema", summary="JSON Schema of policy files")
    async def described() -> Json:
        return schema()

    @routes.get("/policy/candidate", summary="How the candidate fares in this process; null: there is none")
    async def candidate() -> Json | None:
        return compared(revisions.policy, desk.comparison)

    @routes.get("/policy/revisions/{digest}", summary="A revision with its text")
    async def revision(digest: str) -> Json:
        found = next((one for one in await revisions.known() if one.digest == digest), None)
        if not found:
            raise NotFound("No revision has this digest.", param="digest")
        return msgspec.structs.asdict(found)


def _texts(routes: APIRouter, desk: Desk) -> None:
    revisions = desk.revisions

    @routes.post("/policy/check", summary="Would this text be right, and do what its tests say?", openapi_extra=_YAML)
    async def check(text: Text) -> Checked:
        found = await asyncio.to_thread(tried, text, revisions)
        digest = found.policy.digest if found.policy else None
        return Checked(found.policy is not None, digest, list(found.problems), list(found.trials))

    @routes.post("/policy/test", summary="The tests of the policy in force", openapi_extra=_YAML)
    async def test(text: Text) -> Checked:
        """Or of the text in the body."""
        if text:
            return await check(text)
        return Checked(True, revisions.policy.digest, [], list(revisions.trials))

    @routes.post("/policy/diff", summary="What changes, and which recorded requests go elsewhere", openapi_extra=_YAML)
    async def diff(text: Text) -> Json:
        return await asyncio.to_thread(compare, text, revisions, await desk.records(RECORDS, 0.0))

    @routes.post("/policy/explain", summary="Where would this request go, and why? No model is asked")
    async def explained(asked: Asked) -> Json:
        policy = revisions.policy
        if asked.policy is not None:
            policy, _ = right(await asyncio.to_thread(tried, asked.policy, revisions))
        return explanation(asked, policy, desk.load())


def _change(routes: APIRouter, revisions: Revisions) -> None:
    @routes.post("/policy/reload", summary="Read the file again, even if it is the same")
    async def reload() -> Checked:
        await revisions.look(again=True)
        return Checked(
            not revisions.problems, revisions.policy.digest, list(revisions.problems), list(revisions.trials)
        )

    @routes.post("/policy/rollback", summary="Put an earlier revision in force, until the file is changed")
    async def roll_back(wanted: Wanted) -> RolledBack:
        await revisions.roll_back(wanted.to)
        return RolledBack(revisions.policy.digest, revisions.note())

    @routes.delete("/policy/rollback", summary="Let the file count again")
    async def roll_forward() -> RolledBack:
        await revisions.roll_forward()
        return RolledBack(revisions.policy.digest, revisions.note())


def shown(revisions: Revisions, known: list[Revision]) -> Json:
    """The answer of GET /admin/policy; times are Unix seconds."""
    policy, found, rollback = revisions.policy, revisions.policy.candidate, revisions.rollback
    wrong = {"at": revisions.at, "problems": [asdict(one) for one in revisions.problems]}
    named = {"canary": found.canary, "shadow": found.shadow, **found.policy.told()} if found else None
    return {
        **policy.told(),
        "text": revisions.text,
        "file": str(revisions.path) if revisions.path else None,
        "source": "rollback" if rollback else "file",
        "since": revisions.since,
        "problem": wrong if revisions.problems else None,
        "tests": [asdict(trial) for trial in revisions.trials],
        "rollback": {"at": rollback.at, "digest": rollback.digest, "note": revisions.note()} if rollback else None,
        "candidate": named,
        "revisions": [listed(one) | {"current": one.digest == policy.digest} for one in known],
    }


def listed(one: Revision) -> Json:
    """A revision without its texts."""
    return {name: getattr(one, name) for name in ("digest", "name", "revision", "at")}


def compared(policy: Policy, comparison: Comparison) -> Json | None:
    """Who was served by the candidate, and what it would have decided otherwise; the most frequent first."""
    found = policy.candidate
    if not found:
        return None
    served = [{"status": status, "tier": tier, "count": n} for (status, tier), n in comparison.served.most_common()]
    differing = [
        {"rule": one.rule, "tier": one.tier, "candidate_rule": other.rule, "candidate_tier": other.tier}
        | {"count": n, "examples": comparison.disagreements[one, other]}
        for (one, other), n in comparison.counts.most_common()
    ]
    told = {"served": served, "compared": dict(comparison.compared), "disagreements": differing}
    return {**found.policy.told(), "canary": found.canary, "shadow": found.shadow, **told}


def tried(text: str, revisions: Revisions) -> Attempt:
    """Loads and tests a text in place of the file. Of the environment it sees only the variables that the file in force
    names, and of other folders only the files that that one names: else the administrator's key would open the
    process's environment and its disk.
    """
    named = VARIABLE.findall(revisions.text or "")
    env = {name: os.environ[name] for name in named if name in os.environ}
    return attempted(revisions.path or Path("policy.yaml"), text, env, revisions.files)


def right(found: Attempt) -> tuple[Policy, Document]:
    """The attempt's policy and document. Raises BadRequest where it failed."""
    if found.policy and found.document:
        return found.policy, found.document
    raise BadRequest(f"The policy is wrong: {found.problems[0]}", param="policy")


def compare(text: str, revisions: Revisions, lines: list[bytes]) -> Json:
    """How a text differs from the policy in force, and which recorded requests it would send elsewhere; `unjudged`: why
    the latter cannot be told. Raises BadRequest.
    """
    path, said, old = revisions.path, revisions.text, revisions.policy
    # In force it stays though a file that it names is gone: only what it says is read again.
    before = None if path is None or said is None else attempted(path, said, calibration=revisions.calibration).document
    if before is None:
        raise BadRequest("This gateway follows no policy file.", code="no_policy_file")
    new, after = right(tried(text, revisions))
    changes = [{"path": path, "a": one, "b": other} for path, one, other in differences(before, after)]
    found: Json = {"changes": changes, "records": len(lines), "undecided": 0, "moves": [], "unjudged": None}
    decided = Deciding(old, new)
    try:
        moves, undecided = between([decided(_RECORD.decode(line)) for line in lines])
    except (Unrecorded, RecordError) as error:
        return found | {"unjudged": str(error)}
    return found | {"undecided": undecided, "moves": [asdict(move) for move in moves]}


def explanation(asked: Asked, policy: Policy, load: Mapping[str, int]) -> Json:
    """The explanation of a request, as `explain` gives it. Raises BadRequest."""
    if asked.plan and asked.plan not in policy.callers.plans:
        raise BadRequest(f"no plan is named {asked.plan}: {', '.join(policy.callers.plans)}", param="plan")
    try:
        said = None if asked.verdict is None else parsed_verdict(str(asked.verdict))
    except ValueError as error:
        raise BadRequest(str(error), param="verdict") from None
    test = PolicyTest(
        name="explain",
        request=asked.request,
        expect=Expect(),
        caller=TestCaller(plan=asked.plan),
        headers=asked.headers,
        load=dict(load),
        verdict=said,
    )
    return {**explain(facts_of(test, policy), stub(test, policy), policy)}
