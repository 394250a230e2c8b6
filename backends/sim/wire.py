"""How is an answer sent, and how do transport faults damage it?"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from backends.sim.faults import Fault
from backends.sim.protocol import JSON

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class Cut(Exception):
    """Raised to end the connection in the middle of an answer."""


class Wire:
    """Sends one response, with the transport faults of `fault` and the headers `extra`."""

    def __init__(self, scope: Scope, send: Send, fault: Fault, headers: dict[str, str]) -> None:
        self._scope, self._send, self.fault, self.extra = scope, send, fault, headers
        self._chunks = 0
        self.started = False

    async def json(self, status: int, body: JSON) -> None:
        """Send a whole JSON body."""
        raw = msgspec.json.encode(body)
        if status == 200 and self.fault.html:
            await self.whole(200, b"<!doctype html><html><body><h1>Welcome</h1></body></html>", "text/html")
            return
        if status == 200 and self.fault.bad_json:
            raw = raw[: len(raw) // 2] if self.fault.bad_json == "truncated" else b'{"id": oops, not json'
        await self.whole(status, raw, "application/json")

    async def whole(self, status: int, raw: bytes, kind: str) -> None:
        """Send a body of known length, or half of it under `cut_after`."""
        await self._start(status, {"content-type": kind, "content-length": str(len(raw))})
        if status == 200 and self.fault.cut_after is not None:
            await self._bytes(raw[: len(raw) // 2], more=True)
            raise Cut
        await self._bytes(raw, more=False)

    async def event(self, body: JSON, name: str = "") -> None:
        """Send one server-sent event, with an event name if given; before the first one, the headers."""
        if not self.started:
            await self._start(200, {"content-type": "text/event-stream; charset=utf-8"})
        await self._trouble()
        self._chunks += 1
        raw = msgspec.json.encode(body)
        if self.fault.malformed_sse and self._chunks % 3 == 0:
            raw = b'{"id": "broken", "choices": [' + raw[:20]
        head = b"event: " + name.encode() + b"\n" if name else b""
        await self._bytes(head + b"data: " + raw + b"\n\n", more=True)

    async def done(self, last: bytes = b"data: [DONE]\n\n") -> None:
        """End the stream with its last event."""
        await self._trouble()
        await self._bytes(b"" if self.fault.no_done else last, more=False)

    async def _trouble(self) -> None:
        """Stall or raise Cut, if so many events have been sent."""
        if self.fault.stall_after is not None and self._chunks == self.fault.stall_after:
            await asyncio.sleep(self.fault.stall)
        if self.fault.cut_after is not None and self._chunks >= self.fault.cut_after:
            raise Cut

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self.started = True
        pairs = [(k.encode(), v.encode("latin-1", "replace")) for k, v in {**headers, **self.extra}.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _bytes(self, raw: bytes, more: bool) -> None:
        size = self.fault.drip_bytes
        if self.fault.drip:
            for start in range(0, len(raw), size):
                await self._send({"type": "http.response.body", "body": raw[start : start + size], "more_body": True})
                await asyncio.sleep(self.fault.drip)
            raw = b""
        await self._send({"type": "http.response.body", "body": raw, "more_body": more})

    def cut(self) -> None:
        """End the connection: by TCP reset, or by a close without the last chunk (which uvicorn does when the
        application returns early, so nothing is done here)."""
        transport = self._scope.get("state", {}).get("transport")
        if transport is None or self.fault.cut_by == "close":
            return
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
