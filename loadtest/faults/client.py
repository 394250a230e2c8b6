"""How does a scenario call the gateway?   One request, many on a schedule, and the keys of callers."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from gateway.http1 import Client, Limits, Origin, TransportError, fetch
from gateway.key_records import new_key
from gateway.store import open_store

LIMITS = Limits(connect=10.0, first_byte=60.0, idle=60.0, total=120.0)
PATH, JSON = "POST /v1/chat/completions", "content-type: application/json"


class Outcome(NamedTuple):
    """`status` 0: no answer. `started` is time.perf_counter(), `seconds` until the last byte."""

    status: int
    started: float
    seconds: float


async def ask(client: Client, url: str, text: str = "hi", headers: str = "", **fields: object) -> Outcome:
    """One JSON answer of Flash. `headers` are more lines of the head.

    Never raises for a failed request: that is what is counted.
    """
    told = {"model": "flash", "max_tokens": 1, "messages": [{"role": "user", "content": text}], **fields}
    lines, body, started, status = headers.splitlines(), json.dumps(told).encode(), time.perf_counter(), 0
    with contextlib.suppress(TransportError):
        status = (await fetch(client, Origin.parse(url), PATH, LIMITS, JSON, *lines, body=body)).status
    return Outcome(status, started, time.perf_counter() - started)


async def closed_loop(workers: int, seconds: float, one: Callable[[], Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """Each worker asks again as soon as it has its answer."""
    loop = asyncio.get_running_loop()
    end, found = loop.time() + seconds, list[Outcome]()

    async def work() -> None:
        while loop.time() < end:
            found.append(await one())

    await asyncio.gather(*(work() for _ in range(workers)))
    return found


async def open_loop(rate: float, seconds: float, one: Callable[[int], Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """`one(i)` starts on a schedule, `rate` a second, whatever becomes of the earlier ones; outcomes by i."""
    loop, tasks = asyncio.get_running_loop(), []
    started = loop.time()
    for turn in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + turn / rate - loop.time()))
        tasks.append(asyncio.create_task(one(turn)))
    return await asyncio.gather(*tasks)


async def new_keys(store_url: str, plans: Mapping[str, str | None]) -> dict[str, str]:
    """Makes a key for each caller on its plan (None: the policy's default); their authorization headers, by caller."""
    store, lines = open_store(store_url), {}
    try:
        for caller, plan in plans.items():
            key, record = new_key(await store.secret(), caller, plan)
            await store.put_key(record)
            lines[caller] = f"authorization: Bearer {key}"
        return lines
    finally:
        await store.close()
