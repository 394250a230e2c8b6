"""What do we tell a caller whom we cannot answer?

    Refusal                     we will not or cannot answer; becomes an OpenAI error object
      BadRequest        400     the request itself is wrong; param names the field
        WrongMethod     405     the path takes POST only
          NoWebSocket   426     and no WebSocket
        TooSlow         408     the body did not come in time
        TooLarge        413     the body is over the limit
        Misdirected     421     the Host is none of ours
        HeadTooLarge    431     request line and headers are over the limit
      Unauthorized      401     no key, or a wrong one
      Forbidden         403     the key may not do this
      NotFound          404     unknown path or model
      RateLimited       429     a limit of the caller is used up; retry_after says when to come back
        QuotaUsed       429     the caller's money is used up
      Overloaded        503     no server is free; retry_after says when to come back
        Leaving         503     the gateway ends, and with it what is not finished
      UpstreamFailed    502     a model server broke its answer
        UpstreamAuth    502     a model server does not accept the operator's key
        UpstreamTimeout 504     a model server did not answer in time
          TooLate       504     the caller's own time for the request is over

Not errors: a failed classification (a Verdict with a reason), a 4xx of a model server (a Reply, passed through
unchanged), a cache miss (None).
"""

import math

import msgspec

LONGEST_WAIT = 31 * 86_400.0  # seconds, the longest month; what we pass on may come from a server's header
# What msgspec raises for bytes that are not the JSON they should be: of another form, not UTF-8, or nested too deeply.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Refusal(Exception):
    """An answer of ours in place of a model's; `status`, `type`, `code` are OpenAI's, `retry_after` is in seconds."""

    status = 500
    type = "server_error"
    code: str | None = None
    should_retry: bool | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.retry_after = retry_after

    def told(self) -> dict[str, str | None]:
        """OpenAI's error object."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {key: _sendable(text) for key, text in error.items()}

    def body(self) -> bytes:
        """The same as the JSON body of an answer."""
        return msgspec.json.encode({"error": self.told()})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Retry advice in the forms that the OpenAI SDKs obey: seconds, milliseconds, and whether to retry at all."""
        found: list[tuple[bytes, bytes]] = []
        if self.retry_after is not None:
            seconds = min(max(0.001, self.retry_after), LONGEST_WAIT)
            found.append((b"retry-after", b"%d" % math.ceil(seconds)))
            found.append((b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)))
        if self.should_retry is not None:
            found.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        return found


def _sendable(text: str | None) -> str | None:
    """A caller's words in our message may hold half a surrogate pair, which UTF-8 cannot."""
    return text if text is None else text.encode(errors="replace").decode()


class BadRequest(Refusal):
    status = 400
    type = "invalid_request_error"


class TooLarge(BadRequest):
    status = 413
    code = "request_too_large"


class Misdirected(BadRequest):
    status = 421
    code = "misdirected_request"


class HeadTooLarge(BadRequest):
    status = 431
    code = "headers_too_large"


class WrongMethod(BadRequest):
    status = 405
    code = "method_not_allowed"

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"allow", b"POST")]


class NoWebSocket(WrongMethod):
    """By 426 Codex knows to send the request as POST at once; any other status it takes for a failure, and retries."""

    status = 426
    code = "websocket_not_served"

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"upgrade", b"HTTP/1.1")]


class TooSlow(BadRequest):
    status = 408
    code = "request_timeout"


class Unauthorized(Refusal):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(Refusal):
    status = 403
    type = "permission_error"


class NotFound(Refusal):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class RateLimited(Refusal):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QuotaUsed(RateLimited):
    """Waiting a little does not help."""

    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry = False


class Overloaded(Refusal):
    status = 503
    code = "overloaded"


class Leaving(Overloaded):
    code = "gateway_leaving"


class UpstreamFailed(Refusal):
    """Model servers were tried already, failover included: a client's retry would multiply ours."""

    status = 502
    code = "upstream_failed"
    should_retry = False


class UpstreamAuth(UpstreamFailed):
    code = "upstream_auth"


class UpstreamTimeout(UpstreamFailed):
    status = 504
    code = "upstream_timeout"


class TooLate(UpstreamTimeout):
    code = "deadline_exceeded"


def unread(why: BaseException | None) -> Refusal:
    """What a request gets that could not be read; `why`: what went wrong with a part of it, None: its form."""
    if isinstance(why, MemoryError):
        return Overloaded("No memory is left to read the request.", retry_after=1.0)
    return why if isinstance(why, Refusal) else BadRequest("The request is not valid HTTP.")
