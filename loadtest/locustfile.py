"""How fast does the gateway answer under load?   From the repository's root, each a minute long without -t:

    locust -f loadtest/locustfile.py --headless -u 8 -r 8 -t 15s --host http://127.0.0.1:8080
    ... -u 200 --rate 40 --shape spike --slo ttft=2000,pro.ttft=5000 --csv OUT --html OUT.html --report OUT.json
    ... --break "docker compose pause valkey" --mend "docker compose unpause valkey"

Each user streams one chat of prompts.jsonl every --pace seconds (closed loop: slow answers make fewer requests).
8 users and 4 seconds make the 120 requests a minute that the default plan allows one key; a refusal (429) counts as a
failure, so for more take a key of a larger plan (`tiergate keys create load --plan gold`).

--rate makes an open loop: requests are due at random times whether or not others are answered, times count from then
on, and users are the most that may be under way at once. What was offered and achieved is told; a request that no user
was free for was offered only.

Locust's tables (--csv, --html, --json) have TTFT, TPOT, ITL_P99 and E2E (figures.py says what they are), each under the
tier that answered (x-route-tier). "Aggregated" adds all of these up and means nothing. --report has exact quantiles,
goodput, routing, and the three parts of a run with an outage.
Exit code 1: too many failures (--max-error-ratio), too few answers within the objectives (--min-good), or no answer.
"""

import itertools
import json
import math
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from http.client import HTTPException
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import FastHttpUser, LoadTestShape, constant_pacing, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.answers import Answer, Failed, read, refusal, since
from loadtest.figures import DIRECT, SHAPES, Exchange, Objectives, level, ratios, summary, told

PROMPTS = [json.loads(line) for line in (Path(__file__).parent / "prompts.jsonl").read_text().splitlines()]
BROKEN = (OSError, EOFError, HTTPException, ValueError, LookupError)  # a cut connection, a time-out, a strange chunk
SMALL_TALK = 40  # characters; a shorter prompt is sent as it stands, or its reference would be most of it
GRACE = 30  # seconds for what is under way at the end


class Run:
    """What one process of Locust asked and was answered."""

    def __init__(self, seed: int) -> None:
        self.exchanges: list[Exchange] = []
        self.pairs: list[tuple[Exchange, Exchange]] = []
        self.started = time.perf_counter()
        self.offered = 0
        self.due = 0.0
        self.names = itertools.count()
        self.chance = random.Random(seed)

    def next_due(self, given: Any) -> float:
        """Seconds since the start when the open loop's next request is due."""
        rate = given.rate * level(given.shape, min(self.due / length(given), 1.0))
        self.due += self.chance.expovariate(rate)
        self.offered += self.due < length(given)
        return self.due


RUN = Run(0)


def length(given: Any) -> float:
    """Seconds of the run; without an end where a person at Locust's page ends it."""
    return float(given.run_time or math.inf)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def options(parser: LocustArgumentParser) -> None:
    add: Callable[..., Any] = parser.add_argument
    add("--key", env_var="TIERGATE_KEY", default="", is_secret=True, help="API key; none on loopback")
    add("--model", env_var="TIERGATE_MODEL", default="auto", help="auto, flash, pro, or an alias of the policy")
    add("--pace", type=float, default=4.0, help="seconds from one request of a user to its next")
    add("--rate", type=float, default=0.0, help="open loop: requests a second, of each process of Locust")
    add("--shape", choices=SHAPES, default="flat", help="how the load goes up and down over the run")
    add(
        "--direct",
        default="",
        help="ask each prompt once more of this server, without the gateway; one process, no --rate",
    )
    add("--direct-model", default="", help="the model's name there")
    add("--slo", default="", help="objectives in ms, of all tiers or one: ttft=2000,tpot=100,itl_p99=200,pro.e2e=60000")
    add("--min-good", type=float, default=0.0, help="exit code 1 below this share of requests that meet the objectives")
    add("--max-error-ratio", type=float, default=0.01, help="exit code 1 above this share of failed requests")
    add("--break", dest="broken_by", default="", help="a command that is run when a third of the run is over")
    add("--mend", dest="mended_by", default="", help="a command that is run when two thirds of the run are over")
    add("--report", default="", help="a file for the figures as JSON")
    add("--seed", type=int, default=1, help="of the order of prompts")


@events.init.add_listener  # type: ignore[untyped-decorator]
def bound(environment: Environment, **_: object) -> None:
    """Nobody forgets a load test: without -t it ends after a minute."""
    given = environment.parsed_options
    if given is None:
        return
    Objectives.read(given.slo)
    if given.headless and not given.run_time:
        given.run_time = 60
    if not given.run_time and (given.shape != "flat" or given.broken_by):
        raise SystemExit("--shape and --break need a length of the run (-t)")
    environment.stop_timeout = environment.stop_timeout or GRACE
    if given.shape != "flat" and not given.rate:
        environment.shape_class = Users(given)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def start(environment: Environment, **_: object) -> None:
    given: Any = environment.parsed_options
    vars(RUN).update(vars(Run(given.seed)))
    for third, command in ((1, given.broken_by), (2, given.mended_by)):
        if command and not isinstance(environment.runner, WorkerRunner):
            gevent.spawn_later(given.run_time * third / 3, subprocess.run, shlex.split(command), check=False)


class Users(LoadTestShape):
    """The closed loop's users, as many as the shape says."""

    abstract = True  # no run has a shape unless it is asked for

    def __init__(self, given: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = given

    def tick(self) -> tuple[int, float] | None:
        part = float(self.get_run_time()) / self._given.run_time  # type: ignore[no-untyped-call]
        most, speed = self._given.num_users or 1, self._given.spawn_rate or 1
        return None if part >= 1 else (max(round(most * level(self._given.shape, part)), 1), speed)


class Caller(FastHttpUser):
    """Someone who asks one thing after another, and reads each answer as it comes."""

    def on_start(self) -> None:
        self.options = self.environment.parsed_options
        self.order = random.Random(self.options.seed * 1_000 + next(RUN.names))

    def wait_time(self) -> float:
        return 0.0 if self.options.rate else float(constant_pacing(self.options.pace)(self))

    @task
    def chat(self) -> None:
        due = RUN.next_due(self.options) if self.options.rate else time.perf_counter() - RUN.started
        if due >= length(self.options):
            gevent.sleep(1)
            return
        gevent.sleep(max(due - (time.perf_counter() - RUN.started), 0))
        prompt = self.order.choice(PROMPTS)
        if not self.options.direct:
            self.asked(prompt, due)
            return
        ways = self.order.sample([True, False], 2)  # which is first: the second finds the server's prefix cache warm
        found = {way: self.asked(prompt, time.perf_counter() - RUN.started, way) for way in ways}
        RUN.pairs.append((found[False], found[True]))

    def asked(self, prompt: dict[str, Any], due: float, direct: bool = False) -> Exchange:
        """One request and its answer, reported."""
        tier, answer, problem = DIRECT if direct else "none", Answer(), None
        start = RUN.started + due
        late = since(start)
        try:
            reply = self.sent(prompt["body"], direct)
            if reply.headers and not direct:
                tier = str(reply.headers.get("x-route-tier", tier))
            read(lines_of(reply), start, answer)
        except (Failed, *BROKEN) as error:
            problem = error
        answer.end = since(start)
        words = None if problem is None else str(problem) or type(problem).__name__
        label = prompt["label"] if self.options.model == "auto" else ""  # the caller chose the tier
        one = Exchange(due, tier, label, answer.times(), late, words)
        self.report(one, problem)
        return one

    def sent(self, body: dict[str, Any], direct: bool) -> ResponseContextManager:
        """The reply, its stream unread. Raises Failed when there is none, or a refusal."""
        headers = {"accept-encoding": "identity"}  # a compressed stream would come in lumps
        if self.options.key and not direct:
            headers["authorization"] = f"Bearer {self.options.key}"
        model = self.options.direct_model if direct else self.options.model
        asked = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        whole = {**asked, "temperature": 0.7, **body, "messages": self.referenced(body["messages"])}
        url = f"{self.options.direct if direct else ''}/v1/chat/completions"
        # catch_response, and never entered: Locust reports nothing of its own, `report` below does.
        reply = self.client.post(url, json=whole, headers=headers, stream=True, catch_response=True)
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

    def report(self, one: Exchange, problem: Exception | None) -> None:
        RUN.exchanges.append(one)
        for kind, value in one.times.items() if problem is None else [("e2e", one.times["e2e"])]:
            self.environment.events.request.fire(
                request_type=kind.upper(),
                name=one.tier,
                response_time=value,
                response_length=0,
                exception=problem,
                context={},
            )


def lines_of(reply: ResponseContextManager) -> Iterator[bytes]:
    """Lines as soon as they are there. Locust's iter_lines waits for 1,024 bytes: 468 ms for a first token at 50 ms."""
    stream = reply._response
    while stream is not None and (line := stream.readline(b"\n")):
        yield bytes(line)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Environment, **_: object) -> None:
    """Prints and writes the figures, and sets the exit code."""
    given = environment.parsed_options
    if given is None or isinstance(environment.runner, WorkerRunner):
        return
    found = reported(given)
    ratio = found["failed"] / found["requests"] if found["requests"] else 1.0
    failed = f"failed      {found['failed']} of {found['requests']} ({ratio:.1%}; at most {given.max_error_ratio:.1%})"
    print("\n".join([*told(found), failed]), file=sys.stderr if given.json else sys.stdout)  # Locust's JSON goes there
    if given.report:
        Path(given.report).write_text(json.dumps(found, indent=1) + "\n")
    wrong = ratio > given.max_error_ratio or found["good"] < given.min_good
    environment.process_exit_code = int(wrong or ratio == 1.0)


def reported(given: Any) -> dict[str, Any]:
    """The figures of the run, of its thirds where something was broken, and of two ways where there were two."""
    objectives, seconds = Objectives.read(given.slo), min(length(given), since(RUN.started) / 1000)
    found = summary(RUN.exchanges, objectives, seconds)
    if given.rate:
        found["offered"] = RUN.offered / seconds
    if given.broken_by:
        third = seconds / 3
        thirds = ([one for one in RUN.exchanges if min(int(one.at / third), 2) == part] for part in range(3))
        parts = zip(("before", "broken", "mended"), thirds, strict=True)
        found["parts"] = {name: summary(some, objectives, third) for name, some in parts}
    if RUN.pairs:
        found["pairs"], found["ratios"] = len(RUN.pairs), ratios(RUN.pairs)
    return found


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def hand_over(data: dict[str, Any], **_: object) -> None:
    """What a worker process has seen since it last reported."""
    data["exchanges"], RUN.exchanges = [astuple(one) for one in RUN.exchanges], []
    data["offered"], RUN.offered = RUN.offered, 0


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def take_over(data: dict[str, Any], **_: object) -> None:
    RUN.exchanges += [Exchange(*one) for one in data["exchanges"]]
    RUN.offered += data["offered"]
