"""Is this a valid request, sent in time?   What is slow, oversized or ambiguous never reaches the app."""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.closing import ClosingCycle, closing_head
from gateway.dialects import CHAT, DIALECTS
from gateway.errors import BadRequest, HeadTooLarge, Refusal, TooLarge, TooSlow, unread
from gateway.head import checked_headers, out_of_url, without_upgrade
from gateway.ids import request_id
from gateway.settings import Settings

MAX_HEAD = 32 * 1024  # bytes of request line and headers; of trailers and chunk framing as well
MAX_FIELDS = 128  # headers of a request: each takes 200 bytes here, however little is in it
MAX_WAITING = 100  # requests of a connection that wait for the answers to those before them: each takes 1 KB
MIN_RATE = 16 * 1024  # bytes a second; a body that is slower has `request_timeout` seconds in all
HIGH_WATER = 64 * 1024  # bytes of a body that lie here before reading is paused
CONTENT = 8  # bytes of a chunked body for each of its framing: a piece takes 80 bytes here, however little is in it
SLACK = 128 * 1024  # bytes over the limit that may be under way when the app refuses a body by itself
LINGER = 2.0  # seconds to read on after a refusal: closing over unread bytes would take it from the caller
HEAD_LIMITS = f"The request's head is over {MAX_HEAD} bytes or {MAX_FIELDS} headers."


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with strict parsing and time limits.

    Timers run only while the caller owes something: the rest of a request, within `request_timeout`, or reading what
    was written to it, within `stall_timeout`. A refusal waits for the answers to the requests before it, then closes
    the connection; `refused` is called with its status."""

    __slots__ = (  # beside uvicorn's, they would be more than Python finds quickly
        "_again", "_began", "_body", "_came", "_hosts", "_idle_since", "_in_body", "_in_head", "_now", "_over", "_read",
        "_receiving", "_refusal", "_refused", "_settings", "_since", "_stalling", "_unanswered", "told", "version",
    )  # fmt: skip

    def __init__(self, settings: Settings, refused: Callable[[str], None], **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._settings, self._refused = settings, refused
        self.url, self.version = b"", ""  # the request's target and version of HTTP
        self.timeout_keep_alive = settings.idle_timeout  # type: ignore[assignment]  # a float will do
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        self._receiving: asyncio.TimerHandle | None = None
        self._stalling: asyncio.TimerHandle | None = None
        self._since = 0.0  # when the caller began to owe us a request
        self._idle_since = 0.0  # when the last answer ended; 0 while something is under way
        self.told: dict[str, str] = {}  # the request's headers, names in lower case; of several the last one
        self._read = self._body = 0  # bytes of this request, of its body
        self._came = self._began = 0  # bytes that came last, and with the first of this request: of others, too
        self._in_head = self._in_body = self._over = False
        self._unanswered = 0  # requests whose head came
        self._again = b""  # the head of a request that is to be read again
        self._now: RequestResponseCycle | None = None  # that the app serves; `cycle` is the one begun last
        self._refusal: Refusal | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._received()
        self._unstall()
        self._unset_keepalive_if_required()
        if self._now and not self._now.response_complete:
            self.cycle = self._now  # the only one that uvicorn tells
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._over or self._refusal:
            return
        self._idle_since = 0.0
        self._came = len(data)
        self._read += self._came
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._again:
                self._read_again(data[offer.args[0] :])
                return
            self.cycle.keep_alive = False
            self._over = True  # what follows would be another protocol
        except httptools.HttpParserError as error:
            self._fail(unread(error.__context__))
            return
        if self._in_head or self._in_body or self._receiving or not self._unanswered:
            self._measure()

    def _measure(self) -> None:
        """Checks how much has come of the request, and starts or stops its timer."""
        if self._in_head and (self._read > MAX_HEAD or len(self.headers) > MAX_FIELDS):
            self._fail(HeadTooLarge(HEAD_LIMITS))
        elif self._in_body and self._body > self._settings.max_body + SLACK:
            self._fail(TooLarge(f"The request body is over {self._settings.max_body} bytes."))
        elif self._in_body and self._read - self._body > 2 * MAX_HEAD + self._body // CONTENT:
            self._fail(BadRequest("The chunks of the request are too small for what is in them."))
        elif self._in_body or (not self._unanswered and (self._in_head or self._read)):
            self._expect()
        else:
            self._received()
            if not self._unanswered:  # it was answered before it was complete
                self._rest()

    # -- what the parser finds
    def on_message_begin(self) -> None:
        self.url, self.headers = b"", []
        self._in_head, self._body, self._began = True, 0, self._came

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer, which may not pass for a header
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._check()
        self._in_head = False
        if self._unanswered > MAX_WAITING:
            raise BadRequest(f"More than {MAX_WAITING} requests wait for the answers to those before them.")
        if self.parser.should_upgrade() and not self.told.keys().isdisjoint(("content-length", "transfer-encoding")):
            self._decline()
            return
        self._in_body = True
        self._unanswered += 1
        self.begin()

    def _decline(self) -> None:
        """A body comes with an offer of another protocol, as every Java client makes one (h2c). The parser takes what
        follows for that protocol, so that another one gets to read the request again, without the offer."""
        if "upgrade" not in self.told:  # CONNECT: to read it again would end nowhere
            raise BadRequest("This server opens no tunnels.")
        if self._unanswered:
            raise BadRequest("A request that offers another protocol waits for the answers to those before it.")
        self._again = without_upgrade(self.parser.get_method(), self.url, self.version, self.headers)

    def _read_again(self, rest: bytes) -> None:
        head, self._again, self.parser = self._again, b"", httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self.data_received(head + rest)

    def begin(self) -> None:
        """Start the cycle of the request whose head has come, or queue it behind those before it."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope, which not every request needs
        self.headers += [(name.lower(), value) for name, value in headers]
        self.url, self.expect_100_continue = url, expects
        super().on_headers_complete()
        self.scope["path"] = self.scope["raw_path"].decode()  # escapes stay: each path has one spelling
        if not self.cycle.keep_alive:
            self.cycle.__class__ = ClosingCycle  # uvicorn made it, and asks nobody of which kind

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._now = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._read = False, 0
        if not self._again:
            super().on_message_complete()

    def _check(self) -> None:
        """Checks the head. Raises Refusal for one that is too large, ambiguous, or for another host."""
        size = self._read + self._began
        if size > MAX_HEAD:  # the head may not have come alone
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD or len(self.headers) > MAX_FIELDS:
            raise HeadTooLarge(HEAD_LIMITS)
        self.version = self.parser.get_http_version()
        if not self.url.startswith(b"/") or 35 in self.url:  # a #
            self.url, self.headers = out_of_url(self.url, self.headers, self.version)
        self.told = checked_headers(self.headers, self.version, self._hosts)
        self.expect_100_continue = self.told.get("expect", "").lower() == "100-continue" and self.version != "1.0"

    # -- timers
    def _expect(self) -> None:
        """The caller owes a request, or the rest of one: its timer starts, unless it runs."""
        if self._receiving is None:
            self._since = self.loop.time()
            self._receiving = self.loop.call_later(self._settings.request_timeout, self._late)

    def _received(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _late(self) -> None:
        self._receiving = None
        now, allowed = self.loop.time(), self._settings.request_timeout + self._body / MIN_RATE
        if self.flow.read_paused:  # we do not read, so the caller cannot send
            self._expect()
        elif self._unanswered and now < self._since + allowed:
            self._receiving = self.loop.call_at(self._since + allowed, self._late)
        else:
            self._fail(TooSlow("The request was not complete in time."))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._unstall()

    def _stall(self) -> None:
        if self._stalling is None:
            self._stalling = self.loop.call_later(self._settings.stall_timeout, self.transport.abort)

    def _unstall(self) -> None:
        if self._stalling is not None:
            self._stalling.cancel()
            self._stalling = None

    def timeout_keep_alive_handler(self) -> None:
        """A timer that fires too early is cheaper than one made and cancelled for each request."""
        self.timeout_keep_alive_task = None
        if not self._idle_since:
            return
        if (due := self._idle_since + self.timeout_keep_alive) > self.loop.time():
            self.timeout_keep_alive_task = self.loop.call_at(due, self.timeout_keep_alive_handler)
            return
        super().timeout_keep_alive_handler()
        self._stall()

    # -- the end of an answer, or of the connection
    def on_response_complete(self) -> None:
        self._unanswered -= 1
        closing = self.transport.is_closing()
        if closing:
            self._stall()
        if self._refusal and not self._unanswered:
            self._refuse(self._refusal)
            return
        self.server_state.total_requests += 1
        if closing:
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self._in_head or self._in_body:
            self._owed()
        elif not self._unanswered:
            self._rest()

    def _owed(self) -> None:
        """More of a request is to come. One that has its answer already may have been the connection's last."""
        if self._in_body and not self._unanswered and (self.version == "1.0" or not self.parser.should_keep_alive()):
            self._hang_up()
        elif not self._refusal:
            self._expect()

    def _rest(self) -> None:
        """The connection is idle: its keep-alive timer starts."""
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            due = self._idle_since + self.timeout_keep_alive
            self.timeout_keep_alive_task = self.loop.call_at(due, self.timeout_keep_alive_handler)

    def _fail(self, refusal: Refusal) -> None:
        """Refuse what is being received, after the answers to what came before it."""
        self._received()
        begun = self._in_body and not self.cycle.response_complete
        if begun and self._unanswered > 1:
            self.pipeline.popleft()  # the newest
            self._unanswered -= 1
        elif begun:
            self.cycle.disconnected, self.cycle.waiting_for_100_continue = True, False  # it may send nothing more
            self.cycle.message_event.set()
            self._unanswered -= 1
        if self._unanswered:
            self._refusal = refusal
        elif self._in_body and self.cycle.response_started:
            self._hang_up()  # this request has had its answer
        else:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        self._refused(str(refusal.status))
        told, parser = self.told if self._in_body else {}, self.parser  # else they are those of a request before
        answers = DIALECTS.get(self.url.partition(b"?")[0].decode("latin-1"), DIALECTS[CHAT]).answers
        body, named = answers.error(refusal), request_id(told).encode()
        ids = [(name, named) for name in (b"x-request-id", answers.id_name) if name]
        head = closing_head(refusal.status, len(body), [*self.server_state.default_headers, *ids])
        self.transport.write(head if parser and parser.get_method() == b"HEAD" else head + body)
        self._hang_up()

    def _hang_up(self) -> None:
        """Writes no more; what still comes is dropped, and the connection closed after LINGER seconds."""
        self._over, self.headers = True, []
        self._received()
        self.flow.resume_reading()
        self.transport.write_eof() if self.transport.can_write_eof() else self.transport.close()
        self._receiving = self.loop.call_later(LINGER, self.transport.abort)
