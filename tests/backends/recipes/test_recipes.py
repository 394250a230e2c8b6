"""Server commands: complete, the same in every format, and refused where they cannot fit."""

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from backends.recipes.__main__ import AMD, USUAL, Row, listed, parser, wish_of, written
from backends.recipes.fit import Wish, budget, check
from backends.recipes.hardware import Impossible, hardware
from backends.recipes.models import GIB, MODELS
from backends.recipes.servers import GRAPHS, PUBLISHED, servers

ROOT = Path(__file__).parents[3]
ALL_PUBLISHED = [
    (tier, name, strategy) for tier, known in PUBLISHED.items() for strategy, names in known.items() for name in names
]
each_published = pytest.mark.parametrize(("tier", "name", "strategy"), sorted(ALL_PUBLISHED))


def made(*words: str) -> str:
    return written(parser().parse_args(["command", *words]))


def flags(tier: str, name: str, *more: str) -> list[str]:
    """The only command, without the variables before it."""
    said = shlex.split(made("--tier", tier, "--hardware", name, *more).replace("\\\n", ""), comments=True)
    return list(itertools.dropwhile(lambda word: "=" in word, said))


@pytest.mark.parametrize(("tier", "gib"), [("flash", 6.72), ("pro", 9.62)])
def test_the_kv_cache_of_a_full_context_is_what_vllm_publishes(tier: str, gib: float) -> None:
    model = MODELS[tier]
    assert model.kv_bytes("f16", "f16") * model.context / GIB == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize(("tier", "billions"), [("flash", 284), ("pro", 1_600)])
def test_experts_and_the_rest_are_most_and_some_of_the_weights(tier: str, billions: float) -> None:
    model = MODELS[tier]
    experts = model.expert_bytes / 0.53125 / 1e9
    assert 0.95 * billions < experts < billions
    assert 0.02 < model.dense_bytes / model.bytes < 0.1


def test_pro_on_eight_h200_has_room_for_the_800_000_tokens_of_the_recipe_but_for_no_million() -> None:
    held = budget(Wish("pro", hardware("h200x8"))).held
    assert 800_000 <= held < 1_048_576


@each_published
def test_what_others_run_is_not_refused(tier: str, name: str, strategy: str) -> None:
    assert check(Wish(tier, hardware(name), strategy)).held > 0


@pytest.mark.parametrize(
    ("tier", "words", "reason"),
    [
        ("pro", ["--hardware", "h200x4"], "weights need 219 GiB and 6 GiB are kept free, but each h200 has 133 GiB to"),
        ("pro", ["--hardware", "h200x8", "--context", "1048576"], "one request of 1048576 tokens does not fit"),
        ("pro", ["--hardware", "gb200x4"], "weights need"),
        ("flash", ["--hardware", "h200x1"], "weights need"),
        ("flash", ["--hardware", "h200x3"], "256 experts are not divided by 3"),
        ("flash", ["--hardware", "h200x7", "--strategy", "tp"], "64 attention heads are not divided by 7"),
        ("flash", ["--hardware", "h200x12"], "no number of whole hosts"),
        ("flash", ["--hardware", "gb200x8", "--strategy", "pd"], "one host"),
        ("flash", ["--hardware", "h200x7", "--strategy", "pd"], "an even number of GPUs"),
        ("flash", ["--hardware", "a100x8"], "no hardware is named a100x8"),
        ("flash", ["--hardware", "h200x4", "--context", "2000000"], "context of 1048576"),
        ("flash", ["--hardware", "h200x4", "--context", "0"], "context of 1048576"),
        ("flash", ["--hardware", "h200x4", "--engine", "sglang", "--speculate", "mtp"], "vLLM alone"),
        ("flash", ["--hardware", "mac192", "--engine", "llama.cpp", "--graphs", "eager"], "vLLM alone"),
        ("flash", ["--hardware", "h200x4", "--think-max", "--context", "200000"], "Think Max is cut short"),
        ("flash", ["--hardware", "ram128"], "--engine llama.cpp"),
        (
            "flash",
            ["--hardware", "ram64", "--engine", "llama.cpp"],
            "weights need 75 GiB and 2 GiB are kept free, but the machine has 48 GiB to give",
        ),
        ("flash", ["--hardware", "h200x4", "--engine", "llama.cpp"], "machines without a GPU"),
        ("flash", ["--hardware", "gb200x8", "--engine", "sglang"], "tensor parallel on one host"),
        ("pro", ["--hardware", "mac512", "--engine", "llama.cpp"], "no GGUF of Pro"),
        ("flash", ["--hardware", "h200x8", "--engine", "sglang", "--strategy", "dep"], "tensor parallel on one host"),
        ("flash", ["--hardware", "h200x8", "--strategy", "pd", "--format", "k8s"], "--format shell"),
        ("pro", ["--hardware", "gb200x8", "--format", "compose"], "one host"),
        ("flash", ["--hardware", "mi355x4", "--format", "compose"], "with NVIDIA GPUs"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(tier: str, words: list[str], reason: str) -> None:
    with pytest.raises(Impossible, match=reason):
        made("--tier", tier, *words)


@pytest.mark.parametrize(
    ("tier", "name", "engine", "index", "share"),
    [
        ("flash", "stationx1", "vllm", "fp4", 0.92),
        ("flash", "b300x4", "vllm", "fp4", 0.9),
        ("flash", "b300x4", "sglang", "fp8", 0.9),
        ("flash", "h200x4", "vllm", "fp8", 0.9),
        ("pro", "h200x8", "vllm", "fp8", 0.95),
        ("pro", "mi355x8", "vllm", "fp8", 0.9),
    ],
)
def test_memory_is_counted_as_the_server_is_told_to_use_it(
    tier: str, name: str, engine: str, index: str, share: float
) -> None:
    given, metal = flags(tier, name, "--engine", engine), hardware(name)
    found = budget(Wish(tier, metal, "tp" if engine == "sglang" else "dep", engine))
    assert ("--attention_config.use_fp4_indexer_cache=True" in given) == (index == "fp4")
    assert found.held == int(found.kv * GIB / MODELS[tier].kv_bytes(index=index))
    told = [flag for flag in given if flag.startswith("--gpu-memory-utilization")]
    assert told == ([f"--gpu-memory-utilization={share}"] if share != 0.9 else [])
    assert found.usable == pytest.approx(metal.gpu.gib * share)


def test_a_server_has_the_models_context_but_where_its_recipe_is_shorter() -> None:
    pairs = [("flash", "h200x4"), ("pro", "b300x4"), ("pro", "h200x8")]
    assert [Wish(tier, hardware(name)).tokens for tier, name in pairs] == [1_048_576, 1_048_576, 200_000]
    assert Wish("flash", hardware("ram128"), engine="llama.cpp").tokens == 32_768


def test_heads_need_not_be_divided_where_each_gpu_has_all_of_them() -> None:
    assert check(Wish("pro", hardware("mi355x6"))).held > 0
    with pytest.raises(Impossible, match="128 attention heads are not divided by 6"):
        check(Wish("pro", hardware("mi355x6"), "tep"))


def test_what_is_not_of_experts_is_shared_by_tensor_parallelism_alone() -> None:
    model = MODELS["flash"]
    whole, shared = (budget(Wish("flash", hardware("h200x4"), strategy)).weights for strategy in ("dep", "tep"))
    assert (whole - shared) * GIB == pytest.approx(0.75 * model.dense_bytes)


def test_prefill_and_decode_have_a_copy_of_the_weights_each() -> None:
    apart, alone = Wish("flash", hardware("h200x8"), "pd"), Wish("flash", hardware("h200x4"))
    assert budget(apart) == budget(alone)


def test_speculation_counts_what_it_needs() -> None:
    without, mtp, dspark = (
        budget(Wish("pro", hardware("b300x4"), speculate=way)).weights for way in ("none", "mtp", "dspark")
    )
    assert without < mtp
    assert without < dspark


@pytest.mark.parametrize("tier", MODELS)
@pytest.mark.parametrize("name", ["b300x8", "b300x4"])
def test_every_vllm_parses_tools_and_thinking_and_counts_cached_tokens(tier: str, name: str) -> None:
    given = flags(tier, name)
    wanted = {"--reasoning-parser=deepseek_v4", "--tool-call-parser=deepseek_v4", "--enable-auto-tool-choice"}
    assert given[2:4] == [MODELS[tier].name, "--port=8000"]
    assert wanted | {"--kv-cache-dtype=fp8", "--block-size=256", "--enable-prompt-tokens-details"} <= set(given)


@pytest.mark.parametrize("name", USUAL + AMD)
@pytest.mark.parametrize("strategy", ["dep", "tep", "tp"])
def test_ranks_use_every_gpu(name: str, strategy: str) -> None:
    given = "\n".join(servers(Wish("flash", hardware(name), strategy))[0].argv)
    size = "data" if strategy == "dep" else "tensor"
    assert f"--{size}-parallel-size={hardware(name).count}\n" in given
    assert ("--enable-expert-parallel" in given) is (strategy != "tp")


def test_think_max_has_its_context_where_the_recipe_is_shorter() -> None:
    assert "--max-model-len=200000" in flags("pro", "h200x8")
    assert "--max-model-len=393216" in flags("pro", "h200x8", "--think-max")


def test_mega_moe_is_for_blackwell_with_expert_parallelism() -> None:
    assert "--moe-backend=deep_gemm_mega_moe" in flags("flash", "b300x4")
    assert "--moe-backend=deep_gemm_mega_moe" not in flags("flash", "b300x4", "--strategy", "tp")
    assert "--moe-backend=deep_gemm_mega_moe" not in flags("flash", "h200x4")


@pytest.mark.parametrize("mode", GRAPHS)
def test_the_mode_of_graphs_is_one_flag_with_what_is_known_of_it(mode: str) -> None:
    text = made("--tier", "flash", "--hardware", "h200x4", "--graphs", mode)
    given = shlex.split(text.replace("\\\n", ""), comments=True)
    assert [name for name, (flag, _) in GRAPHS.items() if flag in given] == [mode]
    assert GRAPHS[mode][1] in text


def test_drafts_by_dspark_need_the_later_weights_under_the_name_of_the_policies() -> None:
    given = flags("flash", "h200x4", "--speculate", "dspark")
    assert given[2] == "deepseek-ai/DeepSeek-V4-Flash-0731"
    assert "--served-model-name=deepseek-ai/DeepSeek-V4-Flash" in given
    (drafts,) = [flag for flag in given if "speculative" in flag]
    assert '"method":"dspark","num_speculative_tokens":7' in drafts
    for name, count in (("h200x4", 1), ("b300x4", 2)):
        (drafts,) = [flag for flag in flags("flash", name, "--speculate", "mtp") if "speculative" in flag]
        assert f'"method":"mtp","num_speculative_tokens":{count}' in drafts


def test_amd_has_an_image_kernels_graphs_and_limits_of_its_own() -> None:
    limits = {"--max-num-seqs=512", "--max-num-batched-tokens=8192", "--distributed-executor-backend=mp"}
    own = {GRAPHS["compiled"][0], *limits}
    (amd,), (nvidia,) = (servers(Wish("flash", hardware(name))) for name in ("mi355x4", "b300x4"))
    assert own <= set(amd.argv)
    assert not own & set(nvidia.argv)
    assert ("rocm" in amd.image, "rocm" in nvidia.image) == (True, False)
    assert amd.env == {**nvidia.env, "VLLM_ROCM_USE_AITER": "1"}
    assert nvidia.env == {"VLLM_NO_USAGE_STATS": "1"}


def test_prefill_and_decode_share_a_host_on_loopback_behind_a_router() -> None:
    prefill, decode, router = servers(Wish("flash", hardware("h200x8"), "pd"))
    assert (prefill.gpus, decode.gpus) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert (prefill.role, decode.role, len({prefill.port, decode.port, router.port})) == ("prefill", "decode", 3)
    assert f"--prefill=http://127.0.0.1:{prefill.port}" in router.argv
    assert f"--decode=http://127.0.0.1:{decode.port}" in router.argv
    ports = [server.env["VLLM_MOONCAKE_BOOTSTRAP_PORT"] for server in (prefill, decode)]
    assert len(set(ports)) == 2
    assert prefill.env["VLLM_NO_USAGE_STATS"] == decode.env["VLLM_NO_USAGE_STATS"] == "1"
    text = made("--tier", "flash", "--hardware", "h200x8", "--strategy", "pd")
    assert text.count("--host=127.0.0.1") == 3
    assert f"are not bound to loopback: close {', '.join(ports)}" in text


def test_who_shares_a_host_has_gpus_of_its_own_and_the_rest_see_all() -> None:
    lines = made("--tier", "flash", "--hardware", "h200x8", "--strategy", "pd").splitlines()
    begun = {role: lines[lines.index(f"# {role}") + 1].split()[0] for role in ("prefill", "decode", "router")}
    gpus = {"prefill": "CUDA_VISIBLE_DEVICES=0,1,2,3", "decode": "CUDA_VISIBLE_DEVICES=4,5,6,7"}
    assert begun == {**gpus, "router": "vllm-router"}
    assert "CUDA_VISIBLE_DEVICES" not in made("--tier", "flash", "--hardware", "h200x8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--hardware", "h200x4"], {"--api-key"}),
        (["--hardware", "gb200x8"], {"--api-key", "LWS_LEADER_ADDRESS", "NVL4"}),
        (["--hardware", "h200x8", "--strategy", "pd"], {"--api-key", "Mooncake"}),
        (["--hardware", "h200x4", "--engine", "sglang"], {"has no key"}),
        (["--hardware", "ram128", "--engine", "llama.cpp"], {"has no key", "engine: openai"}),
    ],
)
def test_the_notes_are_those_of_the_servers_that_are_started(words: list[str], told: set[str]) -> None:
    notes = [line for line in made("--tier", "flash", *words).splitlines() if line.startswith("# ")]
    known = {"--api-key", "has no key", "LWS_LEADER_ADDRESS", "NVL4", "Mooncake", "engine: openai"}
    assert {word for word in known if any(word in note for note in notes)} == told


def test_graphs_are_for_decode_alone_where_prefill_is_apart() -> None:
    for asked, mode in ((None, "decode"), ("eager", "eager")):
        prefill, decode, _ = servers(Wish("flash", hardware("h200x8"), "pd", graphs=asked))
        known = {name for name, (flag, _) in GRAPHS.items() if flag in decode.argv}
        assert known == {mode}
        assert not {flag for flag, _ in GRAPHS.values()} & set(prefill.argv)


@pytest.mark.parametrize("strategy", ["dep", "tep"])
def test_over_hosts_a_worker_knows_its_place_and_answers_nobody(strategy: str) -> None:
    leader, worker = servers(Wish("pro", hardware("gb200x8"), strategy))
    assert "--headless" in worker.argv
    assert "--headless" not in leader.argv
    assert strategy == "dep" or "--node-rank=0" in leader.argv
    assert not worker.port
    shell = made("--tier", "pro", "--hardware", "gb200x8", "--strategy", strategy)
    echoed = subprocess.run(
        ["sh", "-c", shell.replace("vllm serve", "printf '%s\\n'")],
        env={**os.environ, "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "10.0.0.1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert sum(line.endswith("=10.0.0.1") for line in echoed) == 2
    assert ("--data-parallel-start-rank=4" if strategy == "dep" else "--node-rank=1") in echoed


@pytest.mark.parametrize(("tier", "name", "first"), [("flash", "b300x4", 0), ("pro", "b300x4", 4)])
def test_formats_say_the_same(tier: str, name: str, first: int) -> None:
    words = ["--tier", tier, "--hardware", name]
    given = flags(tier, name)
    assert given[-1] == "--host=127.0.0.1"
    composed = yaml.safe_load(made(*words, "--format", "compose", "--first-gpu", str(first)))["services"][
        f"vllm-{tier}"
    ]
    (deployment,) = [one for one in yaml.safe_load_all(made(*words, "--format", "k8s")) if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert composed["entrypoint"] + composed["command"] == given[:-1]
    assert container["command"] + container["args"] == given[:-1]
    devices = composed["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
    assert devices == [str(first + n) for n in range(4)]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_the_list_says_room_or_reason_for_everything() -> None:
    told = listed(parser().parse_args(["list", "--all"]))
    lines = told.splitlines()
    refused = [line for line in lines if "  no: " in line]
    assert len(listed(parser().parse_args(["list"])).splitlines()) == len(lines) - len(refused)
    assert any(line.split()[:3] == ["pro", "h200x4", "dep"] for line in refused)
    assert not [line for line in refused if "published" in line]
    assert sum(line.endswith("  published") for line in lines) == len(ALL_PUBLISHED)
    assert [line for line in lines if line.startswith("flash mac192") and line.endswith(" requests")]
    data = json.loads(listed(parser().parse_args(["list", "--all", "--json"])))
    assert [str(Row(**row)) for row in data] == lines[1 : 1 + len(data)]
    assert sum(row["published"] for row in data) == len(ALL_PUBLISHED)


def test_other_engines_have_their_commands() -> None:
    given = flags("flash", "h200x4", "--engine", "sglang")
    assert given[:2] == ["sglang", "serve"]
    assert {"--tp=4", "--served-model-name=deepseek-ai/DeepSeek-V4-Flash"} <= set(given)
    assert {"--reasoning-parser=deepseek-v4", "--tool-call-parser=deepseekv4"} <= set(given)
    assert {"--enable-metrics", "--enable-cache-report"} <= set(given)
    assert not [flag for flag in given if "context" in flag]
    assert "--context-length=65536" in flags("flash", "h200x4", "--engine", "sglang", "--context", "65536")
    blackwell = flags("flash", "b300x4", "--engine", "sglang")
    assert [flag for flag in given if flag not in blackwell] == ["--moe-runner-backend=marlin"]
    given = flags("flash", "ram128", "--engine", "llama.cpp", "--quant", "Q2_K")
    assert given[0] == "llama-server"
    assert {"--model=DeepSeek-V4-Flash-Q2_K.gguf", "--alias=deepseek-ai/DeepSeek-V4-Flash"} <= set(given)
    mac = flags("flash", "mac192", "--engine", "llama.cpp", "--quant", "Q2_K")
    assert [flag for flag in mac if flag not in given] == ["--n-gpu-layers=99"]


def test_tiergate_backends_is_this_program_and_refuses_in_words() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "gateway", "backends", "command", "--tier", "pro", "--hardware", "h200x4"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 1
    assert said.stderr.startswith("weights need")
    options = parser().parse_args(["command", "--tier", "flash", "--hardware", "h200x4"])
    assert wish_of(options) == Wish("flash", hardware("h200x4"))
