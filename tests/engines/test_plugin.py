"""Does the installed vLLM take the plug-in that skips experts, and answer as without it where none is skipped?"""

import contextlib
import json
import os
import re
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from loadtest.servers import free_port
from tests.engines.conftest import QUIET, ROOT, SERVE, START, Engines, engine, installed, wait
from tests.engines.tiny import make

# In order: off, counted only; at most one expert a step in layer 1.
MODES = {
    "exact": "mode=off,log_s=1",
    "skips": '{"mode":"off","layers":{"1":{"mode":"batch-aware","experts":1}},"log_s":1}',
}
PROMPTS = ["What is the capital of France?", "Count to ten.", "A long one: " + "word " * 200]
COUNTED = re.compile(r"flashmoe: (\d+) experts read of (\d+) asked")


class Plugged(NamedTuple):
    url: str
    log: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that says to Python what an installed Tiergate says: the entry points of pyproject.toml."""
    folder = tmp_path_factory.mktemp("plugged")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    known = folder / "tiergate-0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: tiergate\nVersion: 0\n")
    lines = [f"{name} = {where}" for name, where in points.items()]
    (known / "entry_points.txt").write_text("\n".join(["[vllm.general_plugins]", *lines, ""]))
    return folder


@pytest.fixture(scope="module")
def plugged(place: Path) -> Iterator[dict[str, Plugged]]:
    """Servers of the model that `engines` has as Flash, one for each of MODES."""
    model = make(place / "model", seed=0)
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{place}:{ROOT}")
        servers = {}
        for name, mode in MODES.items():
            environment.setenv("FLASHMOE_VLLM", mode)
            arguments = [*SERVE, "--model", str(model), "--served-model-name", "flash-model"]
            servers[name] = stack.enter_context(engine(arguments, free_port(), place / f"{name}.log"))
        wait(list(servers.values()), START)
        yield {name: Plugged(url, log) for name, (url, _, log) in servers.items()}


def said(url: str, prompt: str) -> str:
    body = {"model": "flash-model", "prompt": prompt, "max_tokens": 24, "temperature": 0}
    asked = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=120) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text


def counted(log: Path, more_than: int = 0) -> tuple[int, int]:
    """Read and asked in the first line of the log in which more were asked."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for line in COUNTED.finditer(log.read_text()):
            if int(line[2]) > more_than:
                return int(line[1]), int(line[2])
        time.sleep(0.2)
    pytest.fail(f"no such line:\n{log.read_text()[-3000:]}")


def test_with_mode_off_the_text_is_that_of_a_server_without_the_plug_in(
    engines: Engines, plugged: dict[str, Plugged]
) -> None:
    for prompt in PROMPTS:
        assert said(plugged["exact"].url, prompt) == said(engines.flash.url, prompt)


def test_a_server_counts_the_experts_that_it_asks_and_reads(plugged: dict[str, Plugged]) -> None:
    _, before = counted(plugged["exact"].log)
    said(plugged["exact"].url, PROMPTS[0])
    read, asked = counted(plugged["exact"].log, before)
    assert read == asked > before


def test_a_server_that_skips_answers_and_reads_fewer_experts(plugged: dict[str, Plugged]) -> None:
    assert said(plugged["skips"].url, PROMPTS[0])
    read, asked = counted(plugged["skips"].log)
    assert asked / 2 < read < asked  # layer 0 reads all that it asks, and layer 1 one expert a step


def inside(program: str, place: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program beside the installed vLLM."""
    names = {**os.environ, **QUIET, "PYTHONPATH": f"{place}:{ROOT}", **environment}
    command = [str(installed()), "-c", program]
    return subprocess.run(command, env=names, capture_output=True, text=True, timeout=120, check=False)


REGISTERED = """
from vllm.model_executor.custom_op import op_registry_oot
from vllm.plugins import load_general_plugins
load_general_plugins()
import backends.flashmoe.plugin
backends.flashmoe.plugin.register()
print("registered:", sorted(op_registry_oot))
"""


def test_the_entry_point_replaces_the_layer_once_and_only_when_asked(place: Path) -> None:
    without = inside(REGISTERED, place)
    assert "registered: []" in without.stdout, without.stderr
    found = inside(REGISTERED, place, FLASHMOE_VLLM="mode=off")
    assert "registered: ['GateLinear', 'RoutedExperts']" in found.stdout, found.stderr


def test_a_variable_that_cannot_be_read_stops_the_start_with_one_line(place: Path) -> None:
    found = inside(REGISTERED, place, FLASHMOE_VLLM="mode=fast")
    assert found.returncode != 0
    assert "FLASHMOE_VLLM: mode must be one of off, top-k" in found.stderr.splitlines()[-1]


STRANGER = """
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
@RoutedExperts.register_oot
class Other(RoutedExperts): ...
"""


def test_the_layer_of_another_plug_in_stays(place: Path) -> None:
    found = inside(STRANGER + REGISTERED, place, FLASHMOE_VLLM="mode=off")
    assert "registered: ['RoutedExperts']" in found.stdout, found.stderr
    assert "another plug-in has put" in found.stdout + found.stderr


OLDER = """
from vllm.model_executor.layers.fused_moe import routed_experts
class RoutedExperts:
    def forward_modular(self, x, topk_weights, topk_ids): ...
routed_experts.RoutedExperts = RoutedExperts
"""


def test_a_layer_of_another_shape_leaves_vllm_as_it_is(place: Path) -> None:
    found = inside(OLDER + REGISTERED, place, FLASHMOE_VLLM="mode=off")
    assert "registered: []" in found.stdout, found.stderr
    assert "leaves vLLM as it is: RoutedExperts.forward_modular takes self, x" in found.stdout + found.stderr


MEGA = """
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
config = VllmConfig()
config.kernel_config.moe_backend = "deep_gemm_mega_moe"
with set_current_vllm_config(config):
    GateLinear(8, 4)
"""


def test_mega_moe_is_refused_with_what_to_change(place: Path) -> None:
    found = inside(REGISTERED + MEGA, place, FLASHMOE_VLLM="mode=off")
    assert found.returncode != 0
    assert "--moe-backend deep_gemm_mega_moe bypasses" in found.stderr.splitlines()[-1]


MONOLITHIC = """
import torch
from backends.flashmoe.plugin.layer import Experts
layer = Experts.__new__(Experts)
torch.nn.Module.__init__(layer)
layer.quant_method = "a method that routes inside"
layer.forward_monolithic(torch.zeros(1), torch.zeros(1))
"""


def test_a_kernel_that_routes_inside_is_refused_with_what_to_change(place: Path) -> None:
    found = inside(REGISTERED + MONOLITHIC, place, FLASHMOE_VLLM="mode=off")
    assert found.returncode != 0
    assert "routes inside of its kernel" in found.stderr.splitlines()[-1]
