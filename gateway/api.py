"""How do bytes become a request, and a reply bytes again?   The HTTP edge."""

import asyncio
import contextlib
import logging
import time
from functools import partial
from random import SystemRandom
from typing import Any

from gateway.answer import answer
from gateway.attached import ending, explained_events, explained_json, explanation, our_lines, paid_line, stripped_line
from gateway.dialects import DIALECTS, read
from gateway.doors import Doors
from gateway.errors import Forbidden, Leaving, NoWebSocket, Refusal, TooLate, WrongMethod
from gateway.ids import request_id
from gateway.keys import credentials, identify, refuse_foreign
from gateway.policy import serving
from gateway.pricing import lines, terms
from gateway.pulse import Pulse
from gateway.recorded import Record, phases
from gateway.reply import Chunks, Reply
from gateway.schemas import refuse_patterns
from gateway.settings import Settings
from gateway.splice import refuse_links
from gateway.standing import OverLimit
from gateway.stream import Pieces
from gateway.types import Caller, ChatRequest
from gateway.uploads import announced
from gateway.users import user_of
from gateway.wire import Wire, header_lines

LAST_WORD = 1.0  # seconds for the caller to take the error event that ends a stream
LEFT = 499  # nginx's status for a caller who left before the answer was complete
JSON = b"content-type: application/json\r\n"
STREAMED = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
log = logging.getLogger("gateway")
draw = SystemRandom().random  # a caller must not be able to foresee what is explored
SURE = 1.0  # a value of ChatRequest.chance at which nothing is explored


class Exchange:
    """One request and its answer on one connection."""

    __slots__ = (
        "_caller", "_doors", "_error", "_explained", "_headers", "_held", "_id", "_left", "_limited", "_overhead",
        "_policy", "_read_at", "_reply", "_request", "_settings", "_started", "_status", "_task", "_trace", "_ttft",
        "_uploading", "_wire",
    )  # fmt: skip

    def __init__(self, doors: Doors, settings: Settings, wire: Wire, task: "asyncio.Task[Any] | None") -> None:
        """`task` is the one that runs it."""
        self._doors, self._settings, self._wire, self._task = doors, settings, wire, task
        self._policy = doors.policy
        self._started = self._read_at = time.perf_counter()
        self._headers = headers = wire.headers
        self._trace = doors.telemetry.trace(headers)
        self._id = request_id(headers)
        self._explained = headers.get("x-route-explain") == "1"
        self._caller: Caller | None = None
        self._request: ChatRequest | None = None
        self._reply: Reply | None = None
        self._uploading, self._held = 0.0, 0
        self._status = 0
        self._overhead: float | None = None
        self._ttft: float | None = None
        self._error: str | None = None
        self._limited: str | None = None
        self._left = False

    async def run(self) -> None:
        """Serve the exchange to its end; every end is recorded once."""
        try:
            await self._serve()
        except asyncio.CancelledError:
            await self._stopped()
        except Refusal as refusal:
            await self._refuse(refusal)
            refusal.__traceback__ = None  # the frames in it hold the reply, which may hold the refusal
        except Exception:
            log.exception("request %s failed", self._id)
            await self._refuse(Refusal("The gateway failed: its log says why.", code="internal_error"))
        finally:
            if self._held and self._caller:
                self._doors.uploads.shrink(self._caller.id, 0, self._held)
            if self._reply:
                await self._reply.close()
            self._record()

    async def _stopped(self) -> None:
        """The task was cancelled: the caller left, or the gateway shuts down, which the caller is told by an error."""
        if self._task and self._task.uncancel() > 0:
            raise asyncio.CancelledError
        if not self._left:
            await self._refuse(Leaving("The gateway ends before this answer does.", retry_after=1.0))

    async def _serve(self) -> None:
        doors = self._doors
        if self._wire.method != "POST":
            if self._headers.get("upgrade", "").lower() == "websocket":
                raise NoWebSocket("This path opens no WebSocket: it takes POST, and streams as server-sent events.")
            raise WrongMethod(f"This path takes POST, not {self._wire.method[:16]}.")
        refuse_foreign(self._headers, doors.keys, self._settings.cors_origins)
        shown, callers = credentials(self._headers), self._policy.callers
        self._caller = caller = doors.keys.known(shown, callers) or await identify(shown, doors.keys, callers)
        if self._policy.candidate:
            self._policy = self._policy.once(serving, caller.id)
        data = self._wire.ready()
        if data is None or len(data) > self._settings.max_body:
            data = await self._body(caller)
        if data is None:
            self._left = True
            return
        self._request = request = self._read(data, caller)
        self._read_at = time.perf_counter()
        self._wire.watch(self._leave)
        left = request.left()
        try:
            if left is None:
                await self._answer(request)
            else:
                await self._within(left, request)
        finally:
            self._wire.unwatch()

    async def _within(self, seconds: float, request: ChatRequest) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._answer(request)
        except TimeoutError:
            raise TooLate("The time that the request gave itself (x-request-timeout) is over.") from None

    async def _answer(self, request: ChatRequest) -> None:
        doors = self._doors
        self._reply = reply = await answer(request, self._policy, doors.store, doors.upstream, doors.flights)
        if self._policy.record.shadow:
            doors.shadows.watch(request, reply, self._policy)
        if reply.stream:
            await self._stream(reply)
        else:
            data = reply.body if isinstance(reply.body, bytes) else b"".join([chunk async for chunk in reply.chunks])
            await self._wire.write(self._whole(request, reply, data), more=False)

    def _leave(self) -> None:
        """The caller left: its exchange is cancelled, whatever it waits for."""
        self._left = True
        if self._task:
            self._task.cancel()

    async def _body(self, caller: Caller) -> bytes | None:
        """Its body; None when the caller left before its end. Raises TooLarge, RateLimited, Overloaded."""
        started, uploads, limit = time.perf_counter(), self._doors.uploads, self._settings.max_body
        with uploads.one(caller.id, terms(caller, self._policy).plan.concurrency):
            self._held = await uploads.take(caller.id, announced(self._headers, limit))
            data = await self._wire.read(limit)
        self._held = uploads.shrink(caller.id, len(data or b""), self._held)
        self._uploading = time.perf_counter() - started
        return data

    def _read(self, data: bytes, caller: Caller) -> ChatRequest:
        body, fields = read(self._wire.path, data)
        chance = draw() if self._policy.explores else SURE
        request = ChatRequest(
            self._id, caller, self._wire.path, body, fields, self._headers, self._started, [], chance, self._trace
        )
        refuse_links(request)
        refuse_patterns(request, self._policy)
        if self._explained and not terms(caller, self._policy).plan.explain:
            raise Forbidden("Your API key may not ask for explanations.", code="explain_not_allowed")
        return request

    def _whole(self, request: ChatRequest, reply: Reply, data: bytes) -> bytes:
        """Starts an answer that comes in one piece; the piece."""
        now = time.perf_counter()
        headers, self._ttft = self._answered(reply, now), now - self._started
        if self._explained and reply.status == 200:
            data = explained_json(data, explanation(request, reply, self._policy, self._overhead or 0.0))
        self._start(reply.status, headers + paid_line(request, reply, self._policy), len(data))
        return data

    async def _stream(self, reply: Reply) -> None:
        """Relays a stream. Each write waits until the caller took what came before it."""
        self._start(reply.status, self._answered(reply, time.perf_counter()) + STREAMED)
        wire, body = self._wire, reply.chunks
        if (first := await anext(body, None)) is not None:
            self._ttft = time.perf_counter() - self._started
            await wire.write(self._explaining(reply, first), more=True)
        total = self._policy.tiers[reply.tier].timeouts.total + LAST_WORD  # what ends the server's part is told first
        pulse = Pulse(wire, self._settings.keepalive, total, self._late)
        try:
            last = await self._rest(reply, body)
            pulse.rest()
            await wire.write(last, more=False)
        finally:
            pulse.stop()

    async def _rest(self, reply: Reply, body: Chunks) -> bytes:
        """Writes what follows the first piece. Returns its last bytes, which can go out together with the end."""
        push = None if self._explained else self._wire.push
        pour = partial(body.pour, push) if push and isinstance(body, Pieces) else None
        last = await pour() if pour else None
        while last is None and (piece := await anext(body, None)) is not None:
            await self._wire.write(self._explaining(reply, piece), more=True)
            last = await pour() if pour else None
        return last or b""

    def _late(self) -> None:
        """The stream lasted too long: handled as if the caller had left."""
        self._error = "reader_too_slow"
        self._leave()

    def _explaining(self, reply: Reply, events: bytes) -> bytes:
        if not self._explained or not self._request or not ending(events):
            return events
        model = self._policy.tiers[reply.tier].model
        decision = explanation(self._request, reply, self._policy, self._overhead or 0.0)
        return explained_events(events, self._request, model, decision)

    async def _refuse(self, refusal: Refusal) -> None:
        """Tells the caller of an error: before the first byte an error object, then an error event and the end."""
        answers = DIALECTS[self._wire.path].answers
        self._error = refusal.code or refusal.type
        self._limited = refusal.limit if isinstance(refusal, OverLimit) else None
        if self._status:
            if self._reply and self._reply.stream:
                with contextlib.suppress(TimeoutError):  # who takes nothing hears nothing
                    async with asyncio.timeout(LAST_WORD):
                        await self._wire.write(answers.broken(refusal, self._reply.usage.events), more=False)
            return
        body = answers.error(refusal)
        headers = JSON + header_lines(refusal.headers()) + self._answered(self._reply, time.perf_counter())
        self._start(refusal.status, headers, len(body))
        await self._wire.write(body, more=False)

    def _start(self, status: int, headers: bytes, length: int | None = None) -> None:
        self._wire.start(status, headers, length)
        self._status = status

    def _answered(self, reply: Reply | None, now: float) -> bytes:
        """The headers of an answer, as lines; the time before its first byte ends `now`."""
        ours = now - self._started - self._uploading - (reply.waited if reply else 0.0)
        self._overhead = ours if ours > 0.0 else 0.0  # noqa: FURB136  max() takes as long as ten steps
        headers = our_lines(self._id, self._wire.path, self._policy, reply, self._overhead)
        if reply is None or self._request is None:
            return headers
        return headers + header_lines(reply.headers) + reply.limits + stripped_line(self._request, self._policy)

    def _record(self) -> None:
        doors, reply, request, policy = self._doors, self._reply, self._request, self._policy
        model, stream, costs = None, False, []
        parts: tuple[float, ...] = ()
        user = user_of(request, policy) if request and policy.callers.user else None
        if request:
            model, stream = request.fields.model or "auto", bool(request.fields.stream)
            costs = request.costs or lines(request, policy)
            read, bills = self._read_at - self._started - self._uploading, request.bills
            parts = phases(self._overhead, read, bills[0].at - self._read_at if bills else None)
        tier, route, decision, cache, usage = None, None, None, "bypass", None
        if reply:
            tier, route, decision, cache, usage = reply.tier, reply.route, reply.decision, reply.cache, reply.usage
        status = LEFT if self._left else self._status
        seconds = time.perf_counter() - self._started
        error = self._error or ("upstream_error" if usage and usage.failed else None)
        record = Record(  # by position: so many take six times as long by name
            self._id, self._wire.path, status, seconds, self._overhead, policy.version, self._ttft, self._caller,
            model, stream, tier or None, route, decision, cache, usage, error, costs, self._limited, parts, self._trace,
            user,
        )  # fmt: skip
        doors.telemetry.record(record)
        doors.records.keep(record, policy, request)
        if (within := policy.record.retry_within) and request:
            doors.retries.saw(record, request, policy, within)
        if candidate := doors.policy.candidate:
            doors.comparison.saw(record, request, policy, candidate)
