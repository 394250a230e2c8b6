"""Would the candidate policy have decided otherwise, and what becomes of the requests that it decides?"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from random import SystemRandom
from typing import NamedTuple

from msgspec.structs import replace

from gateway.errors import Refusal
from gateway.explain import try_route
from gateway.facts import observe
from gateway.policy import Candidate, Policy
from gateway.recorded import Record
from gateway.reply import NOBODY
from gateway.types import Ask, ChatRequest, Decision, Route, Standing

WAITING = 100  # decisions that wait to be compared, each with its request; while so many wait, others are skipped
EXAMPLES = 5  # request ids kept of each disagreement
MOST = 1000  # different disagreements (rules and tiers of both sides) that are counted
_draw = SystemRandom().random


class Side(NamedTuple):
    """Where a policy sends a request: rule and tier. Where it refuses the request: the error's code, and "refused"."""

    rule: str
    tier: str


class Due(NamedTuple):
    request: ChatRequest
    decision: Decision
    policy: Policy


class Comparison:
    """Compares decisions of the policy in force with those that its candidate would have made, after the answers have
    ended and one at a time, and counts the answers that the candidate decided. Starts over with each candidate.

    Both decide on the same verdict. A candidate that asks the classifier another question is `undecided` where it needs
    a verdict: the classifier is not asked for a comparison. Exploration is left out on both sides. `compared` is called
    with the result of each comparison, `differed` with rule and tier on either side, `ended` with status and tier of
    each answer that the candidate decided.
    """

    def __init__(
        self,
        compared: Callable[[str], None],
        differed: Callable[[str, str, str, str], None],
        ended: Callable[[str, str], None],
    ) -> None:
        self._compared, self._differed, self._ended = compared, differed, ended
        self._candidate: Candidate | None = None
        self._due: deque[Due] = deque()
        self._working: asyncio.Task[None] | None = None
        self.served: Counter[tuple[int, str]] = Counter()  # answers of the candidate, by status and tier
        self.compared: Counter[str] = Counter()  # same, differs, undecided, skipped
        self.disagreements: dict[tuple[Side, Side], list[str]] = {}  # the newest ids
        self.counts: Counter[tuple[Side, Side]] = Counter()

    def saw(self, record: Record, request: ChatRequest | None, policy: Policy, candidate: Candidate) -> None:
        """An exchange that `policy` decided has ended. It counts if that is the candidate, and may be compared if that
        has the candidate."""
        if candidate is not self._candidate:
            self._candidate = candidate
            self.served, self.compared, self.counts, self.disagreements = Counter(), Counter(), Counter(), {}
        if policy is candidate.policy:
            self.served[record.status, record.tier or NOBODY] += 1
            self._ended(str(record.status), record.tier or NOBODY)
        elif policy.candidate is candidate and request and record.decision and _draw() < candidate.shadow:
            self._put(Due(request, record.decision, policy))

    def _put(self, due: Due) -> None:
        if len(self._due) >= WAITING:
            self._count("skipped")
            return
        self._due.append(due)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._due:
            await asyncio.sleep(0)  # answers go first
            due = self._due.popleft()
            if due.policy.candidate is self._candidate and self._candidate:
                self._compare(due, self._candidate.policy)

    def _compare(self, due: Due, candidate: Policy) -> None:
        here, there = sides(due, candidate)
        if there is None or here is None:
            self._count("undecided")
        elif here.tier == there.tier:
            self._count("same")
        else:
            self._count("differs")
            self._differ((here, there), due.request.id)

    def _differ(self, pair: tuple[Side, Side], request: str) -> None:
        if pair not in self.counts and len(self.counts) >= MOST:
            return
        self.counts[pair] += 1
        self._differed(*pair[0], *pair[1])
        self.disagreements[pair] = [request, *self.disagreements.get(pair, [])][:EXAMPLES]

    def _count(self, what: str) -> None:
        self.compared[what] += 1
        self._compared(what)

    async def close(self) -> None:
        """Compares all that waits."""
        while self._working and not self._working.done():
            await asyncio.wait([self._working])


def sides(due: Due, candidate: Policy) -> tuple[Side | None, Side | None]:
    """What the policy that decided and the candidate make of the request; None where that takes a verdict that there is
    not."""
    facts, verdict = due.decision.facts, due.decision.verdict
    standing = Standing(facts.budget_used, facts.budget, facts.budget_of, facts.capped, facts.session)
    here = side(try_route(replace(facts, chance=1.0), verdict, due.policy))
    try:
        other = observe(due.request, candidate, facts.load, standing, facts.waiting)
    except Refusal as refusal:
        return here, side(refusal)
    asked_alike = due.policy.question == candidate.question
    return here, side(try_route(replace(other, chance=1.0), verdict if asked_alike else None, candidate))


def side(found: Route | Ask | Refusal) -> Side | None:
    if isinstance(found, Refusal):
        return Side(found.code or found.type, "refused")
    return None if isinstance(found, Ask) else Side(found.rule, found.tiers[0])
