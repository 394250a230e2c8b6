"""What is sent to a model server, and how long may it take?"""

import os
from functools import lru_cache

import msgspec

from gateway import __version__
from gateway.http1 import Limits, Origin
from gateway.policy import Tier
from gateway.trace import Leg, Trace
from gateway.types import Bill


class Call(msgspec.Struct, frozen=True, gc=False):
    """What is asked of one tier's servers. `again`: it was asked of one already, in vain."""

    tier: str
    path: str
    id: str
    body: bytes
    bill: Bill
    trace: Trace | None = None
    again: bool = False


def brief(tier: Tier, seconds: float) -> Limits:
    """The time limits of a call that may take `seconds` in all."""
    return Limits(min(tier.timeouts.connect, seconds), seconds, seconds, seconds)


def leg(origin: Origin, tier: Tier, call: Call) -> Leg:
    """Where a trace keeps what becomes of the call."""
    return Leg(call.bill.kind, call.tier, call.path, tier.model, origin.host, origin.port, call.bill.usage)


def head(origin: Origin, tier: Tier, call: Call, number: bytes, traced: bytes = b"") -> bytes:
    """Request line and headers, `traced` among them. Nothing of the caller's headers goes upstream but its trace, where
    that is sampled, and a request id in our form: callers choose their ids, and two of one id would meet in the
    server's engine, so behind it stands a `number` that each call has for itself."""
    key = os.environ.get(tier.api_key_env, "").strip() if tier.api_key_env else ""
    return b"%b%bx-request-id: %b-%b\r\ncontent-length: %d\r\n\r\n" % (
        _opening(origin, call.path, call.bill.stream, key), traced, call.id.encode(), number, len(call.body)
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _opening(origin: Origin, path: str, stream: bool, key: str) -> bytes:
    """What all heads of this kind begin with."""
    lines = [
        f"POST {origin.prefix}{path} HTTP/1.1",
        f"host: {origin.authority}",
        f"user-agent: tiergate/{__version__}",
        "content-type: application/json",
        f"accept: {'text/event-stream' if stream else 'application/json'}",
    ]
    if key:
        lines.append(f"authorization: Bearer {key}")
    return ("\r\n".join(lines) + "\r\n").encode()
