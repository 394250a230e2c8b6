"""The simulator as an ASGI application: which code answers a request, and with which fault?"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

import msgspec

from backends.sim import dialects, generate, plan, replies, responses
from backends.sim.engine import Engine, Sequence
from backends.sim.engines import adapted, deciding
from backends.sim.faults import NONE, Fault, Faults, error_type, from_header
from backends.sim.metrics import Metrics
from backends.sim.models import model_list, tokenized
from backends.sim.prompt import chat_prompt, completion_prompt, thinks
from backends.sim.protocol import DETAIL, ChatRequest, CompletionRequest, Request, RequestError, check, decode
from backends.sim.settings import Settings
from backends.sim.state import Entry, State
from backends.sim.wire import Cut, Receive, Scope, Send, Wire

VERSION = "0.33.0"
Call = Callable[[Scope, bytes, Wire], Awaitable[None]]
SPOKEN: dict[str, tuple[Callable[..., Awaitable[None]], Callable[..., Awaitable[None]]]] = {
    "/v1/messages": (dialects.message_stream, dialects.message),
    "/v1/responses": (responses.stream, responses.whole),
}


class Simulator:
    """The ASGI application: one simulated vLLM server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = Engine(settings)
        self.metrics = Metrics(settings)
        self.state = State(settings.record_bodies)
        self.faults = Faults(settings.failure_injection_rate, settings.seed)
        self._routes: dict[str, dict[str, Call]] = {
            "/v1/chat/completions": {"POST": self._generate},
            "/v1/completions": {"POST": self._generate},
            "/v1/decisions": {"POST": self._generate},
            "/v1/messages": {"POST": self._generate},
            "/v1/messages/count_tokens": {"POST": self._count},
            "/v1/responses": {"POST": self._generate},
            "/v1/embeddings": {"POST": self._embed},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/health": {"GET": self._health},
            "/version": {"GET": self._version},
            "/metrics": {"GET": self._metrics},
            "/admin": {"DELETE": self._reset},
            "/admin/config": {"GET": self._config, "POST": self._configure, "DELETE": self._unconfigure},
            "/admin/state": {"GET": self._state, "DELETE": self._forget},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        body = await _body(receive)
        if body is None:
            return
        wire = Wire(scope, send, NONE, self._reply_headers(scope))
        work = asyncio.ensure_future(self._answer(scope, body, wire))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.cancel()
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()

    def _reply_headers(self, scope: Scope) -> dict[str, str]:
        given = _header(scope, b"x-request-id")
        return {"x-request-id": given} if given and self.settings.enable_request_id_headers else {}

    async def _answer(self, scope: Scope, body: bytes, wire: Wire) -> None:
        try:
            await self._route(scope)(scope, body, wire)
        except RequestError as error:
            told = error.body()
            if scope["path"].startswith("/v1/messages"):
                told = {"type": "error", "error": {"type": error.kind, "message": error.message}}
            await wire.json(error.status, told)
        except RecursionError:
            await wire.json(400, RequestError("The body is nested too deeply.").body())
        except Cut:
            wire.cut()

    def _route(self, scope: Scope) -> Call:
        """What serves this path and method. Raises RequestError."""
        path, key = scope["path"], self.settings.api_key
        methods = self._routes.get(path)
        if methods is None:
            raise RequestError("Not Found", status=404, kind=DETAIL)
        if scope["method"] not in methods:
            raise RequestError("Method Not Allowed", status=405, kind="Method Not Allowed")
        if key and path.startswith("/v1") and _header(scope, b"authorization") != f"Bearer {key}":
            return _unauthorized
        return methods[scope["method"]]

    async def _generate(self, scope: Scope, body: bytes, wire: Wire) -> None:
        """Answer a generating request; its entry in the state is closed however it ends."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"] if k != b"authorization"}
        given = _header(scope, b"x-request-id") or replies.new_id()
        entry = self.state.open(given, scope["path"], headers, body)
        entry.kind = "triage" if scope["path"] == "/v1/decisions" else "answer"
        try:
            await self._generate_entry(scope, body, wire, entry)
            entry.phase = "done"
            self.state.close(entry, "finished")
        except asyncio.CancelledError:
            self.state.close(entry, "aborted")
            raise
        except RequestError as error:
            entry.status = error.status
            raise
        finally:
            self.state.close(entry, "errored")

    async def _generate_entry(self, scope: Scope, body: bytes, wire: Wire, entry: Entry) -> None:
        request = self._read(scope, body)
        known = plan.asked(request, self.settings)
        own = _own_fault(scope)
        fault = wire.fault = self.faults.take(known.triage, own)
        entry.kind, entry.streamed = "triage" if known.triage else "answer", bool(request.stream)
        entry.thinking, entry.p_complex = known.thinking, known.verdict.p_complex if known.verdict else None
        if _header(scope, b"x-request-id") is None:
            entry.id = request.request_id or entry.id
        stalled = known.triage and fault.verdict == "stall"
        await asyncio.sleep(fault.stall if stalled else fault.stall_first)
        failing = fault.status or (503 if known.triage and fault.verdict == "status" else None)
        if failing:
            _fail(failing, fault, wire)
        sequence = Sequence(self._prompt(request, known.thinking), request.cache_salt or "", request.priority)
        entry.prompt_tokens = len(sequence.tokens)
        self._fits(request, entry.prompt_tokens)
        made = plan.plans(request, known, self.settings, fault)
        generation = generate.Generation(self.engine, self.metrics, sequence, made, entry)
        shaped = replies.shape(request, self.settings, entry.id, self._tells(fault))
        entry.status = 200
        if scope["path"] == "/v1/decisions":
            await generate.decision(generation, shaped, list(known.constraint.choices), wire)
            return
        stream, whole = SPOKEN.get(scope["path"], (partial(generate.stream, request=request), generate.whole))
        await (stream if request.stream else whole)(generation, shaped, wire=wire)

    def _tells(self, fault: Fault) -> bool:
        """Whether the server returns logprobs when they are requested."""
        return not fault.no_logprobs and self.settings.engine != "transformers"

    def _read(self, scope: Scope, body: bytes) -> Request:
        """The request, checked as vLLM checks it. Raises RequestError."""
        kind = (_header(scope, b"content-type") or "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError("Unsupported Media Type: Only 'application/json' is allowed")
        request: Request
        if scope["path"] == "/v1/decisions":
            request = deciding(body, self.settings)
        elif scope["path"] in dialects.SHAPES:
            request = dialects.as_chat(scope["path"], body)
        else:
            chat = scope["path"] == "/v1/chat/completions"
            request = decode(body, ChatRequest) if chat else decode(body, CompletionRequest)
        if request.model and request.model not in self.settings.served_model_name:
            message = f"The model `{request.model}` does not exist."
            raise RequestError(message, "model", status=404, kind="NotFoundError")
        check(request)
        return adapted(request, self.settings.engine, body)

    def _prompt(self, request: Request, thinking: bool) -> list[str]:
        if isinstance(request, ChatRequest):
            return chat_prompt(request, thinking)
        return completion_prompt(request)

    def _fits(self, request: Request, prompt: int) -> None:
        """Raises RequestError when prompt and output do not fit the context."""
        most, wanted = self.settings.max_model_len, request.limit() or 1
        if prompt + wanted <= most:
            return
        message = (
            f"This model's maximum context length is {most} tokens. However, you requested {wanted} output tokens and "
            f"your prompt contains at least {prompt} input tokens, for a total of at least {prompt + wanted} tokens. "
            "Please reduce the length of the input prompt or the number of requested output tokens. "
            f"(parameter=input_tokens, value={prompt})"
        )
        raise RequestError(message, "input_tokens")

    async def _count(self, scope: Scope, body: bytes, wire: Wire) -> None:
        chat = decode(body, dialects.MessagesRequest).as_chat()
        check(chat)
        await wire.json(200, {"input_tokens": len(chat_prompt(chat, thinks(chat, self.settings.default_thinking)))})

    async def _embed(self, scope: Scope, body: bytes, wire: Wire) -> None:
        await wire.json(200, dialects.embedded(body, self.settings.model))

    async def _models(self, scope: Scope, body: bytes, wire: Wire) -> None:
        await wire.json(200, model_list(self.settings))

    async def _tokenize(self, scope: Scope, body: bytes, wire: Wire) -> None:
        await wire.json(200, tokenized(body, self.settings))

    async def _health(self, scope: Scope, body: bytes, wire: Wire) -> None:
        await wire.whole(200, b"", "text/plain")

    async def _version(self, scope: Scope, body: bytes, wire: Wire) -> None:
        await wire.json(200, {"version": VERSION})

    async def _metrics(self, scope: Scope, body: bytes, wire: Wire) -> None:
        await wire.whole(200, self.metrics.text(self.engine), "text/plain; version=0.0.4; charset=utf-8")

    async def _config(self, scope: Scope, body: bytes, wire: Wire) -> None:
        await wire.json(200, msgspec.to_builtins(self.faults.current))

    async def _configure(self, scope: Scope, body: bytes, wire: Wire) -> None:
        try:
            self.faults.update(decode(body, dict[str, Any]))
        except msgspec.ValidationError as error:
            raise RequestError(str(error)) from error
        await self._config(scope, body, wire)

    async def _reset(self, scope: Scope, body: bytes, wire: Wire) -> None:
        self.faults.reset()
        await self._forget(scope, body, wire)

    async def _unconfigure(self, scope: Scope, body: bytes, wire: Wire) -> None:
        self.faults.reset()
        await self._config(scope, body, wire)

    async def _state(self, scope: Scope, body: bytes, wire: Wire) -> None:
        now = {"running": self.engine.running, "waiting": self.engine.waiting, "cached_blocks": len(self.engine.cache)}
        await wire.json(200, {"tier": self.settings.tier, **now, **self.state.shown()})

    async def _forget(self, scope: Scope, body: bytes, wire: Wire) -> None:
        self.state.reset()
        await self._state(scope, body, wire)


def _fail(status: int, fault: Fault, wire: Wire) -> NoReturn:
    """Raises RequestError for an injected error, whose answer has the fault's Retry-After, if any."""
    if fault.retry_after is not None:
        wire.extra["retry-after"] = f"{fault.retry_after:g}"
    raise RequestError("Simulated error", status=status, kind=error_type(status))


async def _unauthorized(scope: Scope, body: bytes, wire: Wire) -> None:
    await wire.json(401, {"error": "Unauthorized"})


def _own_fault(scope: Scope) -> Fault | None:
    """The fault a request brings in its headers. Raises RequestError."""
    text, status = _header(scope, b"x-sim-fault"), _header(scope, b"x-return-error")
    try:
        if status is not None:
            return Fault(status=msgspec.convert(status, int, strict=False))
        return from_header(text) if text is not None else None
    except msgspec.MsgspecError as error:
        raise RequestError(f"Invalid fault header: {error}") from error


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def _body(receive: Receive) -> bytes | None:
    """The whole request body, or None if the client left before sending it."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
