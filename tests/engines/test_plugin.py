"""Does the installed vLLM take the plug-in that skips experts, and answer as without it where none is skipped?"""

import contextlib
import json
import os
import re
import subprocess
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loadtest.servers import Sim, free_port, running
from tests.engines.conftest import QUIET, ROOT, SERVE, START, Engines, engine, installed, wait
from tests.engines.tiny import make

ONE = {"mode": "batch-aware", "experts": 1}
# In order: all is read unless a request brings a k; at most one expert a step in layer 1, until the guard has seen it.
MODES = {
    "exact": {"FLASHMOE_VLLM": "mode=off,requests=true,log_s=1", "VLLM_PLUGINS": "flashmoe"},
    "skips": {"FLASHMOE_VLLM": json.dumps({"mode": "off", "layers": {"1": ONE}, "guard": 0.01, "every": 1})},
}
PROMPTS = ["What is the capital of France?", "Count to ten.", "A long one: " + "word " * 200]
TOKENS = 24
COUNTED = re.compile(r"flashmoe: (\d+) experts read of (\d+) asked")
GROUPS = "vllm.general_plugins", "vllm.stat_logger_plugins", "vllm.endpoint_plugins"
BUDGETS = """\
schema: 1
tiers:
  tight:
    model: flash-model
    replicas: ["${FLASH_URL}"]
    set: {vllm_xargs: {flashmoe_k: 1}}
    skips: k1
  whole: {model: flash-model, replicas: ["${FLASH_URL}"]}
triage: {tier: whole, timeout: 30s, cache: null, strategy: choice, speculate: never, threshold: %s}
rules: [{id: triaged, route: {simple: tight, complex: whole}}]
callers: {default: {plan: free}, plans: {free: {requests_per_minute: 100000, may: [whole]}}}
"""


class Plugged(NamedTuple):
    url: str
    log: Path

    def metric(self, name: str) -> float:
        """The sum of a metric's series in vLLM's own /metrics; they are a second old at most."""
        text = fetched(f"{self.url}/metrics").decode()
        found = re.findall(rf"^{name}{{[^\n]*}} ([0-9.e+]+)$", text, re.MULTILINE)
        return sum(map(float, found))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that says to Python what an installed Tiergate says: the entry points of pyproject.toml."""
    folder = tmp_path_factory.mktemp("plugged")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    known = folder / "tiergate-0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: tiergate\nVersion: 0\n")
    lines = [line for group in GROUPS for line in (f"[{group}]", *map(" = ".join, points[group].items()))]
    (known / "entry_points.txt").write_text("\n".join([*lines, ""]))
    return folder


@pytest.fixture(scope="module")
def plugged(place: Path) -> Iterator[dict[str, Plugged]]:
    """Servers of the model that `engines` has as Flash, one for each of MODES."""
    model = make(place / "model", seed=0)
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, mode in MODES.items():
            arguments = [*SERVE, "--model", str(model), "--served-model-name", "flash-model"]
            with pytest.MonkeyPatch.context() as environment:
                for variable, value in {"PYTHONPATH": f"{place}:{ROOT}", **mode}.items():
                    environment.setenv(variable, value)
                servers[name] = stack.enter_context(engine(arguments, free_port(), place / f"{name}.log"))
        wait(list(servers.values()), START)
        yield {name: Plugged(url, log) for name, (url, _, log) in servers.items()}


def fetched(url: str, body: Any = None) -> bytes:
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=120) as answer:
        found: bytes = answer.read()
    return found


def said(url: str, prompt: str, **more: Any) -> str:
    """TOKENS tokens, whatever they are: the model may not end."""
    body = {"model": "flash-model", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
    text: str = json.loads(fetched(f"{url}/v1/completions", body | more))["choices"][0]["text"]
    return text


def until(check: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline, f"it never came to be:\n{log.read_text()[-3000:]}"
        time.sleep(0.2)


def settled(server: Plugged) -> dict[str, float]:
    """A server's figures once they have stopped to move."""
    names = ("flashmoe_experts_asked_total", "flashmoe_experts_read_total", "flashmoe_own_tokens_total")
    while True:
        before = {name: server.metric(name) for name in names}
        time.sleep(2.5)  # workers tell their figures each second
        if before == {name: server.metric(name) for name in names}:
            return before


def test_with_mode_off_the_text_is_that_of_a_server_without_the_plug_in(
    engines: Engines, plugged: dict[str, Plugged]
) -> None:
    for prompt in PROMPTS:
        assert said(plugged["exact"].url, prompt) == said(engines.flash.url, prompt)


def test_a_server_shows_the_experts_that_it_asks_and_reads_in_its_own_metrics(plugged: dict[str, Plugged]) -> None:
    server = plugged["exact"]
    before = settled(server)
    said(server.url, PROMPTS[0])
    after = settled(server)
    asked, read, own = (after[name] - before[name] for name in before)
    assert asked == read >= 2 * 2 * TOKENS, "two layers of two experts a token"
    assert own == 0
    until(lambda: COUNTED.search(server.log.read_text()) is not None, server.log)


def test_a_requests_k_holds_for_what_it_generates(plugged: dict[str, Plugged]) -> None:
    server = plugged["exact"]
    before, whole = settled(server), said(server.url, PROMPTS[1])
    between, tight = settled(server), said(server.url, PROMPTS[1], vllm_xargs={"flashmoe_k": 1})
    after = settled(server)
    names = list(before)
    _, read, own = (after[name] - between[name] for name in names)
    _, read_whole, _ = (between[name] - before[name] for name in names)
    assert own == TOKENS - 1, "the last one is said and not computed"
    assert read_whole - read == 2 * (TOKENS - 1), "one expert less in each of two layers"
    assert tight != whole
    assert tight[0] == whole[0], "the first token is the prompt's"


def test_requests_with_and_without_a_k_share_a_batch_and_not_the_k(plugged: dict[str, Plugged]) -> None:
    url = plugged["exact"].url
    wanted = [{}, {"vllm_xargs": {"flashmoe_k": 1}}] * 2
    alone = [said(url, prompt, **more) for prompt, more in zip(PROMPTS * 2, wanted, strict=False)]
    with ThreadPoolExecutor(len(alone)) as pool:
        together = [pool.submit(said, url, prompt, **more) for prompt, more in zip(PROMPTS * 2, wanted, strict=False)]
        assert [one.result() for one in together] == alone


@pytest.mark.parametrize("k", [0, -1, 1.5, "one", ["a"]])
def test_what_is_no_k_is_passed_over(plugged: dict[str, Plugged], k: Any) -> None:
    url = plugged["exact"].url
    assert said(url, PROMPTS[0], vllm_xargs={"flashmoe_k": k}) == said(url, PROMPTS[0])


@pytest.mark.parametrize(("threshold", "tier", "skips", "own"), [(1.0, "tight", "k1", 7), (0.0, "whole", None, 0)])
def test_the_gateway_gives_simple_prompts_a_tighter_budget_on_the_same_servers(
    plugged: dict[str, Plugged], threshold: float, tier: str, skips: str | None, own: int
) -> None:
    server = plugged["exact"]
    before = settled(server)["flashmoe_own_tokens_total"]
    body = {"model": "auto", "messages": [{"role": "user", "content": "Cranes?"}], "max_tokens": 8}
    body |= {"allowed_token_ids": list(range(94)), "vllm_xargs": {"flashmoe_k": 2}}  # which is not the caller's to say
    with running(BUDGETS % threshold, [Sim(server.url, "flash-model")]) as (url, _):
        asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert (answer.headers["x-route-tier"], answer.headers["x-route-skips"]) == (tier, skips)
    assert settled(server)["flashmoe_own_tokens_total"] - before == own


def test_the_guard_sees_a_bad_plan_and_has_whole_answers_served(engines: Engines, plugged: dict[str, Plugged]) -> None:
    server = plugged["skips"]
    said(server.url, PROMPTS[0])
    until(lambda: server.metric("flashmoe_guard_exact") == 1, server.log)
    asked, read, _ = settled(server).values()
    assert asked / 2 < read < asked, "layer 0 reads all that it asks, and layer 1 one expert a step, at first"
    assert server.metric("flashmoe_guard_trips_total") == 1
    assert server.metric("flashmoe_guard_strain") > 1
    for prompt in PROMPTS:
        assert said(server.url, prompt) == said(engines.flash.url, prompt)


def test_policy_and_counts_are_shown_where_the_server_is_told_to(plugged: dict[str, Plugged]) -> None:
    told = json.loads(fetched(f"{plugged['exact'].url}/v1/flashmoe"))
    assert told["policy"] == {"mode": "off", "requests": True, "log_s": 1}
    assert told["workers"]["0.0"]["layers"] == 2
    assert told["workers"]["0.0"]["asked"] >= told["workers"]["0.0"]["read"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetched(f"{plugged['skips'].url}/v1/flashmoe")


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


LAYER = """
import torch
from types import SimpleNamespace
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
config = VllmConfig()
config.model_config = SimpleNamespace(hf_text_config=SimpleNamespace(), dtype=torch.bfloat16, is_moe=False)
config.compilation_config.mode = 0
current = set_current_vllm_config(config)
current.__enter__()
init_distributed_environment(1, 0, "tcp://127.0.0.1:PORT", 0, backend="gloo")
initialize_model_parallel()
sizes = dict(num_experts=4, top_k=2, hidden_size=64, intermediate_size=64, params_dtype=torch.bfloat16)
layer = FusedMoEFactory(**sizes, prefix="model.layers.0.mlp").routed_experts
"""


def in_a_layer(program: str, place: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program that has a `layer` of vLLM's."""
    return inside(REGISTERED + LAYER.replace("PORT", str(free_port())) + program, place, **environment)


FUSED = """
print("made:", type(layer).__name__)
layer.expert_map_manager.num_fused_shared_experts = 1
type(layer)("model.layers.1.mlp", torch.bfloat16, layer.moe_config, None, layer.expert_map_manager)
"""


def test_shared_experts_that_are_slots_are_refused_with_what_to_change(place: Path) -> None:
    found = in_a_layer(FUSED, place, FLASHMOE_VLLM="mode=top-k,k=1")
    assert "made: Experts" in found.stdout, found.stderr
    assert found.returncode != 0
    assert "VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS=0, or without the variable" in found.stderr


OWN_MAKING = """
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
class Own(RoutedExperts): ...
for at in (1, 2):
    FusedMoEFactory(**sizes, prefix=f"model.layers.{at}.mlp", routed_experts_cls=Own)
"""


def test_a_layer_of_a_models_own_making_is_told_of_once(place: Path) -> None:
    found = in_a_layer(OWN_MAKING, place, FLASHMOE_VLLM="mode=top-k,k=1")
    assert found.returncode == 0, found.stderr
    assert (found.stdout + found.stderr).count("flashmoe skips no expert in layers of Own:") == 1
    assert "in layers of Experts:" not in found.stdout + found.stderr


GUARDED = """
torch.manual_seed(0)
for parameter in layer.parameters():
    torch.nn.init.normal_(parameter, 0, 0.2)
layer.quant_method.process_weights_after_loading(layer)
x, weights, ids = torch.randn(6, 64).bfloat16(), torch.rand(6, 2), torch.rand(6, 4).argsort(1)[:, :2].int()
def answer(x, looked={}):
    with set_forward_context(looked, config, num_tokens=6):
        return layer.forward_modular(x.clone(), weights, ids)
def steps(count, k, x=x):
    for _ in range(count):
        layer.flashmoe_k[:] = k
        said = answer(x)
    print(k, torch.equal(said, whole), layer.worker.watch.figures()["trips"])
whole = answer(x, None)
steps(1, 0, x * torch.nan)
steps(1, 1)
steps(100, 1)
steps(100, 0)
steps(1, 1)
"""


def test_the_guard_acts_on_what_requests_bring_also_after_a_step_without_numbers(place: Path) -> None:
    found = in_a_layer(GUARDED, place, FLASHMOE_VLLM="mode=off,requests=true,guard=0.2,every=1")
    said = found.stdout.splitlines()[-5:]
    assert said == ["0 False 0", "1 False 0", "1 True 1", "0 True 1", "1 False 1"], found.stderr


BLIND = """
import torch
from vllm.config import CUDAGraphMode, VllmConfig
from backends.flashmoe.plugin.settings import parse
from backends.flashmoe.plugin.worker import refuse_blind
config = VllmConfig()
config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL
refuse_blind(parse("mode=top-k,k=2,guard=0.2"), config, torch.device("cuda"))
print("top-k is let")
refuse_blind(parse("mode=batch-aware,k=2,guard=0.2"), config, torch.device("cuda"))
"""


def test_a_guard_that_sees_other_batches_than_it_guards_is_refused(place: Path) -> None:
    found = inside(REGISTERED + BLIND, place, FLASHMOE_VLLM="mode=off")
    assert "top-k is let" in found.stdout, found.stderr
    assert "a guard of mode batch-aware needs --enforce-eager" in found.stderr.splitlines()[-1]


UNREAD = """
class AiterExperts: ...
layer.quant_method.moe_kernel = SimpleNamespace(fused_experts=AiterExperts())
layer.forward_modular(torch.zeros(1, 64), torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.int32))
"""


def test_a_kernel_that_might_lose_experts_is_refused_with_what_to_change(place: Path) -> None:
    found = in_a_layer(UNREAD, place, FLASHMOE_VLLM="mode=top-k,k=1")
    assert found.returncode != 0
    assert "what AiterExperts makes of a skipped slot is not known" in found.stderr.splitlines()[-1]


DECISIONS = """
from types import SimpleNamespace
from backends.flashmoe.plugin import _module, shape
known = next(filter(None, map(_module, shape.STRATEGIES)))
model = SimpleNamespace(architecture="DeepseekV4ForCausalLM", logprobs_mode="raw_logprobs")
print("asks by", known.select_read_strategy(model, ("generate",)).__name__)
"""


def test_the_decisions_endpoint_is_opened_for_v4_on_request(place: Path) -> None:
    closed = inside(REGISTERED + DECISIONS, place, FLASHMOE_VLLM="mode=off")
    assert "does not support DeepseekV4ForCausalLM" in closed.stderr
    opened = inside(REGISTERED + DECISIONS, place, FLASHMOE_VLLM="mode=off,decisions=true")
    assert "asks by NextTokenStrategy" in opened.stdout, opened.stderr


RUNNER = """
from types import SimpleNamespace
from vllm.config import VllmConfig
from vllm.v1.core.sched import output
from vllm.v1.worker import gpu_model_runner
from backends.flashmoe.plugin import own
config = VllmConfig()
print("as it is:", own.unfit(config))
config.parallel_config.data_parallel_size = 2
print("parallel:", own.unfit(config))
config.parallel_config.data_parallel_size = 1
known, output.NewRequestData = output.NewRequestData, SimpleNamespace
print("scheduled:", own.unfit(config))
output.NewRequestData = known
gpu_model_runner.GPUModelRunner._prepare_inputs = lambda self, scheduler_output: None
print("older:", own.unfit(config))
"""


def test_a_runner_of_another_shape_brings_no_k(place: Path) -> None:
    found = inside(REGISTERED + RUNNER, place, FLASHMOE_VLLM="mode=off")
    assert "as it is: None" in found.stdout, found.stderr
    assert "parallel: with data or sequence parallelism" in found.stdout
    assert "scheduled: vllm.v1.core.sched.output has no NewRequestData.req_id" in found.stdout
    assert "_prepare_inputs takes self, scheduler_output, not self, scheduler_output, num" in found.stdout
