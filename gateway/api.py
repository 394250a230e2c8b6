"""How do bytes become a request, and a reply bytes again?   The HTTP edge."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

from gateway import sse
from gateway.answer import answer
from gateway.body import read
from gateway.cache import Flights
from gateway.errors import BadRequest, Forbidden, Refusal, TooLarge, TooSlow, WrongMethod
from gateway.keys import Keys, identify
from gateway.policy import Policy
from gateway.pricing import lines, plan_of
from gateway.records import Records
from gateway.relay import explained_events, explained_json, explanation, told, version, withheld
from gateway.settings import Settings
from gateway.splice import refuse_links
from gateway.standing import OverLimit
from gateway.store import Store
from gateway.telemetry import Telemetry
from gateway.types import Caller, ChatRequest, Headers, Record, Reply
from gateway.upstream import Upstream

# What a path's request must hold, and what of the other path's it must not: two readers could read two prompts.
PATHS = {"/v1/chat/completions": ("messages", "prompt"), "/v1/completions": ("prompt", "messages")}
LEFT = 499  # nginx's status for a caller who left before the answer was complete
JSON: Headers = [(b"content-type", b"application/json")]
STREAMED: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]
log = logging.getLogger("gateway")
draw = SystemRandom().random  # a caller must not be able to foresee what is explored


@dataclass(slots=True)
class Doors:
    """What the request path needs from outside. `policy` is replaced whole; a request keeps the one it began with."""

    policy: Policy
    store: Store
    upstream: Upstream
    flights: Flights
    keys: Keys
    telemetry: Telemetry
    records: Records


class Front:
    """The ASGI app: the completion paths are served here, all others by `rest`, which needs to know no HEAD."""

    def __init__(self, doors: Doors, rest: ASGI, settings: Settings) -> None:
        self._doors, self._rest, self._settings = doors, rest, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
        elif scope["path"] in PATHS:
            await Exchange(self._doors, self._settings, scope, (receive, send)).run()
        else:
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._rest({**scope, "method": method}, receive, _naming(request_id(_headers(scope)), send))


class Exchange:
    """One request and its answer on one connection."""

    def __init__(self, doors: Doors, settings: Settings, scope: Scope, line: tuple[Receive, Send]) -> None:
        self._doors, self._settings = doors, settings
        self._receive, self._send = line
        self._policy = doors.policy
        self._started = time.perf_counter()
        self._path, self._method = str(scope["path"]), str(scope["method"])
        self._headers = _headers(scope)
        self._id = request_id(self._headers)
        self._caller: Caller | None = None
        self._request: ChatRequest | None = None
        self._reply: Reply | None = None
        self._uploading = 0.0
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
            task = asyncio.current_task()
            if not self._left or not task or task.uncancel() > 0:
                raise
        except Refusal as refusal:
            await self._refuse(refusal)
        except Exception:
            log.exception("request %s failed", self._id)
            await self._refuse(Refusal("The gateway failed.", code="internal_error"))
        finally:
            if self._reply:
                await self._reply.close()
            self._record()

    async def _serve(self) -> None:
        doors = self._doors
        if self._method != "POST":
            raise WrongMethod(f"This path takes POST, not {self._method[:16]}.")
        self._caller = await identify(self._headers.get("authorization"), doors.keys, self._policy.callers)
        data = await self._body()
        if data is None:
            self._left = True
            return
        self._request = request = self._read(data, self._caller)
        watch = asyncio.create_task(self._watch(asyncio.current_task()))
        try:
            self._reply = await answer(request, self._policy, doors.store, doors.upstream, doors.flights)
            await (self._stream(self._reply) if self._reply.stream else self._whole(self._reply))
        finally:
            watch.cancel()

    async def _body(self) -> bytes | None:
        """The request's body; None when the caller left before its end. Raises TooLarge, TooSlow."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                return await self._received(self._settings.max_body)
        except TimeoutError:
            raise TooSlow(f"The request was not complete after {self._settings.body_timeout:g} s.") from None
        finally:
            self._uploading = time.perf_counter() - started

    async def _received(self, limit: int) -> bytes | None:
        length = self._headers.get("content-length", "")
        parts, size, more = [], 0, True
        if length.isascii() and length.isdigit() and int(length[:20]) > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > limit:
                raise TooLarge(f"The request body is over {limit} bytes.")
        return b"".join(parts)

    def _read(self, data: bytes, caller: Caller) -> ChatRequest:
        body, fields = read(data)
        wanted, foreign = PATHS[self._path]
        if body.raw(foreign) is not None:
            raise BadRequest(f"'{foreign}' does not belong to {self._path}.", param=foreign)
        if body.raw(wanted) is None or fields.messages == []:
            raise BadRequest(f"'{wanted}' is missing or empty.", param=wanted)
        told = (self._id, caller, self._path, body, fields, self._headers, self._started)
        request = ChatRequest(*told, chance=draw())
        refuse_links(request)
        if self._explained and not plan_of(caller, self._policy).explain:
            raise Forbidden("Your API key may not ask for explanations.", code="explain_not_allowed")
        return request

    async def _watch(self, serving: "asyncio.Task[None] | None") -> None:
        """A caller who leaves cancels the work for it, whatever it waits for."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        if serving:
            serving.cancel()

    async def _whole(self, reply: Reply) -> None:
        data = b"".join([chunk async for chunk in reply.chunks])
        headers = self._answered(reply)
        if self._explained and reply.status == 200:
            data = explained_json(data, explanation(reply, self._policy, self._overhead or 0.0))
        self._ttft = time.perf_counter() - self._started
        await self._start(reply.status, [*headers, (b"content-length", b"%d" % len(data))])
        await self._write(data, more=False)

    async def _stream(self, reply: Reply) -> None:
        """Each write waits for the caller to take what came before; who takes nothing for too long is left."""
        await self._start(reply.status, self._answered(reply) + STREAMED)
        try:
            async with asyncio.timeout(self._policy.tiers[reply.tier].timeouts.total):
                await self._chunks(reply)
        except TimeoutError:
            self._error, self._left = "reader_too_slow", True

    async def _chunks(self, reply: Reply) -> None:
        async for chunk in reply.chunks:
            if self._ttft is None:
                self._ttft = time.perf_counter() - self._started
            await self._write(self._explaining(reply, chunk) if self._explained else chunk, more=True)
        await self._write(b"", more=False)

    def _explaining(self, reply: Reply, events: bytes) -> bytes:
        if not self._request or sse.DONE not in events:
            return events
        model = self._policy.tiers[reply.tier].model
        decision = explanation(reply, self._policy, self._overhead or 0.0)
        return explained_events(events, self._request, model, decision)

    async def _refuse(self, refusal: Refusal) -> None:
        """Before the first byte an error object; after it an error event, and the end."""
        self._error = refusal.code or refusal.type
        self._limited = refusal.limit if isinstance(refusal, OverLimit) else None
        if self._status:
            if self._reply and self._reply.stream:
                await self._write(sse.event(refusal.body()), more=False)
            return
        body = refusal.body()
        headers = JSON + refusal.headers() + self._answered(self._reply)
        await self._start(refusal.status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._write(body, more=False)

    def _answered(self, reply: Reply | None) -> Headers:
        """The headers of an answer; the time before its first byte ends here."""
        ours = time.perf_counter() - self._started - self._uploading - (reply.waited if reply else 0.0)
        self._overhead = max(0.0, ours)
        headers = told(self._id, self._policy, reply, self._overhead) + (reply.headers if reply else [])
        return headers + (withheld(self._request, self._policy) if self._request and reply else [])

    @property
    def _explained(self) -> bool:
        return self._headers.get("x-route-explain") == "1"

    async def _start(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self._status = status

    async def _write(self, data: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _record(self) -> None:
        reply, request = self._reply, self._request
        record = Record(
            id=self._id,
            path=self._path,
            status=LEFT if self._left else self._status,
            seconds=time.perf_counter() - self._started,
            overhead=self._overhead,
            policy=version(self._policy),
            ttft=self._ttft,
            caller=self._caller,
            model=request.fields.model or "auto" if request else None,
            stream=bool(request and request.fields.stream),
            tier=reply.tier or None if reply else None,
            route=reply.route if reply else None,
            decision=reply.decision if reply else None,
            cache=reply.cache if reply else "bypass",
            usage=reply.usage if reply else None,
            costs=lines(request, self._policy) if request else (),
            limited=self._limited,
            error=self._error or ("upstream_error" if reply and reply.usage.failed else None),
        )
        self._doors.telemetry.record(record)
        self._doors.records.keep(record, self._policy)


def request_id(headers: dict[str, str]) -> str:
    """The caller's id for the request if it is in our form, else one of ours."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def _headers(scope: Scope) -> dict[str, str]:
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}


def _naming(name: str, send: Send) -> Send:
    """`send`, which puts the request's id on the answer."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-request-id", name.encode())]}
        await send(message)

    return named
