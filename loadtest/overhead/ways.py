"""Which gateways are compared, and how does each start?   One process each, without a core of its own to spare."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from loadtest.servers import HOST, READY, answering, end, free_port

ROOT = Path(__file__).parent.parent.parent
GATEWAY_CPU, OTHERS_CPU = 0, 1
ROUTER = Path(os.environ.get("VLLM_ROUTER", ROOT / ".venv-router" / "bin" / "vllm-router"))
LITELLM = Path(os.environ.get("LITELLM", ROOT / ".venv-litellm" / "bin" / "litellm"))
MASTER = "sk-bench-0123456789abcdef0123456789abcdef"  # LiteLLM does not start without a strong one
TRACED = 0.05
NGINX = """\
daemon off; master_process off; worker_processes 1; pid {place}/nginx.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_buffer_size 256k; tcp_nodelay on;
  client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  upstream stub {{ server {stub}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1; proxy_set_header connection ""; proxy_buffering off;
    location / {{ proxy_pass http://stub; }}
  }}
}}
"""
POLICY = """\
schema: 1
tiers:
  flash:
    model: stub
    replicas: ["http://{stub}"]
    limits: {{max_inflight: 10000}}
    price: {{input_per_m: 0.14, output_per_m: 0.28}}
    set: {{chat_template_kwargs: {{thinking: false, enable_thinking: false}}}}
  pro: {{model: stub, replicas: ["http://{stub}"], limits: {{max_inflight: 10000}}}}
triage: {{tier: flash, timeout: 10s, cache: null, speculate: never, strategy: json_logprobs}}
rules: [{{id: all, route: {route}}}]
caching: {caching}
callers:
  default: {{plan: free}}
  plans: {{free: {{requests_per_minute: 100000000, concurrency: 10000, may: [pro]}}}}
"""
MODELS = """\
model_list: [{{model_name: stub, litellm_params: {{model: openai/stub, api_base: "http://{stub}/v1", api_key: none}}}}]
general_settings: {{master_key: {master}}}
"""
KEPT = "{ttl: 10s, when: {temperature: {max: 2}}}"


class Spot(NamedTuple):
    """Where a way runs: the model server's address, a directory of its own, and the store's URL."""

    stub: str
    place: Path
    store: str


class Running(NamedTuple):
    """A started way: the process that is measured, its port, and how long it took until it answered."""

    pid: int
    port: int
    seconds: float


@dataclass(frozen=True)
class Way:
    """A way to the model server. `model` is what requests ask for; `headers` go with them."""

    name: str
    model: str = "stub"
    headers: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    alive: str = "/health"  # what answers once it serves
    warm: float = 0.0  # seconds of load before anything is measured
    most: int = 256  # connections at once; with more it answers none in the time of a load

    def missing(self) -> str | None:
        """What this machine lacks for it."""
        return None

    def command(self, spot: Spot, port: int) -> Sequence[str]:
        """The program to start on `port`."""
        raise NotImplementedError

    @contextlib.contextmanager
    def started(self, spot: Spot, before: Sequence[str] = ()) -> Iterator[Running]:
        """The process, on a CPU of its own, until the end of the block; `before` is a command that runs it. Raises
        TimeoutError."""
        port = free_port()
        command = self.command(spot, port)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a gateway is started from compiled code
        began = time.perf_counter()
        with (spot.place / "output").open("ab") as output:
            process = subprocess.Popen(
                ["taskset", "-c", str(GATEWAY_CPU), *before, *command],
                env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=output,
            )  # fmt: skip
        try:
            answering(f"http://{HOST}:{port}{self.alive}", process, pause=0.01)
            yield Running(process.pid, port, time.perf_counter() - began)
        finally:
            end(process)


class Nginx(Way):
    """`proxy_pass` over kept connections, without buffering and log."""

    def missing(self) -> str | None:
        return None if shutil.which("nginx", path=_PATH) else "nginx is not installed"

    def command(self, spot: Spot, port: int) -> Sequence[str]:
        file = spot.place / "nginx.conf"
        file.write_text(NGINX.format(place=spot.place, stub=spot.stub, port=port))
        return [shutil.which("nginx", path=_PATH) or "nginx", "-c", str(file), "-p", str(spot.place)]


class Router(Way):
    """vllm-router, round robin over one worker."""

    def missing(self) -> str | None:
        return (
            None if ROUTER.exists() else f"no {ROUTER.name} in {ROUTER.parent.parent.name} (`make bench` installs it)"
        )

    def command(self, spot: Spot, port: int) -> Sequence[str]:
        told = ["--worker-urls", f"http://{spot.stub}", "--policy", "round_robin", "--log-level", "error"]
        return [str(ROUTER), *told, "--host", HOST, "--port", str(port), "--prometheus-port", str(free_port())]


class LiteLLM(Way):
    """LiteLLM's proxy as it is meant for production: one worker, a key, no database, errors alone in its log."""

    def missing(self) -> str | None:
        return None if LITELLM.exists() else "no LITELLM=.../bin/litellm (`make .venv-litellm` installs it)"

    def command(self, spot: Spot, port: int) -> Sequence[str]:
        file = spot.place / "litellm.yaml"
        file.write_text(MODELS.format(stub=spot.stub, master=MASTER))
        return [str(LITELLM), "--config", str(file), "--host", HOST, "--port", str(port), "--num_workers", "1"]


@dataclass(frozen=True)
class Tiergate(Way):
    """This gateway. `shared`: on the store, with TRACED of its exchanges traced, else in memory; `route` and `caching`
    go into its policy. The model server stands in for a collector: it answers whatever it is sent."""

    model: str = "flash"
    shared: bool = False
    route: str = "flash"
    caching: str = "null"

    def command(self, spot: Spot, port: int) -> Sequence[str]:
        file = spot.place / f"{self.name.replace(' ', '-')}.yaml"
        file.write_text(POLICY.format(stub=spot.stub, route=self.route, caching=self.caching))
        redis = ["--redis", spot.store] if self.shared else []
        traced = [f"GATEWAY_TRACE_RATIO={TRACED}", f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{spot.stub}"]
        serve = [sys.executable, "-m", "gateway", "serve", "--policy", str(file), "--port", str(port)]
        return ["env", *(traced if self.shared else ()), *serve, *redis]


def ways(key: str) -> list[Way]:
    """All that are compared; `key` is an API key on the store."""
    settled = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    master = (f"authorization: Bearer {MASTER}",)
    keyed, quiet = (f"authorization: Bearer {key}",), {"GATEWAY_LOG_EXCHANGES": "false"}
    return [
        Nginx("nginx"),
        Router("vllm-router"),
        LiteLLM("litellm", headers=master, environment=settled, alive="/health/liveliness", warm=5.0, most=64),
        Tiergate("passthrough", environment=quiet),
        Tiergate("passthrough (asgi)", environment={**quiet, "GATEWAY_HTTP": "asgi"}),
        Tiergate("full path", "auto", keyed, shared=True, caching=KEPT),
        Tiergate("with triage", "auto", keyed, shared=True, caching=KEPT, route="{simple: flash, complex: pro}"),
    ]


def new_key(store: str) -> str:
    """An API key, made on the store as an operator makes one."""
    command = [sys.executable, "-m", "gateway", "keys", "create", "bench", "--redis", store]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=READY)
    return made.stdout.strip()


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"  # where Debian has nginx
