"""Do bytes go through as they came?   Bodies up, streams down."""

import asyncio
import json
import random
from typing import NamedTuple

from gateway.http1 import Client
from loadtest.faults.backend import Backend, Script, ask, backend, each, gateway, question

DONE = b"data: [DONE]\n\n"
ODD = ["", "plain", "ünï", "\u2028 \u2029 \x85 \ufeff", "\U0001f600\u200d\U0001f680", '"\\/\b\f\n\r\t', "\x00", "漢字"]
NUMBERS = ["0", "-0", "-0.0", "1.0", "1e3", "1E-7", "18446744073709551615", "9007199254740993", "0.1000"]
KEYS = ["temperature", "top_p", "top_k", "seed", "min_p", "user", "logit_bias", "thing", "Ünï", "a b", "_"]


class Changed(NamedTuple):
    """How many were sent and how many arrived otherwise than they were sent."""

    bodies: int
    bodies_changed: int
    streams: int
    streams_changed: int


def blank(draw: random.Random) -> str:
    return draw.choice(["", "", "", " ", "\n", "\t ", "\r\n"])


def text(draw: random.Random) -> str:
    return json.dumps("".join(draw.choices(ODD, k=3)), ensure_ascii=draw.random() < 0.5)


def value(draw: random.Random, depth: int = 0) -> str:
    """A JSON value, spelled in one of the ways in which it can be."""
    kind = draw.randrange(4 if depth > 2 else 6)
    if kind == 4:
        return "[" + ",".join(blank(draw) + value(draw, depth + 1) for _ in range(draw.randrange(4))) + "]"
    if kind == 5:
        pairs = ((key, value(draw, depth + 1)) for key in draw.sample(KEYS, draw.randrange(4)))
        return "{" + ",".join(f"{blank(draw)}{json.dumps(k)}{blank(draw)}:{v}" for k, v in pairs) + "}"
    return [draw.choice(NUMBERS), text(draw), draw.choice(["true", "false"]), "null"][kind]


def body(draw: random.Random) -> tuple[bytes, bytes]:
    """What is sent, and what must arrive: the same but for the model's name."""
    messages = f'[{{"role":{blank(draw)}"user","content":{text(draw)}, "x": {value(draw)}}}]'
    members = {"model": '"flash"', "messages": messages, **{f"x_{key}": value(draw) for key in draw.sample(KEYS, 5)}}
    names = draw.sample(list(members), len(members))

    def written(model: str, spaces: random.Random) -> bytes:
        told = members | {"model": model}
        pairs = (
            f"{blank(spaces)}{json.dumps(k)}{blank(spaces)}:{blank(spaces)}{told[k]}{blank(spaces)}" for k in names
        )
        return ("{" + ",".join(pairs) + "}").encode()

    seed = draw.random()
    return written('"flash"', random.Random(seed)), written('"model-of-flash"', random.Random(seed))


def shape(draw: random.Random) -> bytes:
    """A whole stream: events of many kinds, as servers spell them."""
    end = draw.choice([b"\n\n", b"\n\n", b"\r\n\r\n"])
    events = [b": comment" + end, b"event: ping\ndata: {}" + end, b"id: 7\nretry: 10\ndata:{}" + end]
    for turn in range(draw.randrange(1, 12)):
        content = draw.choice([*ODD, "x" * draw.choice([1, 100, 70_000])])
        delta = draw.choice([{"content": content}, {"reasoning": content}, {"tool_calls": [{"index": turn}]}, {}])
        chunk = {"id": "c", "choices": [{"index": turn % 4, "delta": delta, "finish_reason": None}], "seq": turn}
        events.append(b"data: " + json.dumps(chunk, ensure_ascii=draw.random() < 0.3).encode() + end)
    draw.shuffle(events)
    last = json.dumps({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()
    return b"".join(events) + b"data: " + last + end + draw.choice([DONE, b"data: [DONE]\r\n\r\n"])


def cut(draw: random.Random, data: bytes) -> list[bytes]:
    """The same bytes in pieces: single ones, a few, or thousands."""
    if len(data) < 4000 and draw.random() < 0.5:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted(draw.sample(range(1, len(data)), min(len(data) - 1, draw.choice([0, 1, 5, 50]))))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


async def drive(url: str, server: Backend, bodies: int, streams: int) -> Changed:
    draw, client, changed = random.Random(11), Client(), [0, 0]
    sent = [body(draw) for _ in range(bodies)]
    shapes = [shape(draw) for _ in range(streams - 1)] + [b'data: {"x": "' + b"x" * (1 << 20) + b'"}\n\n' + DONE]
    for number, stream in enumerate(shapes):
        server.scripts[f"shape.{number}"] = Script(cut(draw, stream))

    async def up(number: int) -> None:
        name, (given, wanted) = f"body.{number}", sent[number]
        await ask(client, url, name, given)
        changed[0] += server.bodies.get(name) != wanted

    async def down(number: int) -> None:
        heard = await ask(client, url, f"shape.{number}", question())
        changed[1] += heard.broken or heard.data != shapes[number]

    try:
        await each(bodies, up)
        await each(streams, down)
    finally:
        client.close()
    return Changed(bodies, changed[0], streams, changed[1])


async def main(url: str, port: int, bodies: int, streams: int) -> Changed:
    async with backend(port) as server:
        return await drive(url, server, bodies, streams)


def measure(bodies: int, streams: int) -> Changed:
    with gateway() as (url, port, _):
        return asyncio.run(main(url, port, bodies, streams))


def report(bodies: int, streams: int) -> None:
    found = measure(bodies, streams)
    print(f"{found.bodies} random bodies: {found.bodies_changed} arrived changed beyond the model's name")
    print(f"{found.streams} streams in random pieces: {found.streams_changed} arrived changed")
