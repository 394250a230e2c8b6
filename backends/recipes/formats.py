"""How is a server's command written for a shell and for docker-compose.yml?   For Kubernetes: `kubernetes.py`."""

import itertools
import re
import shlex
from typing import Any

from backends.recipes.fit import Wish
from backends.recipes.hardware import Impossible
from backends.recipes.servers import GRAPHS, VLLM, Server, servers

Json = dict[str, Any]
LOOPBACK = {"flash": 8001, "pro": 8002}  # ports published on the host's loopback
CHECK = (
    "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); "
    "c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"
)


def shell(wish: Wish) -> str:
    """The shell commands, host by host, after comments with the notes. On a single host they bind to loopback."""
    made = servers(wish)
    lines = [f"# {note}" for note in notes(wish, made)]
    for server in made:
        alone = len(made) == 1 or wish.strategy == "pd"
        own = ",".join(map(str, server.gpus)) if wish.strategy == "pd" else ""
        env = "".join(f"{name}={value} " for name, value in server.env.items())
        env = f"CUDA_VISIBLE_DEVICES={own} {env}" if own else env
        lines += [f"# {server.role}"] * (len(made) > 1)
        lines.append(env + _broken(words((*server.argv, *(("--host=127.0.0.1",) if alone else ())))))
    return "\n".join(lines) + "\n"


def notes(wish: Wish, made: list[Server]) -> list[str]:
    """Notes for the operator on security, policy, ports and known problems."""
    said = [
        "vLLM's --api-key protects /v1 alone; /metrics, /invocations and others stay open: let only the gateway in."
    ]
    if wish.engine != "vllm":
        said = ["The server has no key: let nobody but the gateway in."]
    if wish.engine == "llama.cpp":
        said.append("In the policy: `engine: openai`, so that vLLM's own fields are not sent.")
    if wish.strategy == "pd":
        said.append(
            "The gateway asks the router, port 8000. Prefill and decode hand KV caches over by Mooncake, on ports that"
        )
        said.append("are not bound to loopback: close 8998, 8999 and RDMA's to other hosts.")
    if len(made) > 1 and wish.strategy != "pd":
        said.append(
            "Export LWS_LEADER_ADDRESS (the first host) and LWS_WORKER_INDEX (0, 1, ...) on each; a private network."
        )
    said += [f"{mode}: {told}" for mode, (flag, told) in GRAPHS.items() if any(flag in server.argv for server in made)]
    return said + ([f"{wish.hardware.name}: {wish.hardware.gpu.note}."] if wish.hardware.gpu.note else [])


def _broken(said: list[str]) -> str:
    """The command with each flag on a line of its own."""
    program = list(itertools.takewhile(lambda word: not word.lstrip("'\"").startswith("-"), said))
    return " \\\n  ".join([" ".join(program), *said[len(program) :]])


def words(argv: tuple[str, ...]) -> list[str]:
    """Quoted for a POSIX shell; a LeaderWorkerSet's variables (LWS_*) still expand."""
    ours = re.compile(r"\$(\{LWS_|\(\(LWS_)")
    return [f'"{word}"' if ours.search(word) else shlex.quote(word) for word in argv]


def compose(wish: Wish, first_gpu: int = 0) -> Json:
    """The tier's service in docker-compose.yml. Raises Impossible for all but one vLLM on one host with NVIDIA GPUs."""
    server, *more = servers(wish)
    if more or wish.engine != "vllm" or server.image != VLLM:
        raise Impossible("docker-compose.yml has one vLLM a tier, on one host with NVIDIA GPUs: --format shell, or k8s")
    gpus = [str(first_gpu + n) for n in server.gpus]
    return {
        "image": server.image,
        "profiles": ["gpu"],
        "user": "2000:0",
        "read_only": True,
        "tmpfs": ["/tmp:exec"],  # noqa: S108  kernels compiled at run time are loaded from there
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "logging": {"driver": "local"},
        "stop_grace_period": "45s",
        "entrypoint": list(server.argv[:2]),
        "command": list(server.argv[2:]),
        "environment": {"HF_TOKEN": None, **server.env},
        "volumes": ["models:/home/vllm"],
        "shm_size": "16gb",
        "ports": [f"127.0.0.1:{LOOPBACK[wish.tier]}:{server.port}"],
        "networks": {"tiers": {"aliases": [wish.tier]}},
        "healthcheck": {
            "test": ["CMD", "python3", "-c", CHECK],
            "interval": "10s",
            "timeout": "3s",
            "start_period": "2h",
            "retries": 3,
        },
        "deploy": {
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", "capabilities": ["gpu"], "device_ids": gpus}]}
            }
        },
    }
