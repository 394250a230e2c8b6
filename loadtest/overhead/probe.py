"""What did a process do with its time under a load?   The C programs of loadtest/bench, and what /proc says."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.overhead.ways import GATEWAY_CPU, OTHERS_CPU, Running, Way
from loadtest.servers import free_port

SOURCES = Path(__file__).parent.parent / "bench"
CHUNKS, GAP = 32, 5000  # events of a stream beside [DONE], and microseconds between two
TICKS = os.sysconf("SC_CLK_TCK")
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
QUESTION = "Request ################: explain in two sentences why the sky is blue by day and red at sunset."
FILL = ' The river ran slowly past the mill, "and" the miller\'s daughter\ncounted the sacks of grain.'


@dataclass(frozen=True)
class Point:
    """A load: `connections` that ask again and again, each with a prompt of that many characters."""

    name: str
    connections: int
    characters: int = 0
    stream: bool = False

    def body(self, model: str) -> bytes:
        """A request's body; sixteen # stand for what tells one request from the others."""
        text = QUESTION + FILL * (self.characters // len(FILL))
        told = {"model": model, "messages": [SYSTEM, {"role": "user", "content": text}], "max_tokens": 256}
        return json.dumps(told | {"temperature": 0.7} | ({"stream": True} if self.stream else {})).encode()


@dataclass(frozen=True)
class Seen:
    """What came of a load. Times in microseconds; `cpu` is the measured process's, an answer; `rate` answers a second.

    `foreign`: the share of the gateway's CPU that other processes took.
    """

    rate: float
    cpu: float
    p50: float
    p99: float
    ttfb50: float
    ttfb99: float
    foreign: float


def built(place: Path) -> None:
    """Compiles both programs into `place`. Raises CalledProcessError."""
    for name in ("stub", "load"):
        source, program = str(SOURCES / f"{name}.c"), str(place / name)
        subprocess.run(["cc", "-O2", "-o", program, source], check=True, timeout=60)


@contextlib.contextmanager
def model_server(place: Path) -> Iterator[Running]:
    """The stub."""
    port = free_port()
    process = subprocess.Popen([str(place / "stub"), str(port), str(CHUNKS), str(GAP)])
    try:
        time.sleep(0.2)
        yield Running(process.pid, port, 0.0)
    finally:
        process.kill()
        process.wait()


def measured(place: Path, way: Way, running: Running, point: Point, seconds: tuple[float, float]) -> Seen:
    """One load on one way; `seconds` of measuring and warming up. Raises RuntimeError on a broken answer."""
    last, warm = seconds
    before, idle, busy = ticks(running.pid), *core()
    told = loaded(place, way, running, point, seconds)
    spent, idle_after, busy_after = ticks(running.pid) - before, *core()
    wanted = CHUNKS + 1 if point.stream else 0
    if told["failed"] or told["refused"] or abs(told["events"] - wanted) > 0.01 or not told["answers"]:
        raise RuntimeError(f"{way.name}, {point.name}: {told}")
    whole = max(1, idle_after - idle + busy_after - busy)
    answers = told["rate"] * (last + warm)  # the CPU was counted over both
    cpu = spent / TICKS * 1e6 / answers
    foreign = max(0.0, busy_after - busy - spent) / whole
    return Seen(told["rate"], cpu, told["p50"], told["p99"], told["ttfb50"], told["ttfb99"], foreign)


def loaded(place: Path, way: Way, running: Running, point: Point, seconds: tuple[float, float]) -> dict[str, Any]:
    """One load; what the program of loadtest/bench says of it."""
    file = place / "body.json"
    file.write_bytes(point.body(way.model))
    command = [str(place / "load"), str(running.port), str(file), str(point.connections), *map(str, seconds)]
    process = subprocess.run([*command, *way.headers], capture_output=True, text=True, check=True, timeout=60)
    told: dict[str, Any] = json.loads(process.stdout)
    return told


def ticks(pid: int) -> int:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def core() -> tuple[int, int]:
    """Idle and busy ticks of the gateway's CPU."""
    lines = Path("/proc/stat").read_text().splitlines()
    fields = [int(text) for text in next(line for line in lines if line.startswith(f"cpu{GATEWAY_CPU} ")).split()[1:9]]
    idle = fields[3] + fields[4]
    return idle, sum(fields) - idle


def resident(pid: int) -> float:
    """Resident memory in megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def aside() -> None:
    """This process, and all that it starts from here on, leave the gateway's CPU alone."""
    os.sched_setaffinity(0, {OTHERS_CPU})
