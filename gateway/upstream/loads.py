"""How busy does a model server say it is?   vLLM's own figures or SGLang's, as of this moment."""

import asyncio
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gateway.http1 import Client, Limits, Origin, TransportError, fetch

LIMITS = Limits(connect=0.5, first_byte=1.0, idle=1.0, total=1.0)
# What is read of an engine: requests that run, requests that wait, the part of the KV cache in use, and of the prompts'
# tokens those that were cached and all of them. vLLM's names from 0.12 on, SGLang's of 0.5.
SERIES = {
    "vllm": (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_hits_total",
        "prefix_cache_queries_total",
    ),
    "sglang": ("num_running_reqs", "num_queue_reqs", "token_usage", "cached_tokens_total", "prompt_tokens_total"),
}
_PLACES = {f"{engine}:{name}".encode(): at for engine, names in SERIES.items() for at, name in enumerate(names)}
# One series for each engine of a data-parallel server. Names that only begin so (..._by_reason) are others.
_SERIES = re.compile(rb"^(" + b"|".join(_PLACES) + rb")(?:\{[^\n]*\})?[ \t]+([0-9.eE+-]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Load:
    """What a server's metrics tell, over all engines; None: they do not tell.

    `running` and `waiting` count requests. `kv_cache`: the part of the fullest engine's that is in use, 0 to 1.
    `prefix_hits`: the part of all prompt tokens so far that its prefix cache had.
    """

    running: int | None = None
    waiting: int | None = None
    kv_cache: float | None = None
    prefix_hits: float | None = None


async def loads(client: Client, urls: Collection[str]) -> Mapping[str, Load | None]:
    """The load of each server; None for one that does not answer."""
    found = await asyncio.gather(*(metrics(client, Origin.parse(url)) for url in urls))
    return {url: None if text is None else load(text) for url, text in zip(urls, found, strict=True)}


async def metrics(client: Client, origin: Origin) -> bytes | None:
    """A server's metrics in Prometheus' format; None when it does not give them."""
    try:
        found = await fetch(client, origin, "GET /metrics", LIMITS, "accept: text/plain")
    except TransportError:
        return None
    return found.body if found.status == 200 else None


def load(text: bytes) -> Load:
    """What the metrics tell; a value that is no number tells nothing."""
    found: list[list[float]] = [[] for _ in SERIES["vllm"]]
    for name, value in _SERIES.findall(text):
        found[_PLACES[name]].append(_number(value))

    def over(at: int, join: Callable[[list[float]], float]) -> float | None:
        joined = join(found[at]) if found[at] else None
        return joined if joined is not None and 0 <= joined < 1e15 else None

    running, waiting, hits, queries = (over(at, sum) for at in (0, 1, 3, 4))
    return Load(
        None if running is None else int(running),
        None if waiting is None else int(waiting),
        over(2, max),
        hits / queries if hits is not None and queries else None,
    )


def _number(value: bytes) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
