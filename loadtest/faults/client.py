"""One request and what became of it."""

import json
import time
from typing import NamedTuple

from gateway.http1 import Client, Limits, Origin, TransportError

LIMITS = Limits(connect=10.0, first_byte=60.0, idle=60.0, total=120.0)


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
    body, origin = json.dumps(told).encode(), Origin.parse(url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {origin.host}\r\ncontent-type: application/json\r\n{headers}"
    started, status = time.perf_counter(), 0
    try:
        response = await client.request(origin, f"{head}content-length: {len(body)}\r\n\r\n".encode(), body, LIMITS)
        try:
            await response.read(1 << 20)
            status = response.status
        finally:
            response.close()
    except TransportError:
        pass
    return Outcome(status, started, time.perf_counter() - started)
