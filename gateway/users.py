"""Who asks behind a caller's key?   The name that a request brings, where the policy says how (`callers.user`)."""

import msgspec

from gateway.errors import UNREADABLE
from gateway.policy import Policy
from gateway.types import ChatRequest

LONGEST = 128  # characters of such a name that are kept: callers write it, and each exchange's log line has it
_NAME = msgspec.json.Decoder(str | int)


def user_of(request: ChatRequest, policy: Policy) -> str | None:
    """The first of the names that the policy looks for; None where the request has none of them. It proves nothing: a
    caller may write what it likes."""
    for source in policy.callers.user:
        given = _given(request, *source.split(":", 1))
        name = str(given)[:LONGEST].strip() if type(given) in {str, int} else ""
        if name:
            return name
    return None


def _given(request: ChatRequest, kind: str, name: str = "") -> object:
    if kind == "header":
        return request.headers.get(name)
    if kind == "metadata":
        return (request.fields.metadata or {}).get(name)
    written = request.body.members.get(kind)
    try:
        return _NAME.decode(written) if written else None
    except UNREADABLE:
        return None
