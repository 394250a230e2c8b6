"""How does a model server's answer become a Reply, or a failure before its first byte?"""

import logging
import time
from email.utils import parsedate_to_datetime
from typing import Any

from gateway.done import nothing
from gateway.errors import LONGEST_WAIT, BadRequest, Overloaded, Refusal, UpstreamAuth, UpstreamFailed, UpstreamTimeout
from gateway.http1 import Response, TransportError
from gateway.reply import Reply
from gateway.stream import Events, broken, read_whole
from gateway.types import Bill, ChatRequest, Headers, Usage
from gateway.upstream.open_call import OpenCall
from gateway.upstream.places import LONGEST_ADVICE, RETRY_AFTER

PASSED = (b"content-type", b"retry-after", b"retry-after-ms", b"x-should-retry")
STREAM = b"text/event-stream"
LOOKED_AT = frozenset({*PASSED, b"x-request-id", b"content-encoding"})
MOST_VALUE = 256  # bytes of such a header: longer ones are left out, as some callers read no line of 8 KB
log = logging.getLogger("gateway")


class Failed(Exception):
    """A call to a tier failed. `kind` is one of `failover.on`; None: no other tier is to be tried.

    `void`: the server used nothing. `ours`: our configuration is to blame, so another replica would fail too. `still`:
    the server stands still, and another one's answer is paid for by the retry budget.
    """

    def __init__(self, kind: str | None, refusal: UpstreamFailed | Overloaded, void: bool = True) -> None:
        super().__init__(refusal.message)
        self.kind, self.refusal, self.void = kind, refusal, void
        self.ours, self.still = isinstance(refusal, UpstreamAuth), False


def failure(opened: OpenCall, error: TransportError | UpstreamFailed | Failed) -> Failed:
    """The failure of a call that broke. Its replica's breaker counts it, unless our configuration is to blame."""
    if not (isinstance(error, Failed) and error.ours):
        opened.failed(error)
    if isinstance(error, Failed):
        return error
    if isinstance(error, TransportError) and error.kind == "connect":
        return Failed("connect", broken(error))
    told = broken(error) if isinstance(error, TransportError) else error
    failed = Failed("first_byte" if isinstance(told, UpstreamTimeout) else "5xx", told, void=False)
    failed.still = isinstance(error, TransportError) and error.kind == "still"
    return failed


def is_busy(reply: Reply) -> bool:
    """A 429 that does not forbid to try elsewhere (x-should-retry: false)."""
    return reply.status == 429 and (b"x-should-retry", b"false") not in reply.headers


def accepted(opened: OpenCall, response: Response, streams: bool) -> tuple[Headers, bool]:
    """The server's headers that the caller gets, and whether a stream follows; `streams`: one was asked for. Raises
    Failed for what is no answer to pass on."""
    status = response.status
    if status >= 500 or status in (401, 403):
        raise _failed(response, opened)
    headers: Headers = []
    kind = coding = b""  # the first one, where a header comes twice
    for name, value in response.headers:
        if name not in LOOKED_AT or len(value) > MOST_VALUE:
            continue
        if name == b"content-type":
            kind = kind or value
        elif name == b"content-encoding":
            coding = coding or value
        else:
            headers.append((b"x-upstream-request-id" if name == b"x-request-id" else name, value))
    if kind:
        headers.append((b"content-type", kind))
    unlike = kind.startswith(STREAM) != streams and kind.lower().startswith(STREAM) != streams  # in any case, RFC 9110
    odd = 200 < status < 400 or (status == 200 and unlike)
    if odd or coding not in (b"", b"identity"):
        refusal = UpstreamFailed("The model server's answer is in a form that was not asked for.")
        raise Failed("5xx", refusal, void=status != 200)
    return headers, streams and status == 200


def retry_after(response: Response) -> float:
    """The seconds for which a busy server asks to be left alone; RETRY_AFTER where it does not say."""
    told = response.header(b"retry-after")
    if told.isdigit():
        return min(float(told), LONGEST_WAIT)
    try:
        seconds = parsedate_to_datetime(told.decode("latin-1")).timestamp() - time.time()
    except (ValueError, OverflowError):
        return RETRY_AFTER
    return min(max(seconds, RETRY_AFTER), LONGEST_WAIT)


def advice(response: Response) -> float:
    """The same, as far as it is obeyed."""
    return min(retry_after(response), LONGEST_ADVICE)


def whole_reply(response: Response, headers: Headers, data: bytes, bill: Bill, holds: bytes) -> Reply:
    """The server's whole answer as a Reply, with nothing left open. Raises UpstreamFailed, also for a 200 without what
    every answer of the dialect `holds`: an error disguised as success, or something that is no model server."""
    read_whole(data, response.status, bill.usage)
    if response.status == 200 and data.find(holds) < 0:
        raise UpstreamFailed("The model server failed before it answered.")
    return Reply(response.status, headers, data, False, bill.tier, nothing, bill.usage)


async def stream_reply(
    request: ChatRequest, opened: OpenCall, response: Response, headers: Headers, usage: Usage
) -> Reply:
    """Waits for the first events, as a stream that fails before them can still fail over. The reply then owns the
    call. Raises UpstreamFailed, Failed.
    """
    asked = (request.fields.stream_options or {}).get("include_usage") is True
    events = Events(response, usage, request.dialect.answers, not asked, opened.failed)
    await events.more()
    if events.quiet():
        await events.said()
    if events.error is not None:
        if said := faulted(events.error):
            body = request.dialect.answers.error(BadRequest(said))
            return Reply(400, [(b"content-type", b"application/json")], body, False, opened.tier, nothing, usage)
        raise Failed("5xx", UpstreamFailed("The model server failed before it answered."), void=False)
    return Reply(200, headers, events, True, opened.tier, opened.shut, usage)


def faulted(error: Any) -> str:
    """What a server says is wrong with the request itself; "": nothing. SGLang begins the stream of a message before it
    looks at the request (0.5.23)."""
    if not isinstance(error, dict) or (error.get("type") != "invalid_request_error" and error.get("code") != 400):
        return ""
    return str(error.get("message") or "The model server refused the request.")


def refused(refusal: Refusal, kind: str | None, started: float) -> Reply:
    """The reply for a tier that failed by `kind`; `started` in seconds of perf_counter."""
    reply = Reply.refused(refusal)
    reply.waited, reply.failure = time.perf_counter() - started, kind
    return reply


def _failed(response: Response, opened: OpenCall) -> Failed:
    """The failure for a server's 5xx, or for its refusal of our key. The server's text is not passed on: it may hold
    host names, paths or other callers' data.
    """
    if response.status in (401, 403):
        told = "tier %s: %s refuses its key (status %d): see api_key_env"
        log.error(told, opened.tier, opened.replica.origin.authority, response.status)
        return Failed("5xx", UpstreamAuth("The model server does not accept the gateway's key."))
    final = response.header(b"x-should-retry") == b"false"
    if response.status != 503:
        refusal = UpstreamFailed(f"The model server failed (status {response.status}).")
        return Failed(None if final else "5xx", refusal)
    overloaded = Overloaded("The model server is overloaded.", retry_after=retry_after(response))
    overloaded.should_retry = False if final else None
    return Failed(None if final else "overloaded", overloaded)
