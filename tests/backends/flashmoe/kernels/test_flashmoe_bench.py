"""Does the GPU benchmark run as it will on a GPU?   The same code, on tiny shapes, in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: the benchmark is not tested")
from backends.flashmoe.estimate import measured
from backends.flashmoe.kernels.launch import Format, Shape
from backends.flashmoe.policy import SKIPPED
from backends.recipes.hardware import hardware
from loadtest.kernels import clock, layers, rivals, vllm
from loadtest.kernels.plan import FULL, MASKS, RIDING, TINY_PARTS, TINY_SHAPE, expert_bytes

ROOT = Path(__file__).parents[4]
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from loadtest.kernels import ceilings, vllm

def compiled(kernel, types, constants):
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    triton.compile(ASTSource(kernel, signature, constants, {}), target=GPUTarget("cuda", 90, 32))

compiled(ceilings.read_kernel, {"data": "*i32", "out": "*i32", "blocks": "i32"}, {"BLOCK": 4096})
compiled(ceilings.idle_kernel, {"out": "*i32"}, {})
for limit in (0.0, 10.0):
    compiled(vllm.act_kernel, {"both": "*bf16", "inner": "*bf16"}, {"LIMIT": limit, "INNER": 2048, "WIDTH": 1024})
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of this module put their results."""
    return tmp_path_factory.mktemp("out")


def started(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.kernels", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


def result(out: Path, command: str) -> dict[str, Any]:
    """Of the command, which is run as on a GPU but for `--tiny`, once."""
    path = out / f"{command}.json"
    if not path.exists():
        run = started(command, "--tiny", "--out", str(out))
        assert run.returncode == 0, run.stdout + path.with_suffix(".log").read_text()[-2000:]
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_grid_measures_every_format_and_way_and_is_right(out: Path) -> None:
    found = result(out, "grid")
    assert [part["state"] for part in found["parts"]] == ["ran"] * 3
    assert {"read", "copy", "bf16", "launch, graph", "launch, python", "align tiny B=2"} <= found["ceilings"].keys()
    assert {(row["format"], row["mask"]) for row in found["rows"] if row["way"] == "ours"} == {
        (form, mask.name) for form in Format for mask in (FULL, RIDING)
    }
    assert {"eager", "grouped_mm", "batched_mm", "batched_mm in a graph"} <= {row["way"] for row in found["rows"]}
    assert all(row["seconds"] > 0 and 0 < row["distinct"] <= TINY_SHAPE.experts for row in found["rows"])
    assert {line["format"] for line in found["correct"]} == set(Format)
    assert all(line["held"] for line in found["correct"])
    assert [line["why"] for line in found["left"]] == ["vLLM is not there"]


def test_policies_are_tried_on_a_model_trained_on_the_spot(out: Path) -> None:
    found = result(out, "quality")
    points = {point["curve"]: point for point in found["points"]}
    assert points["whole"]["tokens"] > 0
    assert points["whole"]["perplexity"] < 256  # of a model that knows nothing
    assert points["top-k"]["kept"] == 2
    assert points["OEA"]["distinct"] <= points["whole"]["distinct"]
    assert len(points) == 15
    assert found["left"] == []


def test_whole_models_are_timed_in_every_way(out: Path) -> None:
    found = result(out, "serve")
    for model in ("qwen3-30b", "v4-flash"):
        assert {(time["measured"], time["way"]) for time in found["times"] if time["model"] == model} == {
            *(("ttft", way) for way in ("eager", "grouped_mm", "ours")),
            *(("tpot", way) for way in ("eager", "grouped_mm", "batched_mm", "ours", "ours, skipping")),
        }


def test_the_page_of_all_results_says_that_none_is_a_gpus(out: Path) -> None:
    assert [result(out, command)["gpu"] for command in TINY_PARTS] == [None] * 3
    run = started("table", str(out))
    assert run.returncode == 0
    assert "No figure on this page counts" in run.stdout
    for text in ("| tiny | mxfp4 | 4 of 4 |", "| price by predictor |", "| v4-flash | tpot | 2 |", "vLLM is not there"):
        assert text in run.stdout
    with pytest.raises(ValueError, match="without a GPU"):
        measured(out / "grid.json", hardware("h200x4"))


def test_a_command_without_time_says_so_and_fails(tmp_path: Path) -> None:
    run = started("grid", "--tiny", "--minutes", "0", "--out", str(tmp_path))
    assert run.returncode == 1
    assert {part["state"] for part in json.loads((tmp_path / "grid.json").read_text())["parts"]} == {"not run"}


@pytest.mark.parametrize("form", Format)
def test_a_layer_has_the_bytes_that_are_reckoned_with(form: Format) -> None:
    one = layers.layer("tiny", TINY_SHAPE, form)
    held = sum(part.nbytes for weights in (one.up, one.down) for part in (weights.data, weights.scales))
    assert held == TINY_SHAPE.experts * expert_bytes(TINY_SHAPE, form)


@pytest.mark.parametrize("form", Format)
def test_a_layer_answers_with_numbers_of_the_size_of_what_it_is_asked(form: Format) -> None:
    one = layers.layer("tiny", TINY_SHAPE, form)
    (draw,) = layers.draws(TINY_SHAPE, 8, FULL, "uniform", 1)
    assert 0.05 < float(layers.truth(one, draw).square().mean().sqrt()) < 5


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.name)
def test_a_routing_keeps_what_its_mask_says(mask: Any) -> None:
    shape = Shape(experts=64, top=8, hidden=64, inner=64)
    (draw,) = layers.draws(shape, 400, mask, "uniform", 1)
    kept = (draw.ids != SKIPPED).sum(1).float()
    assert torch.equal(draw.ids != SKIPPED, draw.share > 0)
    if mask.piggyback:
        assert kept.mean() > mask.base(8)
    else:
        assert float(kept.mean()) == pytest.approx(mask.base(8), rel=0.03)
        assert kept.max() - kept.min() <= 1


def test_riding_along_reads_no_expert_more_and_popular_experts_are_fewer() -> None:
    shape = Shape(experts=64, top=8, hidden=64, inner=64)
    count = {
        (mask.name, routing): sum(draw.distinct for draw in layers.draws(shape, 4, mask, routing, 32))
        for mask in (FULL, RIDING, MASKS[2])
        for routing in ("uniform", "zipf")
    }
    assert count[RIDING.name, "uniform"] == count[MASKS[2].name, "uniform"] < count[FULL.name, "uniform"]
    assert count[FULL.name, "zipf"] < count[FULL.name, "uniform"]


def test_noise_is_how_far_the_halves_are_apart() -> None:
    timing = clock.spread([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], calls=2)
    assert (timing.seconds, timing.runs) == (0.75, 6)
    assert timing.noise == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("limit", [0.0, 10.0])
def test_what_stands_between_vllms_products_is_the_activation(limit: float) -> None:
    both = (torch.randn(3, 256) * 8).bfloat16()
    inner = torch.full((3, 128), float("nan"), dtype=torch.bfloat16)
    vllm.act_kernel[(3, 1)](both, inner, limit, 128, 1024)
    gate, up = both.float().chunk(2, 1)
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    torch.testing.assert_close(inner.float(), torch.nn.functional.silu(gate) * up, rtol=0.01, atol=0.01)


def test_a_rival_that_is_not_there_or_not_known_is_not_compared(tmp_path: Path) -> None:
    one = layers.layer("tiny", TINY_SHAPE, Format.BF16)
    with pytest.raises(vllm.Unfit, match="not there"):
        vllm.Vllm(tmp_path).prepared(one, 1)
    (tmp_path / "fused_moe.py").write_text("def something_else(): ...\n")
    with pytest.raises(vllm.Unfit, match="another kernel"):
        vllm.Vllm(tmp_path).prepared(one, 1)


def test_other_arithmetic_and_copies_beyond_reason_are_not_compared() -> None:
    found = rivals.Rivals()
    with pytest.raises(vllm.Unfit, match="only bf16"):
        found.of("eager", layers.layer("tiny", TINY_SHAPE, Format.FP8), 1)
    one = layers.layer("tiny", TINY_SHAPE, Format.BF16)
    with pytest.raises(vllm.Unfit, match="would copy 131 GB"):
        found.of("batched_mm in a graph", one, 1_000_000)
    assert callable(found.of("grouped_mm", one, 1_000_000))


def test_the_benchmarks_own_kernels_compile_for_hopper() -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILED]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
