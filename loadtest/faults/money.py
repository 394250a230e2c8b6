"""Does a budget hold when callers leave and a gateway is killed, and is the ledger true afterwards?"""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import struct
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from valkey import Valkey

from gateway.pricing import TEMPLATE
from gateway.store import NANO, Line, open_store
from gateway.store.scripts import NAMES
from gateway.store.words import key_names
from loadtest.servers import MODELS, Sim, gateway, sim, valkey, workers_of

CALLER = "anonymous"  # who everyone is without keys
POLICY = """\
schema: 1
tiers:
  flash:
    model: {flash}
    replicas: ["${{FLASH_URL}}"]
    timeouts: {{first_byte: 3s, idle: 3s, total: {total}s}}
    price: {{input_per_m: 1, cached_input_per_m: 1, output_per_m: 2}}
  pro:
    extends: flash
    model: {pro}
    replicas: ["${{PRO_URL}}"]
    can: {{context: 200000}}
    price: {{input_per_m: 3, cached_input_per_m: 3, output_per_m: 6}}
triage: {{timeout: 100ms}}
rules: [{{id: all, route: flash}}]
callers:
  default: {{plan: p}}
  plans: {{p: {{requests_per_minute: 1000000, concurrency: 10000, may: [pro],
    budget: {{usd: {usd:.9f}, window: 30d, then: refuse}}}}}}
"""
PRICES = {"flash": (1000, 2000), "pro": (3000, 6000)}  # nano-dollars a token of a prompt and of an answer
PROMPT = "Count what is spent. " * 5
PACE = 0.025  # seconds a token
GATEWAYS, WORKERS = 2, 2  # processes: four
LONGEST = 120.0  # seconds until every lease must have ended


class Money(NamedTuple):
    """Nano-dollars, and what became of the streams (`ends`).

    `peak` is the most that was spent and held at any look, `true` what the servers' own counts come to, `estimated` the
    part of the ledger that no server confirmed, `held` what is still held when all leases have ended.
    """

    budget: int
    peak: int
    spent: int
    estimated: int
    true: int
    held: int
    ends: Counter[str]


async def stream(url: str, tier: str, tokens: int, events: int | None) -> str:
    """One stream: "whole", "refused", "left" (by us, after `events` events), or "killed" (by the gateway's end)."""
    host = urlsplit(url)
    asked = {"model": tier, "stream": True, "max_tokens": tokens, "ignore_eos": True}
    body = json.dumps(asked | {"messages": [{"role": "user", "content": PROMPT}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host.netloc}\r\ncontent-type: application/json\r\n"
    try:
        reader, writer = await asyncio.open_connection(host.hostname, host.port)
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        try:
            if b" 429 " in await reader.readline():
                return "refused"
            return await _read(reader, events)
        finally:
            writer.transport.abort()
    except (OSError, asyncio.IncompleteReadError):
        return "killed"


async def _read(reader: asyncio.StreamReader, events: int | None) -> str:
    seen = 0
    while events is None or seen < events:
        line = await reader.readline()
        if not line:
            return "killed"
        if line.startswith(b"data: [DONE]"):
            return "whole"
        seen += line.startswith(b"data: ")
    return "left"


async def storm(urls: list[str], streams: int, tokens: int) -> list[str]:
    """All streams at once, half of them to each tier; a third leave on their way, and the busiest worker is killed."""
    chance, workers = random.Random(streams), [worker for url in urls for worker in workers_of(url)]

    async def one(turn: int) -> str:
        leaves = chance.randrange(tokens) if turn % 3 == 0 else None
        return await stream(urls[turn % len(urls)], ("flash", "pro")[turn // 2 % 2], tokens, leaves)

    tasks = [asyncio.create_task(one(turn)) for turn in range(streams)]
    await asyncio.sleep(tokens * PACE / 2)
    os.kill(max(workers, key=lambda worker: len(list(Path(f"/proc/{worker}/fd").iterdir()))), signal.SIGKILL)
    return list(await asyncio.gather(*tasks))


def amounts(client: Valkey) -> tuple[int, int]:
    """What the caller's account says that was spent, and is held."""
    state: Any = client.hget(key_names(CALLER).names.all[0].decode(), "state")
    if state is None:
        return 0, 0
    known = dict(zip(NAMES, struct.unpack(f"<{len(NAMES)}d", state), strict=True))
    return int(known[b"spent"]), int(known[b"money"])


@contextlib.asynccontextmanager
async def watching(client: Valkey, peaks: list[int]) -> AsyncIterator[None]:
    """Notes what is spent and held, some hundred times a second."""

    async def look() -> None:
        while True:
            peaks.append(sum(await asyncio.to_thread(amounts, client)))
            await asyncio.sleep(0.005)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()


async def settled(url: str, client: Valkey) -> list[Line]:
    """The ledger, once no lease is left. Raises TimeoutError."""
    store = open_store(url)
    try:
        async with asyncio.timeout(LONGEST):
            while True:
                lines = await store.ledger(CALLER)
                if not client.zcard(key_names(CALLER).names.all[1]):
                    return lines
                await asyncio.sleep(0.2)
    finally:
        await store.close()


def counted(tier: str, server: Sim) -> int:
    """What the server's own counts of tokens come to."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=5) as answer:
        text = answer.read().decode()
    counts = [
        re.search(rf"^vllm:{kind}_tokens_total{{.*}} (\S+)$", text, re.MULTILINE) for kind in ("prompt", "generation")
    ]
    return sum(round(float(found[1])) * price for found, price in zip(counts, PRICES[tier], strict=True) if found)


async def drive(urls: list[str], store: str, streams: int, tokens: int) -> tuple[list[str], list[int], list[Line]]:
    peaks: list[int] = []
    with Valkey.from_url(store) as client:
        async with watching(client, peaks):
            ends = await storm(urls, streams, tokens)
            lines = await settled(store, client)
        return ends, peaks, lines


@contextlib.contextmanager
def tiers() -> Iterator[tuple[Sim, Sim]]:
    """Servers that need PACE for a token, however many ask."""
    pace = ("--inter-token-latency", f"{PACE}s", "--time-factor-under-load", "1", "--max-num-seqs", "1000")
    with sim("flash", *pace) as flash, sim("pro", *pace) as pro:
        yield flash, pro


def bound(tokens: int) -> int:
    """What is held for one stream: the prompt's bytes and the template, and the longest answer, on Pro."""
    asked, answered = PRICES["pro"]
    return (len(json.dumps([{"role": "user", "content": PROMPT}])) + TEMPLATE) * asked + tokens * answered


def measure(streams: int, covered: int, tokens: int) -> Money:
    """`streams` of so many tokens at once against a budget that covers `covered` of them."""
    budget = covered * bound(tokens)
    text = POLICY.format(usd=budget / NANO, total=1 + tokens * PACE, **MODELS)
    with contextlib.ExitStack() as stack:
        flash, pro = stack.enter_context(tiers())
        store = stack.enter_context(valkey())
        urls = [stack.enter_context(gateway(text, flash, pro, store, workers=WORKERS)) for _ in range(GATEWAYS)]
        ends, peaks, lines = asyncio.run(drive(urls, store, streams, tokens))
        with Valkey.from_url(store) as client:
            _, held = amounts(client)
        true = counted("flash", flash) + counted("pro", pro)
    spent = sum(line.money for line in lines)
    estimated = sum(line.money for line in lines if line.estimated)
    return Money(budget, max(peaks), spent, estimated, true, held, Counter(ends))


def report(streams: int, covered: int) -> None:
    found = measure(streams, covered, tokens=64)
    print(f"{streams} streams at once over {GATEWAYS} x {WORKERS} processes, a budget for {covered}, a worker killed")
    print("  " + ", ".join(f"{end} {count}" for end, count in found.ends.most_common()))
    shares = {name: getattr(found, name) / found.budget for name in ("peak", "spent", "true", "estimated")}
    print("  as shares of the budget: " + ", ".join(f"{name} {share:.4f}" for name, share in shares.items()))
    print(f"  still held when all leases have ended: {found.held}")
