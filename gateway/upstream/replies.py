"""What becomes of a model server's answer?   A reply of ours, or a failure before its first byte."""

import logging

from gateway.errors import LONGEST_WAIT, Overloaded, UpstreamAuth, UpstreamFailed, UpstreamTimeout
from gateway.http1 import Response, TransportError
from gateway.stream import Events, broken, json_answer
from gateway.types import ChatRequest, Headers, Reply, Usage
from gateway.upstream.exchange import Exchange
from gateway.upstream.places import RETRY_AFTER

PASSED = (b"content-type", b"retry-after", b"retry-after-ms", b"x-should-retry")
LOOKED_AT = frozenset({*PASSED, b"x-request-id", b"content-encoding"})
log = logging.getLogger("gateway")


class Failed(Exception):
    """A tier failed in the way `kind`, a member of `failover.on`; None: nobody else is to be asked.

    `void`: before it began to work. `ours`: by its configuration, which no other replica of the tier is better for.
    """

    def __init__(self, kind: str | None, refusal: UpstreamFailed | Overloaded, void: bool = True) -> None:
        super().__init__(refusal.message)
        self.kind, self.refusal, self.void = kind, refusal, void
        self.ours = isinstance(refusal, UpstreamAuth)


def failed(error: TransportError | UpstreamFailed) -> Failed:
    """Of an exchange that broke."""
    if isinstance(error, TransportError) and error.kind == "connect":
        return Failed("connect", broken(error))
    told = broken(error) if isinstance(error, TransportError) else error
    return Failed("first_byte" if isinstance(told, UpstreamTimeout) else "5xx", told, void=False)


def busy(reply: Reply) -> bool:
    """A 429 that leaves it to us whether to try elsewhere."""
    return reply.status == 429 and (b"x-should-retry", b"false") not in reply.headers


async def replied(request: ChatRequest, exchange: Exchange, response: Response, usage: Usage) -> Reply:
    """The server's answer as ours. Raises Failed before the first byte of it."""
    status = response.status
    if status >= 500 or status in (401, 403):
        raise _refused(response)
    headers, kind = _headers(response)
    try:
        if status != 200 or not kind.startswith(b"text/event-stream"):
            data = await json_answer(response, usage)
            return Reply(status, headers, data, False, exchange.tier, exchange.shut, usage)
        asked = (request.fields.stream_options or {}).get("include_usage") is True
        events = Events(response, usage, request.dialect.answers, not asked, exchange.failed)
        await events.more()  # a stream that breaks before its first events can still fail over
    except UpstreamFailed as error:
        raise failed(error) from None
    if events.error is not None:
        raise Failed("5xx", UpstreamFailed("The model server failed before it answered."), void=False)
    return Reply(status, headers, events, True, exchange.tier, exchange.shut, usage)


def _headers(response: Response) -> tuple[Headers, bytes]:
    """What the caller gets of the server's headers, and the content type. Raises Failed."""
    headers: Headers = []
    kind = coding = b""  # of headers that come twice the first one
    for name, value in response.headers:
        if name not in LOOKED_AT:
            continue
        if name == b"content-encoding":
            coding = coding or value
        elif name == b"x-request-id":
            headers.append((b"x-upstream-request-id", value))
        else:
            headers.append((name, value))
            kind = kind or (value if name == b"content-type" else b"")
    if 200 < response.status < 400 or coding not in (b"", b"identity"):
        raise Failed("5xx", UpstreamFailed("The model server's answer is in a form that was not asked for."))
    return headers, kind


def _refused(response: Response) -> Failed:
    """A server's 5xx, or its word that our key is wrong. Its text stays here: it may name hosts, paths or other
    callers' data.
    """
    if response.status in (401, 403):
        log.error("a model server refuses the key of its tier (status %d): see api_key_env", response.status)
        return Failed("5xx", UpstreamAuth("The model server does not accept the gateway's key."))
    final = response.header(b"x-should-retry") == b"false"
    if response.status != 503:
        refusal = UpstreamFailed(f"The model server failed (status {response.status}).")
        return Failed(None if final else "5xx", refusal)
    after = response.header(b"retry-after")
    seconds = min(float(after), LONGEST_WAIT) if after.isdigit() else RETRY_AFTER
    overloaded = Overloaded("The model server is overloaded.", retry_after=seconds)
    overloaded.should_retry = False if final else None
    return Failed(None if final else "overloaded", overloaded)
