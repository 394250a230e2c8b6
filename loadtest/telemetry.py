"""What does telemetry cost an exchange, and does a scrape hold up the streams?

    python -m loadtest.telemetry [--repeats 15]

CPU: user and system time of all threads for what telemetry does in one exchange's life, from the look at its
traceparent over the legs of its calls to metrics, log line (to /dev/null) and spans (to a process of their own), the
least of the repeats. Nothing is done for a chunk: a stream of 200 chunks differs in what is counted at its end.

Scrape: how late a task that wants to run every 2 ms runs while the metrics of a busy gateway are shown again and again
in a thread, beside prometheus_client's text of as many series.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from backends.evals.metrics import percentile
from gateway.policy import Policy, load_policy
from gateway.recorded import Record
from gateway.store import Line
from gateway.telemetry import Telemetry
from gateway.trace import Leg
from gateway.types import Caller, Decision, Facts, Route, TierState, Usage, Verdict
from loadtest.servers import DEFAULT, HOST, free_port

TURN = 8  # exchanges that end in one turn of the loop
EXCHANGES = 2000
GOAL = 25.0  # microseconds an exchange
SINK = """
import http.server, sys
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("{host}", {port}), Sink).serve_forever()
"""
CALLER = Caller("k1", "ann", "gold", "salt")
FACTS = Facts("auto", "ann", "gold", characters=400, context=120)
VERDICT = Verdict("complex", 0.9, seconds=0.2, strategy="choice", prompt="complexity.v1")


class Kind(NamedTuple):
    """An exchange as it is measured: its calls to model servers, and whether it is a stream."""

    name: str
    calls: tuple[Literal["triage", "draft", "answer"], ...]
    stream: bool


KINDS = (
    Kind("answer by rule, JSON", ("answer",), stream=False),
    Kind("triage, draft, answer, JSON", ("triage", "draft", "answer"), stream=False),
    Kind("triage, draft, answer, stream of 200 chunks", ("triage", "draft", "answer"), stream=True),
)
WAYS = {"metrics": (False, 0.0), "+ log line": (True, 0.0), "+ 5 % traces": (True, 0.05), "+ 100 % traces": (True, 1.0)}


def lived(telemetry: Telemetry, kind: Kind, number: int) -> None:
    """All that telemetry does in the life of an exchange but what it does at the end of the turn."""
    trace = telemetry.trace({})
    usage = Usage(120, 64, 200, complete=True, events=200 if kind.stream else 0)
    for call in kind.calls:
        if not trace:
            break
        leg = Leg(call, "pro", "/v1/chat/completions", "deepseek-ai/DeepSeek-V4-Pro", "10.0.0.1", 8000, usage)
        trace.began(leg)
        leg.first = leg.ended = time.perf_counter()
        leg.status = 200
    route = Route(("pro",), "triaged", "complex")
    telemetry.record(
        Record(
            id=f"{number:032x}",
            path="/v1/chat/completions",
            status=200,
            seconds=1.5,
            overhead=0.0004,
            policy="default@1+abc",
            ttft=0.3,
            caller=CALLER,
            model="auto",
            stream=kind.stream,
            tier="pro",
            route=route,
            decision=Decision(FACTS, VERDICT if len(kind.calls) > 1 else None, route, "wasted", 20),
            cache="miss",
            usage=usage,
            costs=[Line("pro", call, False, 120, 64, 200, 1000) for call in kind.calls],
            phases=(0.0001, 0.0002, 0.0001),
            trace=trace,
        )
    )


def spent(telemetry: Telemetry, kind: Kind) -> float:
    """Microseconds of CPU an exchange; all spans have been sent at its end."""

    async def main() -> None:
        for number in range(EXCHANGES):
            lived(telemetry, kind, number)
            if number % TURN == 0:
                await asyncio.sleep(0)
        telemetry.close()

    started = time.process_time()
    asyncio.run(main())
    assert telemetry.meters.unsent.cell() == [0.0]
    return (time.process_time() - started) / EXCHANGES * 1e6


def using(telemetry: Telemetry, policy: Policy) -> Telemetry:
    telemetry.use(policy, lambda: dict.fromkeys(policy.tiers, TierState(1, 0, (True,), 8)), lambda: "ok")
    return telemetry


class Nothing(Telemetry):
    """What a life costs without telemetry: the record is made all the same."""

    def record(self, record: Record) -> None:
        """Nothing."""


def costs(policy: Policy, kind: Kind, repeats: int) -> list[float]:
    """Of each way in WAYS: the least of the repeats, less the least without telemetry. All ways in turn."""
    found: dict[str, list[float]] = {name: [] for name in ("", *WAYS)}
    for _ in range(repeats):
        found[""].append(spent(Nothing(log=False), kind))
        for name, way in WAYS.items():
            found[name].append(spent(using(Telemetry(*way), policy), kind))
    return [min(found[name]) - min(found[""]) for name in WAYS]


def lateness(show: Callable[[], object] | None) -> list[float]:
    """Milliseconds that a task runs late in two seconds while `show` runs again and again in a thread."""

    async def main() -> list[float]:
        late: list[float] = []
        end, over = time.perf_counter() + 2.0, asyncio.Event()

        async def shows() -> None:
            while show and not over.is_set():
                await asyncio.to_thread(show)

        showing = asyncio.create_task(shows())
        while time.perf_counter() < end:
            due = time.perf_counter() + 0.002
            await asyncio.sleep(0.002)
            late.append((time.perf_counter() - due) * 1000)
        over.set()
        await showing
        return late

    return asyncio.run(main())


def busy(policy: Policy) -> Telemetry:
    """A telemetry that has seen much: all names, paths, tiers and some errors."""
    telemetry = using(Telemetry(log=False), policy)
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
    for path, model, tier, status in itertools.product(paths, policy.names, policy.tiers, (200, 400, 502)):
        told = {"path": path, "model": model, "tier": tier, "status": status, "usage": Usage(120, 64, 200), "ttft": 0.3}
        telemetry.record(Record(id="i", seconds=1.5, overhead=0.0004, policy="p", **told))  # type: ignore[arg-type]
    return telemetry


def alike(lines: int) -> CollectorRegistry:
    """prometheus_client's own histograms, of about as many lines."""
    registry, buckets = CollectorRegistry(), [float(2**at) for at in range(20)]
    labels = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_original_model", "gen_ai_response_model"]
    metric = Histogram("gen_ai_server_request_duration_seconds", "x", labels, registry=registry, buckets=buckets)
    for at in range(lines // (len(buckets) + 4)):
        metric.labels("chat", "deepseek", f"model-{at}", "deepseek-ai/DeepSeek-V4-Pro").observe(1.0)
    return registry


@contextlib.contextmanager
def sink() -> Iterator[None]:
    """A collector in a process of its own, where the environment says."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SINK.format(host=HOST, port=port)])
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{HOST}:{port}"
    os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = str(EXCHANGES * 4)  # spans: nothing is dropped
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def scrape(policy: Policy) -> None:
    ours = busy(policy).render
    size, lines = len(ours()), ours().count(b"\n")
    theirs = partial(generate_latest, alike(lines))
    print(f"\n{lines} lines, {size // 1000} kB\n\n| while | CPU ms a scrape | late p50 ms | p99 | most |")
    print("|---|---|---|---|---|")
    for name, show in {"nobody scrapes": None, "Tiergate's text": ours, "prometheus_client's": theirs}.items():
        late = lateness(show)
        shown = " | ".join(f"{value:.2f}" for value in (percentile(late, 0.5), percentile(late, 0.99), max(late)))
        print(f"| {name} | {f'{taken(show):.1f}' if show else ''} | {shown} |")


def taken(show: Callable[[], object]) -> float:
    """Milliseconds of CPU, the least of ten."""
    found = []
    for _ in range(10):
        started = time.process_time()
        show()
        found.append((time.process_time() - started) * 1000)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    policy = load_policy(DEFAULT)
    print(f"{platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}; goal {GOAL:g} us")
    print(f"\n| CPU us an exchange | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    for kind in KINDS:
        with sink(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            found = costs(policy, kind, options.repeats)
        print(f"| {kind.name} | {' | '.join(f'{value:.1f}' for value in found)} |")
    scrape(policy)


if __name__ == "__main__":
    main()
