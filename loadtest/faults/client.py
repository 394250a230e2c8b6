"""One request and what became of it."""

import contextlib
import json
import time
from typing import NamedTuple

from gateway.http1 import Client, Limits, Origin, TransportError, fetch

LIMITS = Limits(connect=10.0, first_byte=60.0, idle=60.0, total=120.0)
PATH, JSON = "POST /v1/chat/completions", "content-type: application/json"


class Outcome(NamedTuple):
    """`status` 0: no answer. `started` is time.perf_counter(), `seconds` until the last byte."""

    status: int
    started: float
    seconds: float


async def ask(client: Client, url: str, text: str = "hi", headers: str = "", **fields: object) -> Outcome:
    """One JSON answer of Flash. `headers` are more lines of the head, each with its end.

    Never raises for a failed request: that is what is counted.
    """
    told = {"model": "flash", "max_tokens": 1, "messages": [{"role": "user", "content": text}], **fields}
    lines, body, started, status = headers.splitlines(), json.dumps(told).encode(), time.perf_counter(), 0
    with contextlib.suppress(TransportError):
        status = (await fetch(client, Origin.parse(url), PATH, LIMITS, JSON, *lines, body=body)).status
    return Outcome(status, started, time.perf_counter() - started)
