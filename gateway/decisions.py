"""How do callers ask for a decision alone, or rate an answer?   POST /v1/route and POST /v1/feedback."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.admission import count
from gateway.answer import decision
from gateway.api import LEFT, draw
from gateway.body import Body
from gateway.dialects import CHAT, TEXT, read
from gateway.doors import Doors
from gateway.errors import UNREADABLE, BadRequest, Forbidden, NotFound
from gateway.explain import Explanation, explain
from gateway.keys import credentials, identify, refuse_foreign
from gateway.openapi import DECIDED, KEYED, shaped
from gateway.policy import Policy, serving
from gateway.pricing import terms
from gateway.recorded import WEAK, Outcome, Record
from gateway.settings import Settings
from gateway.splice import refuse_links
from gateway.types import Caller, ChatRequest, Decision
from gateway.uploads import announced, received
from gateway.users import user_of

FEEDBACK_BYTES = 4096
OUTCOMES = 10  # of one answer: each is a line among the records, where it pushes out an older one
RATED = 10_000  # answers of which it is known how often they were rated here
ROUTE = "/v1/route"
# The member that holds the conversation -> the path that a request with it would have.
ASKED = {"messages": CHAT, "prompt": TEXT, "input": "/v1/responses"}


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    """`request_id`: the answer's x-request-id."""

    request_id: str
    outcome: Outcome


_FEEDBACK = msgspec.json.Decoder(Feedback)


class Ratings:
    """How often answers were rated here, the newest RATED of them."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()

    @contextmanager
    def one(self, caller: str, request_id: str) -> Iterator[None]:
        """Counts a rating, unless the block does not know the answer. Raises BadRequest for one too many."""
        name = caller, request_id
        count = self._counts.pop(name, 0)
        self._counts[name] = min(count + 1, OUTCOMES)
        if count == OUTCOMES:
            told = f"This answer was rated {OUTCOMES} times, and the last one counts."
            raise BadRequest(told, param="request_id", code="too_many_outcomes")
        try:
            yield
        except NotFound:
            self._counts.pop(name, None)
            raise
        if len(self._counts) > RATED:
            self._counts.popitem(last=False)


class Rated(TypedDict):
    """The outcome is attached to that answer."""

    request_id: str
    recorded: bool


SHAPES = (Explanation, Feedback, Rated)  # of what comes and goes, for OpenAPI


def _told(body: dict[str, Any], answer: type) -> dict[str, Any]:
    """What OpenAPI says of a route that takes such a body and a caller's key, and gives that shape."""
    content = {"application/json": {"schema": shaped(answer)}}
    taken = {"required": True, "content": {"application/json": {"schema": body}}}
    return {**KEYED, "requestBody": taken, "responses": {"200": {"content": content}}}


def decision_routes(doors: Doors, settings: Settings) -> APIRouter:
    """The routes; `doors` holds the policy in force. Both need a caller's key and limit the size of the body."""
    routes, ratings = APIRouter(), Ratings()

    async def caller_of(request: Request, policy: Policy) -> Caller:
        refuse_foreign(request.headers, doors.keys, settings.cors_origins)
        return await identify(credentials(request.headers), doors.keys, policy.callers)

    @routes.post(ROUTE, summary="Where would this request go, and why?", openapi_extra=_told(DECIDED, Explanation))
    async def route(request: Request) -> Response:
        started, policy = time.perf_counter(), doors.policy
        caller = await caller_of(request, policy)
        policy = serving(caller.id, policy)
        plan = terms(caller, policy).plan
        if not plan.explain:
            raise Forbidden("Your API key may not ask for explanations.", code="explain_not_allowed")
        held, uploads = 0, doors.uploads
        try:
            with uploads.one(caller.id, plan.concurrency):
                held = await uploads.take(caller.id, announced(request.headers, settings.max_body))
                data = await received(request.stream(), settings.max_body)
            asked = parsed(data, caller, request, started)
            made = await unless_left(request, decided(asked, policy, doors))
        finally:
            uploads.shrink(caller.id, 0, held)
        return answered(explain(made.facts, made.verdict, policy) if made else None)

    @routes.post("/v1/feedback", summary="How good was an answer?", openapi_extra=_told(shaped(Feedback), Rated))
    async def feedback(request: Request) -> Response:
        policy = doors.policy
        caller = await caller_of(request, policy)
        await count(caller, serving(caller.id, policy), doors.store)
        told = judged(await received(request.stream(), FEEDBACK_BYTES), doors.policy)
        with ratings.one(caller.id, told.request_id):
            await doors.records.judge(caller, told.request_id, told.outcome, doors.policy)
        return answered({"request_id": told.request_id, "recorded": True})

    return routes


def parsed(data: bytes, caller: Caller, request: Request, started: float) -> ChatRequest:
    """The body of POST /v1/route as the request to decide on, which `started` then; its path follows from ASKED. Raises
    BadRequest."""
    given = Body(data)
    paths = [path for name, path in ASKED.items() if given.size(name)]
    if len(paths) != 1:
        raise BadRequest(f"Give one of {', '.join(ASKED)}, and only one.", param="messages")
    body, fields = read(paths[0], data)
    name, headers = request.scope["request_id"], dict(request.headers)
    found = ChatRequest(name, caller, paths[0], body, fields, headers, started, chance=draw())
    refuse_links(found)
    return found


async def decided(request: ChatRequest, policy: Policy, doors: Doors) -> Decision:
    """The decision, which is counted and logged."""
    made = await decision(request, policy, doors.store, doors.upstream, doors.flights.verdicts)
    doors.telemetry.record(asked_alone(request, made, policy, time.perf_counter() - request.started))
    return made


async def unless_left(request: Request, deciding: Coroutine[Any, Any, Decision]) -> Decision | None:
    """The decision; None when the caller, of whose body all was read, leaves before it: nobody is asked any longer."""
    task, left = asyncio.create_task(deciding), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        task.cancel()
        await asyncio.wait([task])
    return None if task.cancelled() else task.result()


def judged(data: bytes, policy: Policy) -> Feedback:
    """The body of POST /v1/feedback. Raises BadRequest naming what is wrong."""
    try:
        told = _FEEDBACK.decode(data)
    except UNREADABLE as error:
        raise BadRequest(f"Not an outcome: {error}") from None
    if told.outcome.source in WEAK:
        raise BadRequest(f"'{told.outcome.source}' is the gateway's own source: give another.", param="outcome.source")
    unknown = [tier for tier in told.outcome.tiers if tier not in policy.tiers]
    if unknown:
        raise BadRequest(f"Unknown tier: {unknown[0]}. Known tiers: {', '.join(policy.tiers)}.", param="outcome.tiers")
    return told


def asked_alone(request: ChatRequest, made: Decision, policy: Policy, seconds: float) -> Record:
    """The record of a decision without an answer, for metrics and log: the classifier's call has its cost. It is not
    kept among the decisions."""
    return Record(
        id=request.id,
        path=ROUTE,
        status=200,
        seconds=seconds,
        overhead=None,
        policy=policy.version,
        caller=request.caller,
        model=request.fields.model or "auto",
        decision=made,
        costs=request.costs,
        user=user_of(request, policy),
    )


def answered(told: Explanation | Rated | None) -> Response:
    """None: to a caller who left."""
    return Response(msgspec.json.encode(told), LEFT if told is None else 200, media_type="application/json")
