"""Which processes does a measurement need?   Started on free loopback ports, ended by their own handles."""

import asyncio
import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.embedded import embedded

HOST = "127.0.0.1"
READY = 60.0  # seconds; several that start on a busy machine need more than twenty
DEFAULT = Path(__file__).parent.parent / "policies" / "default.yaml"
MODELS = {"flash": "deepseek-ai/DeepSeek-V4-Flash", "pro": "deepseek-ai/DeepSeek-V4-Pro"}
POLICY = """\
schema: 1
tiers:
  flash:
    model: {flash}
    replicas: ["${{FLASH_URL}}"]
    set: {{chat_template_kwargs: {{thinking: false, enable_thinking: false}}}}
  pro: {{model: {pro}, replicas: ["${{PRO_URL}}"], can: {{context: 200000}}}}
triage: {{tier: flash, timeout: 5s, cache: null{triage}}}
rules: [{{id: triaged, route: {{simple: flash, complex: pro}}}}]
callers: {{default: {{plan: free}}, plans: {{free: {{requests_per_minute: {limit}, concurrency: 10000, may: [pro]}}}}}}
"""


def free_port() -> int:
    """A port that is given to nobody else, for a server to come: kept by a socket that does not listen."""
    kept = socket.socket()
    kept.bind((HOST, 0))
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who asks for it by its number, as servers do, has it
    atexit.register(kept.close)
    return int(kept.getsockname()[1])


Process = subprocess.Popen[bytes]


def until(true: Callable[[], object], seconds: float = 20.0) -> float:
    """Seconds until `true()`, looked at the less often the longer it takes. Raises AssertionError after `seconds`."""
    started = time.monotonic()
    while not true():
        waited = time.monotonic() - started
        assert waited < seconds, "waited in vain"
        time.sleep(max(0.01, waited / 20))
    return time.monotonic() - started


def children(pid: int) -> dict[int, str]:
    """A process's children: the command of each by its id."""
    asked = ["ps", "-ww", "--ppid", str(pid), "-o", "pid=,args="]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return {int(number): command for number, command in (line.split(None, 1) for line in listed)}


def pid_of(url: str) -> int:
    """The process of ours that serves at `url`. Raises StopIteration."""
    port = url.rpartition(":")[2]
    return next(pid for pid, command in children(os.getpid()).items() if f"--port {port} " in f"{command} ")


def workers_of(url: str) -> list[int]:
    """The workers of a gateway that has several."""
    return [pid for pid, command in children(pid_of(url)).items() if "spawn_main" in command]


@contextlib.contextmanager
def program(arguments: Sequence[str], port: int, **env: str) -> Iterator[tuple[str, Process]]:
    """A Python program that listens on `port`: its URL, once /health answers, and its process. Raises TimeoutError."""
    process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **env})
    url = f"http://{HOST}:{port}"
    try:
        answering(f"{url}/health", process)
        yield url, process
    finally:
        end(process)


def end(process: Process) -> None:
    """A process has five seconds to leave by itself."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    process.kill()
    process.wait()


@dataclass(frozen=True)
class Sim:
    """A simulated tier in a process of its own."""

    url: str
    model: str

    def config(self, **faults: Any) -> None:
        """Lay these faults over what is set (see `backends/sim/faults.py`)."""
        self._call("POST", "/admin/config", faults)

    def state(self) -> dict[str, Any]:
        """What it has seen since the last reset: `counters` and `requests`, oldest first."""
        seen: dict[str, Any] = self._call("GET", "/admin/state")
        return seen

    def seen(self, kind: str = "answer") -> list[dict[str, Any]]:
        """The requests of one kind, triage or answer."""
        return [entry for entry in self.state()["requests"] if entry["kind"] == kind]

    def reset(self) -> None:
        """No faults, and nothing seen."""
        self._call("DELETE", "/admin")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read() or b"null")


@contextlib.contextmanager
def sim(tier: str, *flags: str, model: str | None = None) -> Iterator[Sim]:
    """A simulated tier; `model` is its name instead of the default policy's."""
    port = free_port()
    command = ["-m", "backends.sim", "--tier", tier, "--port", str(port), *flags]
    named = ["--served-model-name", model] if model else []
    with program([*command, *named], port) as (url, _):
        yield Sim(url, model or MODELS[tier])


@contextlib.contextmanager
def gateway(
    policy: str | Path, flash: Sim, pro: Sim, store: str = "embedded", *, workers: int = 1, **env: str
) -> Iterator[str]:
    """The URL of a gateway on a policy file or a policy's text; `embedded`: its store is a process of its own."""
    with running(policy, [flash, pro], env, REDIS_URL=store, WORKERS=str(workers)) as (url, _):
        while workers > 1 and _serving(url) < workers:
            time.sleep(0.05)
        yield url


@contextlib.contextmanager
def running(
    policy: str | Path, tiers: Sequence[Sim], given: Mapping[str, str] | None = None, /, **settings: str
) -> Iterator[tuple[str, Process]]:
    """A gateway's URL and its process; `settings` without GATEWAY_, `given`: other variables."""
    port, env = free_port(), dict(given or {})
    env |= {name: tier.url for name, tier in zip(("FLASH_URL", "PRO_URL"), tiers, strict=False)}
    env["GATEWAY_LOG_EXCHANGES"] = "false"
    env |= {f"GATEWAY_{name}": value for name, value in settings.items()}
    with tempfile.TemporaryDirectory() as place:
        file = policy if isinstance(policy, Path) else Path(place) / "policy.yaml"
        if isinstance(policy, str):
            file.write_text(policy)
        with program(["-m", "gateway", "serve", "--policy", str(file), "--port", str(port)], port, **env) as found:
            yield found


@contextlib.contextmanager
def valkey() -> Iterator[str]:
    """The URL of a store that several gateways may share."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        yield runner.run(stack.enter_async_context(embedded()))
        runner.run(stack.aclose())


def policy(requests_per_minute: int = 1_000_000, **triage: str) -> str:
    """A policy's text that triages everything afresh; `triage` are keys of that section."""
    asked = "".join(f", {key}: {value}" for key, value in triage.items())
    return POLICY.format(triage=asked, limit=requests_per_minute, **MODELS)


def _serving(url: str) -> int:
    with urllib.request.urlopen(url + "/ready", timeout=5) as answer:
        return int(json.loads(answer.read())["workers"])


def answering(url: str, process: Process, pause: float = 0.05) -> None:
    """Returns once something answers at `url`, looking again after each pause. Raises TimeoutError after READY seconds,
    and when the process has ended."""
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(pause)
    raise TimeoutError(f"{process.args!r} does not answer")
