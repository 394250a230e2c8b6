"""Two real vLLM servers as Flash and Pro, on tiny models, and a gateway in front of them.

Two URLs in VLLM_URLS ("http://HOST:PORT,http://HOST:PORT"; served names flash-model and pro-model) take the place of
servers of our own.
"""

import contextlib
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from loadtest.servers import Process, Sim, end, free_port
from tests.engines.tiny import CONTEXT, make

ROOT = Path(__file__).parent.parent.parent
PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
START = 400.0  # seconds for both; two busy cores took 100 to 140 (2026-11-22)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# The module, and not the command: that looks for a distribution named vllm, and this one is called vllm-cpu.
SERVE = ("-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--dtype", "bfloat16", "--enforce-eager",
         "--max-model-len", str(CONTEXT), "--max-num-seqs", "16", "--enable-prompt-tokens-details",
         "--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}',
         "--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")  # fmt: skip


class Engines(NamedTuple):
    flash: Sim
    pro: Sim


def installed() -> Path:
    """The interpreter that vLLM stands beside; skips where there is none."""
    if not any(PYTHON.parent.parent.glob("lib/python*/site-packages/vllm/__init__.py")):
        pytest.skip(f"no vLLM beside {PYTHON}: `make test-vllm` installs its CPU build where there is one")
    return PYTHON


def up(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
        return True
    return False


def wait(servers: Sequence[tuple[str, Process, Path]], seconds: float) -> None:
    """Until all answer. Fails with the end of what one wrote that ends instead."""
    deadline = time.monotonic() + seconds
    while not all(up(url) for url, _, _ in servers):
        for _, process, log in servers:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{process.args!r} does not answer:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


def engine(
    arguments: Sequence[str], port: int, log: Path
) -> contextlib.AbstractContextManager[tuple[str, Process, Path]]:
    """A server of the engines' interpreter, started and ended, not waited for."""
    return started([installed(), *arguments], port, log)


@contextlib.contextmanager
def started(command: Sequence[str | Path], port: int, log: Path) -> Iterator[tuple[str, Process, Path]]:
    """A server, started and ended, not waited for."""
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--port", str(port)], env={**os.environ, **QUIET}, stdout=out, stderr=out)
    try:
        yield f"http://127.0.0.1:{port}", process, log
    finally:
        end(process)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    if given := os.environ.get("VLLM_URLS"):
        flash, pro = given.split(",")
        yield Engines(Sim(flash, "flash-model"), Sim(pro, "pro-model"))
        return
    place = tmp_path_factory.mktemp("engines")
    with contextlib.ExitStack() as stack:
        servers = []
        for seed, tier in enumerate(("flash", "pro")):
            model = make(place / tier, seed)
            arguments = [*SERVE, "--model", str(model), "--served-model-name", f"{tier}-model"]
            servers.append(stack.enter_context(engine(arguments, free_port(), place / f"{tier}.log")))
        wait(servers, START)
        yield Engines(Sim(servers[0][0], "flash-model"), Sim(servers[1][0], "pro-model"))
