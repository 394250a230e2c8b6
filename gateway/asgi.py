"""How is an exchange served over ASGI?   On any ASGI server; all other paths go to the app behind it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from gateway.api import Exchange
from gateway.certificate import Certificate
from gateway.dialects import DIALECTS
from gateway.doors import Doors
from gateway.errors import Overloaded, TooLarge
from gateway.ids import request_id
from gateway.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]
Running = Callable[[], AbstractAsyncContextManager[None]]

log = logging.getLogger("gateway")


class Front:
    """The ASGI app. The paths of DIALECTS are served here, all others by `rest`, which gets a HEAD request as a GET,
    and the request's id in its scope.

    `running` is the lifespan of the gateway, as a context; a server enters it through `rest`. `reload` has the policy's
    file read at once.
    """

    def __init__(
        self, doors: Doors, settings: Settings, rest: ASGI, running: Running, reload: Callable[[], None]
    ) -> None:
        self.doors, self.settings, self._rest, self.running, self.reload = doors, settings, rest, running, reload
        self.certificate: Certificate | None = None  # what the server shows

    def leave(self) -> None:
        """From here on /ready says no."""
        self.doors.leaving = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
        elif scope["path"] in DIALECTS:
            wire = AsgiWire(scope, receive, send)
            await Exchange(self.doors, self.settings, wire, asyncio.current_task()).run()
        else:
            method, name = "GET" if scope["method"] == "HEAD" else scope["method"], request_id(_headers(scope))
            await self._rest({**scope, "method": method, "request_id": name}, receive, _naming(name, send))


class Lazy:
    """An app that is created at its first request, in a thread, so that streams are not held up. Requests that arrive
    meanwhile wait for it. If creating it fails they raise that error, and the next request tries again. Modules that no
    longer belong to those loaded before, as while an update is installed, are an Overloaded.
    """

    def __init__(self, make: Callable[[], ASGI]) -> None:
        self._make = make
        self._making: asyncio.Future[ASGI] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._making is None or (self._making.done() and self._making.exception()):
            self._making = asyncio.ensure_future(asyncio.to_thread(self._make))
        try:
            app = await asyncio.shield(self._making)
        except ImportError as error:
            log.warning("a part of the gateway cannot be loaded (%s): if its files were replaced, restart it", error)
            raise Overloaded("The gateway's files are not those that it was started from.", retry_after=5.0) from error
        await app(scope, receive, send)


class AsgiWire:
    """A Wire to a caller behind an ASGI server. A task waits for the caller's next message: only that shows that it has
    left."""

    push = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method, self.path, self.headers = str(scope["method"]), str(scope["path"]), _headers(scope)
        self._receive, self._send = receive, send
        self._watching: asyncio.Task[None] | None = None
        self._head: Message | None = None
        self.moved = 0.0

    def ready(self) -> bytes | None:
        return None

    async def read(self, limit: int) -> bytes | None:
        whole, more = bytearray(), True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            whole += message.get("body", b"")
            more = message.get("more_body", False)
            if len(whole) > limit:
                raise TooLarge(f"The request body is over {limit} bytes.")
        return bytes(whole)

    def watch(self, left: Callable[[], None]) -> None:
        self._watching = asyncio.create_task(self._until_left(left))

    def unwatch(self) -> None:
        if self._watching:
            self._watching.cancel()
            self._watching = None  # it remembers where it was cancelled, and with that this wire: a cycle

    async def _until_left(self, left: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        left()

    def start(self, status: int, headers: bytes, length: int | None = None) -> None:
        told = [line.split(b": ", 1) for line in headers.split(b"\r\n")[:-1]]
        if length is not None:
            told.append([b"content-length", b"%d" % length])
        self._head = {"type": "http.response.start", "status": status, "headers": told}

    async def write(self, data: bytes, more: bool) -> None:
        head, self._head = self._head, None
        if head:
            await self._send(head)
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.moved = asyncio.get_running_loop().time()


def _headers(scope: Scope) -> dict[str, str]:
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}


def _naming(name: str, send: Send) -> Send:
    """`send`, with the header x-request-id added to the answer."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-request-id", name.encode())]}
        await send(message)

    return named
