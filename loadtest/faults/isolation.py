"""Does any caller ever see an answer that was made for another one, or for another prompt?"""

import asyncio
import contextlib
import json
import random
import re
from collections import Counter, defaultdict
from typing import NamedTuple

from gateway.http1 import Client, Origin, TransportError, fetch
from loadtest.faults.client import JSON, LIMITS, PATH, new_keys
from loadtest.servers import MODELS, gateway, sim, valkey

POLICY = """\
schema: 1
tiers:
  flash: {{model: {flash}, replicas: ["${{FLASH_URL}}"]}}
  pro: {{model: {pro}, replicas: ["${{PRO_URL}}"], can: {{context: 200000}}}}
rules: [{{id: all, route: flash}}]
caching: {{ttl: 2s}}
callers: {{default: {{plan: p}}, plans: {{p: {{requests_per_minute: 10000000, concurrency: 10000}}}}}}
"""
ANSWER_ID = re.compile(rb'"id": ?"(chatcmpl-[^"]+)"')
AT_ONCE = 64
PROCESSES = 2


class Isolation(NamedTuple):
    """Operations by what became of them, upstream calls, and answers that more than one (caller, prompt) was given."""

    ends: Counter[str]
    answers: int
    shared: int


async def operation(client: Client, url: str, key: str, prompt: str, chance: random.Random) -> tuple[str, bytes]:
    """One request, whole or streamed; its cache header and its answer's id, both empty where it was given up.

    `key`: the authorization header.
    """
    asked = {"model": "flash", "max_tokens": 8, "temperature": 0, "stream": chance.random() < 0.5}
    body, origin = json.dumps(asked | {"messages": [{"role": "user", "content": prompt}]}).encode(), Origin.parse(url)
    patience = chance.choice((chance.random() * 0.02, 10.0))
    try:
        async with asyncio.timeout(patience):
            told = await fetch(client, origin, PATH, LIMITS, JSON, key, body=body)
    except (TransportError, TimeoutError):
        return "given up", b""
    found = ANSWER_ID.search(told.body)
    if told.status != 200 or not found:
        return f"status {told.status}", b""
    return told.headers[b"x-route-cache"].decode(), found[1]


async def storm(urls: list[str], keys: list[str], prompts: int, operations: int) -> Isolation:
    """Half of all operations are given up within 20 ms; AT_ONCE run at any moment."""
    client, chance = Client(), random.Random(operations)
    owners: dict[bytes, set[tuple[str, str]]] = defaultdict(set)
    ends: Counter[str] = Counter()

    async def runner(turns: int) -> None:
        for _ in range(turns):
            key, prompt = chance.choice(keys), f"What is asked by all, number {chance.randrange(prompts)}?"
            end, name = await operation(client, chance.choice(urls), key, prompt, chance)
            ends[end] += 1
            if name:
                owners[name].add((key, prompt))

    try:
        await asyncio.gather(*(runner(operations // AT_ONCE) for _ in range(AT_ONCE)))
    finally:
        client.close()
    return Isolation(ends, len(owners), sum(len(found) > 1 for found in owners.values()))


def measure(callers: int, prompts: int, operations: int) -> Isolation:
    with contextlib.ExitStack() as stack:
        flash, pro = stack.enter_context(sim("flash", "--speed", "0")), stack.enter_context(sim("pro", "--speed", "0"))
        store = stack.enter_context(valkey())
        keys = list(asyncio.run(new_keys(store, {f"caller{number}": None for number in range(callers)})).values())
        urls = [stack.enter_context(gateway(POLICY.format(**MODELS), flash, pro, store)) for _ in range(PROCESSES)]
        return asyncio.run(storm(urls, keys, prompts, operations))


def report(callers: int, prompts: int, operations: int) -> None:
    found = measure(callers, prompts, operations)
    print(f"{operations} requests of {callers} callers with {prompts} shared prompts over {PROCESSES} processes")
    print("  " + ", ".join(f"{end} {count}" for end, count in found.ends.most_common()))
    print(f"  answers {found.answers}, given to more than one caller or prompt: {found.shared}")
