"""Does a caller ever hear that an answer is finished when it is not?"""

import asyncio
import json
from collections import Counter

from gateway.http1 import Client
from loadtest.faults.backend import Backend, Heard, Script, ask, backend, each, gateway, question
from loadtest.faults.fidelity import DONE

WORDS = [{"content": f"word {turn} \U0001f600"} for turn in range(12)]
CHUNKS = [json.dumps({"id": "c", "choices": [{"index": 0, "delta": word}]}).encode() for word in WORDS]
LAST = json.dumps({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()
STREAM = b"".join(b"data: " + chunk + b"\n\n" for chunk in [*CHUNKS, LAST]) + DONE
ENDED = len(STREAM) - len(b"]\n\n")  # from here on [DONE] can be guessed; before it, it cannot
ERROR = b'data: {"error": {"message": "no", "code": 500}}\n\n'
WAYS = {
    "reset": lambda at: Script([STREAM[:at]], "reset"),
    "clean end": lambda at: Script([STREAM[:at]]),
    "stall": lambda at: Script([STREAM[:at]], "stall"),
    "garbage": lambda at: Script([STREAM[:at], b"\x00\xff<html>{garbage"]),
    "an error event": lambda at: Script([STREAM[:at] + b"\n\n" + ERROR]),
}


def honest(heard: Heard) -> bool:
    """Nothing that the server did not say, and an error where it broke off."""
    if heard.status >= 500:
        return True
    said, error, _ = heard.data.partition(b'data: {"error"')
    told = bool(error) or heard.broken
    return told and b"[DONE]" not in heard.data and STREAM.startswith(said.rstrip(b"\n"))


async def drive(url: str, server: Backend, count: int) -> Counter[str]:
    client, lies = Client(), Counter(dict.fromkeys(WAYS, 0))
    names = list(WAYS)
    places = [ENDED * turn // count for turn in range(count)]

    async def one(number: int) -> None:
        way, at = names[number % len(names)], places[number // len(names)]
        server.scripts[f"truth.{number}"] = WAYS[way](at)
        heard = await ask(client, url, f"truth.{number}", question())
        lies[way] += not honest(heard)

    try:
        await each(count * len(names), one, at_once=64)
    finally:
        client.close()
    return lies


async def main(url: str, port: int, count: int) -> Counter[str]:
    async with backend(port) as server:
        return await drive(url, server, count)


def measure(count: int) -> Counter[str]:
    """How often an answer was dishonest, by the way in which the server broke off."""
    with gateway() as (url, port, _):
        return asyncio.run(main(url, port, count))


def report(count: int) -> None:
    print(f"streams that break off, at {count} places each: answers that said more than the server did, or not the end")
    for way, lies in measure(count).items():
        print(f"  {way:<16} {lies}")
