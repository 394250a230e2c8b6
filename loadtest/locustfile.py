"""How fast does the gateway answer under load?

    locust -f loadtest/locustfile.py --headless -u 8 -r 8 -t 15s --host http://127.0.0.1:8080

Each user streams one chat of prompts.jsonl every --pace seconds. 8 users and 4 seconds make the 120 requests a minute
that the default plan allows one key; a refusal (429) counts as a failure, so for more take a key of a larger plan
(`tiergate keys create load --plan gold`).

What is reported, each under the tier that answered (response header x-route-tier):
  E2E    ms from sending to the end of the stream. The row that counts requests and failures.
  TTFT   ms from sending to the first text, of the reasoning or of the answer.
  TPOT   (E2E - TTFT) / (completion tokens - 1), in ms, tokens by the server's own usage. Not GuideLLM's, which takes
         the first token in.
  ROUTE  `label -> tier`, a count without a time, from which the routing accuracy is taken.
"Aggregated" adds all of these up and means nothing. Exit code 1: too many failures (--max-error-ratio), or no answer.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_pacing, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment

PROMPTS = [json.loads(line) for line in (Path(__file__).parent / "prompts.jsonl").read_text().splitlines()]
BROKEN = (OSError, EOFError, HTTPException, ValueError, LookupError)  # a cut connection, a time-out, a strange chunk
STRONG = "pro"  # a tier is strong when its name begins so, as in pro and pro_max
SMALL_TALK = 40  # characters; a shorter prompt is sent as it stands, or its reference would be most of it


class Failed(Exception):
    """The gateway refused, or the answer did not come whole."""


@dataclass(slots=True)
class Answer:
    """One stream as its caller saw it. Times in milliseconds since the request was sent."""

    first: float | None = None
    end: float = 0.0
    tokens: int = 0

    @property
    def per_token(self) -> float | None:
        """TPOT; None with less than two tokens."""
        if self.first is None or self.tokens < 2:
            return None
        return (self.end - self.first) / (self.tokens - 1)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def options(parser: LocustArgumentParser) -> None:
    add: Callable[..., Any] = parser.add_argument
    add("--key", env_var="TIERGATE_KEY", default="", is_secret=True, help="API key; none on loopback")
    add("--model", env_var="TIERGATE_MODEL", default="auto", help="auto, flash, pro, or an alias of the policy")
    add("--pace", type=float, default=4.0, help="seconds from one request of a user to its next")
    add("--max-error-ratio", type=float, default=0.01, help="exit code 1 above this share of failed requests")
    add("--seed", type=int, default=1, help="of the order of prompts")


@events.init.add_listener  # type: ignore[untyped-decorator]
def bound(environment: Environment, **_: object) -> None:
    """Nobody forgets a load test: without -t it ends after a minute."""
    given = environment.parsed_options
    if given is not None and given.headless and not given.run_time:
        given.run_time = 60


class Caller(FastHttpUser):
    """Someone who asks one thing after another, and reads each answer as it comes."""

    born = 0

    def on_start(self) -> None:
        self.options = self.environment.parsed_options
        self.order = random.Random(self.options.seed * 1_000 + Caller.born)
        Caller.born += 1

    def wait_time(self) -> float:
        return float(constant_pacing(self.options.pace)(self))

    @task
    def chat(self) -> None:
        prompt = self.order.choice(PROMPTS)
        tier, answer, problem = "none", Answer(), None
        asked = time.perf_counter()
        try:
            reply = self.sent(prompt["body"])
            tier = str(reply.headers.get("x-route-tier", tier)) if reply.headers else tier
            read(lines_of(reply), asked, answer)
        except (Failed, *BROKEN) as error:
            problem = error
        answer.end = since(asked)
        self.report(prompt["label"], tier, answer, problem)

    def sent(self, body: dict[str, Any]) -> ResponseContextManager:
        """The reply, its stream unread. Raises Failed when there is none, or a refusal."""
        headers = {"accept-encoding": "identity"}  # a compressed stream would come in lumps
        if self.options.key:
            headers["authorization"] = f"Bearer {self.options.key}"
        asked = {"model": self.options.model, "stream": True, "stream_options": {"include_usage": True}}
        whole = {**asked, "temperature": 0.7, **body, "messages": self.referenced(body["messages"])}
        # catch_response, and never entered: Locust reports nothing of its own, `report` below does.
        reply = self.client.post("/v1/chat/completions", json=whole, headers=headers, stream=True, catch_response=True)
        if reply.status_code == 0:
            raise Failed(f"no reply: {getattr(reply, 'error', None)!r}")
        if reply.status_code != 200:
            raise Failed(refusal(reply.status_code, reply.content or b""))
        return reply

    def referenced(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The chat with a number at its end, so that no answer or verdict comes from a cache; prefixes stay shared."""
        last = messages[-1]
        if last["role"] != "user" or len(last["content"]) < SMALL_TALK:
            return messages
        number = self.order.randrange(100_000, 1_000_000)
        return [*messages[:-1], {**last, "content": f"{last['content']}\n\nReference {number}."}]

    def report(self, label: str, tier: str, answer: Answer, problem: Exception | None) -> None:
        self.fire("E2E", tier, answer.end, problem)
        if problem is not None:
            return
        self.fire("ROUTE", f"{label} -> {tier}", 0.0)
        for kind, value in (("TTFT", answer.first), ("TPOT", answer.per_token)):
            if value is not None:
                self.fire(kind, tier, value)

    def fire(self, kind: str, name: str, milliseconds: float, problem: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=problem,
            context={},
        )


def lines_of(reply: ResponseContextManager) -> Iterator[bytes]:
    """Lines as soon as they are there. Locust's iter_lines waits for 1,024 bytes: 468 ms for a first token at 50 ms."""
    stream = reply._response
    while stream is not None and (line := stream.readline(b"\n")):
        yield bytes(line)


def read(lines: Iterator[bytes], asked: float, answer: Answer) -> None:
    """Fills `answer` from server-sent events. Raises Failed on an error event, or an end without [DONE]."""
    done = False
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise Failed(f"error in the stream: {chunk['error'].get('code') or chunk['error'].get('type')}")
        if answer.first is None and has_text(chunk):
            answer.first = since(asked)
        if chunk.get("usage"):
            answer.tokens = chunk["usage"]["completion_tokens"]
    if not done:
        raise Failed("the stream ended without [DONE]")


def has_text(chunk: dict[str, Any]) -> bool:
    deltas = [choice["delta"] for choice in chunk["choices"]]
    names = ("content", "reasoning", "reasoning_content", "tool_calls")
    return any(delta.get(name) for delta in deltas for name in names)


def refusal(status: int, body: bytes) -> str:
    """Status and OpenAI error code: few different texts, so that Locust groups them."""
    try:
        error = json.loads(body)["error"]
        return f"{status} {error['code'] or error['type']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}, no error object"


def since(asked: float) -> float:
    return (time.perf_counter() - asked) * 1000.0


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Environment, **_: object) -> None:
    """Prints how many prompts went where they belong, and sets the exit code."""
    given = environment.parsed_options
    entries = environment.stats.entries
    counts = {name: entry.num_requests for (name, kind), entry in entries.items() if kind == "ROUTE"}
    for line in accuracy(counts):
        print(line)
    asked = sum(entry.num_requests for (_, kind), entry in entries.items() if kind == "E2E")
    failed = sum(entry.num_failures for (_, kind), entry in entries.items() if kind == "E2E")
    ratio = failed / asked if asked else 1.0
    most = given.max_error_ratio if given else 0.0
    print(f"failed   {failed} of {asked} requests ({ratio:.1%}; at most {most:.1%} are let pass)")
    environment.process_exit_code = int(ratio > most or failed == asked)


def accuracy(counts: dict[str, int]) -> Iterator[str]:
    """The share of prompts that went to the tier their label asks for, by label and over all."""
    total: dict[str, int] = {}
    right: dict[str, int] = {}
    for name, count in counts.items():
        label, _, tier = name.partition(" -> ")
        fits = tier.startswith(STRONG) == (label == "complex")
        total[label] = total.get(label, 0) + count
        right[label] = right.get(label, 0) + count * fits
    for label in sorted(total):
        yield f"routed   {right[label]} of {total[label]} {label} prompts rightly ({right[label] / total[label]:.1%})"
    if total:
        both, good = sum(total.values()), sum(right.values())
        yield f"routed   {good} of {both} prompts rightly ({good / both:.1%})"
