"""Two real vLLM servers as Flash and Pro, on tiny models, and a gateway in front of them; once for each architecture.

Two URLs in VLLM_URLS_QWEN3_MOE or VLLM_URLS_DEEPSEEK_V4 ("http://HOST:PORT,http://HOST:PORT"; served names flash-model
and pro-model) take the place of servers of our own.
"""

import contextlib
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import openai
import pytest

from loadtest.servers import Process, Sim, end, free_port, running
from tests.engines import tiny, tiny_v4
from tests.engines.tiny import CONTEXT

ROOT = Path(__file__).parent.parent.parent
PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
START = 500.0  # seconds for two; two busy cores took 60 to 140, with ten programs more on them 390 (2026-11-22)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
V4_POINTS = {"v4_on_cpu": "tests.engines.v4_on_cpu:register"}
# The module, and not the command: that looks for a distribution named vllm, and this one is called vllm-cpu.
COMMON = ("-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--dtype", "bfloat16", "--enforce-eager",
          "--max-model-len", str(CONTEXT), "--max-num-seqs", "16", "--enable-prompt-tokens-details",
          "--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}',
          "--enable-auto-tool-choice")  # fmt: skip
SERVE = (*COMMON, "--reasoning-parser", "qwen3", "--tool-call-parser", "hermes")
# V4's tokenizer mode, and with it its chat encoding, is chosen by vLLM itself.
SERVE_V4 = (*COMMON, "--reasoning-parser", "deepseek_v4", "--tool-call-parser", "deepseek_v4")


class Architecture(NamedTuple):
    name: str
    pair: Callable[[Path], tuple[Path, Path]]  # makes the models of Flash and Pro in a folder
    serve: tuple[str, ...]
    points: Mapping[str, str]  # general plug-ins of vLLM's that it takes


QWEN3_MOE = Architecture("qwen3_moe", tiny.pair, SERVE, {})
DEEPSEEK_V4 = Architecture("deepseek_v4", tiny_v4.pair, SERVE_V4, V4_POINTS)


class Engines(NamedTuple):
    flash: Sim
    pro: Sim


@contextlib.contextmanager
def client_of(policy: str, engines: Sequence[Sim]) -> Iterator[openai.OpenAI]:
    """A client of a gateway with this policy in front of these servers."""
    with (
        running(policy, engines) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="anything", max_retries=0, timeout=60) as made,
    ):
        yield made


def installed() -> Path:
    """The interpreter that vLLM stands beside; skips where there is none."""
    if not any(PYTHON.parent.parent.glob("lib/python*/site-packages/vllm/__init__.py")):
        pytest.skip(f"no vLLM beside {PYTHON}: `make test-vllm` installs its CPU build where there is one")
    return PYTHON


def fit(architecture: Architecture) -> None:
    """Skips where there is no vLLM, or none that runs it on this machine."""
    installed()
    flags = Path("/proc/cpuinfo")
    if architecture == DEEPSEEK_V4 and not (flags.exists() and "avx512_bf16" in flags.read_text()):
        pytest.skip("DeepSeek-V4 on a CPU: vLLM has kernels for x86 with avx512_bf16 only; this machine has none")


def entry_points(folder: Path, name: str, points: Mapping[str, Mapping[str, str]]) -> Path:
    """What an installed distribution says to Python, on a path of its own: its entry points by group."""
    known = folder / f"{name}-0.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    groups = (
        "\n".join([f"[{group}]", *(f"{point} = {where}" for point, where in inside.items()), ""])
        for group, inside in points.items()
    )
    (known / "entry_points.txt").write_text("".join(groups))
    return folder


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A file of tests may name ARCHITECTURES to run with; else it is Qwen3-MoE."""
    if "architecture" in metafunc.fixturenames:
        known = getattr(metafunc.module, "ARCHITECTURES", [QWEN3_MOE])
        metafunc.parametrize("architecture", known, indirect=True, ids=lambda one: one.name, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One architecture after the other and file by file, so that no server is started twice."""
    # By value: the tests import another copy of this file than pytest does.
    items.sort(key=lambda item: (_of(item) == DEEPSEEK_V4, item.path))


def _of(item: pytest.Item) -> object:
    return item.callspec.params.get("architecture") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session")
def architecture(request: pytest.FixtureRequest) -> Architecture:
    found: Architecture = request.param
    return found


@pytest.fixture(scope="session")
def engines(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    if given := os.environ.get(f"VLLM_URLS_{architecture.name.upper()}"):
        flash, pro = given.split(",")
        yield Engines(Sim(flash, "flash-model"), Sim(pro, "pro-model"))
        return
    fit(architecture)
    place = tmp_path_factory.mktemp(architecture.name)
    points = entry_points(place / "points", "shim", {"vllm.general_plugins": architecture.points})
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{points}:{ROOT}")
        servers = []
        for tier, model in zip(("flash", "pro"), architecture.pair(place), strict=True):
            arguments = [*architecture.serve, "--model", str(model), "--served-model-name", f"{tier}-model"]
            servers.append(stack.enter_context(engine(arguments, free_port(), place / f"{tier}.log")))
        environment.undo()  # the gateways that come have no use for it
        wait(servers, START)
        yield Engines(Sim(servers[0][0], "flash-model"), Sim(servers[1][0], "pro-model"))
