"""Are tokens and money what the bytes, the rates and the measured times come to?"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from backends.flashmoe.costmodel import V4_FLASH, distinct
from backends.flashmoe.estimate import Skipping, Tier, attended, measured, options, published, room, rows, step, written
from backends.recipes.fit import Wish, check
from backends.recipes.hardware import GPUS, Impossible, hardware
from backends.recipes.models import MODELS

TIER = Tier(hardware("h200x4"), "dep", 8192, 3.0)
OFF = Skipping.read("off")
BATCHES = (1, 4, 16, 64)


def file(path: Path, gpu: str | None = "NVIDIA H200", least: float = 5e6) -> Path:
    """A result of the benchmark in which a layer takes 1.25 times its bytes over 4e12, and 5 us."""
    sizes = (least, 150e6, 200e6, 1e9)
    made = [
        {"shape": "v4-flash", "format": "mxfp4", "way": "ours", "bytes": size, "seconds": 5e-6 + 1.25 * size / 4e12}
        for size in sizes
    ]
    other = {"shape": "v4-flash", "format": "bf16", "way": "ours", "bytes": 30e6, "seconds": 1.0}
    path.write_text(json.dumps({"gpu": gpu, "ceilings": {"read": 4e12}, "rows": [*made, other]}))
    return path


def test_a_row_is_what_one_computes_by_hand() -> None:
    (row,) = rows(TIER, published(TIER.hardware), [OFF], [16])
    experts = 256 * (1 - (250 / 256) ** 16)
    layer = experts / 4 * 3 * 4096 * 2048 * 0.53125
    rest = 13e9 - 43 * 6 * 3 * 4096 * 2048
    context = 21 * (2048 * 132 + 512 * 584) + 20 * 64 * 584 + 43 * 128 * 584
    seconds = (43 * layer + rest + 4 * context) / 4.3e12
    assert row.experts == pytest.approx(experts)
    assert row.step_ms == pytest.approx(seconds * 1e3)
    assert row.tokens_s == pytest.approx(16 / seconds)
    assert row.usd_million == pytest.approx(4 * 3.0 / 3600 * seconds / 16 * 1e6)
    assert row.gain == 1
    assert not row.measured


def test_a_short_context_is_read_whole_and_its_cache_is_a_ranks_own_or_shared() -> None:
    assert attended(MODELS["flash"], 1024) == 21 * 256 * (132 + 584) + 20 * 8 * 584 + 43 * 128 * 584
    wish = Wish("flash", TIER.hardware, "dep", context=1024)
    assert room(replace(TIER, context=1024)) == 4 * check(wish).held
    assert room(replace(TIER, strategy="tp", context=1024)) == check(replace(wish, strategy="tp")).held


def test_fewer_bytes_are_never_slower_and_more_batch_is_never_dearer() -> None:
    speed = published(TIER.hardware)
    table = {k: rows(TIER, speed, [Skipping.read(f"top-k={k}")], BATCHES) for k in (6, 5, 4, 3, 2)}
    for more, less in zip(table.values(), list(table.values())[1:], strict=False):
        assert all(a.step_ms > b.step_ms and a.usd_million > b.usd_million for a, b in zip(more, less, strict=True))
    for found in table.values():
        assert [one.usd_million for one in found] == sorted((one.usd_million for one in found), reverse=True)


def test_measured_times_take_the_place_of_the_bound_and_say_so(tmp_path: Path) -> None:
    speed = measured(file(tmp_path / "grid.json"), TIER.hardware)
    read = distinct(256, 6, 16) / 4 * V4_FLASH.expert_bytes
    seconds = 43 * (5e-6 + 1.25 * read / 4e12) + (V4_FLASH.rest_bytes + 4 * attended(MODELS["flash"], 8192)) / 4e12
    found, inside = step(TIER, speed, 6, 16)
    assert found == pytest.approx(seconds)
    assert inside
    assert step(TIER, speed, 6, 16)[0] > step(TIER, published(TIER.hardware), 6, 16)[0]


def test_beyond_what_was_measured_fewer_bytes_gain_nothing_and_more_take_more(tmp_path: Path) -> None:
    speed = measured(file(tmp_path / "grid.json"), TIER.hardware)
    (below, _), (above, _) = (speed.seconds(size) for size in (1e6, 2e9))
    assert [below, above] == pytest.approx([speed.layer[0][1], 2 * speed.layer[-1][1]])
    assert not any(speed.seconds(size)[1] for size in (1e6, 2e9))


def test_noise_in_a_measurement_does_not_make_reading_more_faster(tmp_path: Path) -> None:
    path = file(tmp_path / "grid.json")
    found = json.loads(path.read_text())
    found["rows"][1]["seconds"] = 1e-3
    path.write_text(json.dumps(found))
    times = [measured(path, TIER.hardware).seconds(size)[0] for size in (10e6, 50e6, 100e6, 200e6, 900e6)]
    assert times == sorted(times)


def test_tensor_parallelism_divides_weights_and_not_the_context() -> None:
    speed = published(TIER.hardware)
    apart, together = TIER, replace(TIER, strategy="tp")
    assert step(together, speed, 6, 1)[0] < step(apart, speed, 6, 1)[0]
    kv = attended(MODELS["flash"], 8192) / speed.rate
    saved = 0.75 * V4_FLASH.rest_bytes / speed.rate
    assert step(apart, speed, 6, 64)[0] - step(together, speed, 6, 64)[0] == pytest.approx(saved - 48 * kv)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"gpu": None}, "without a GPU"),
        ({"gpu": "NVIDIA GB200"}, "measured on NVIDIA GB200"),
    ],
)
def test_a_file_that_says_nothing_of_the_hardware_is_refused(
    made: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        measured(file(tmp_path / "grid.json", **made), hardware("b200x4"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"gpu": "NVIDIA H200"}', '{"gpu": "NVIDIA H200", "ceilings": {}, "rows": 3}']
)
def test_a_file_that_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="is no result"):
        measured(tmp_path / "x.json", TIER.hardware)
    with pytest.raises(ValueError, match="is no result"):
        measured(tmp_path / "absent.json", TIER.hardware)


def test_a_file_without_the_tiers_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"gpu": "NVIDIA H200", "ceilings": {"read": 4e12}, "rows": []}))
    with pytest.raises(ValueError, match="lacks"):
        measured(path, TIER.hardware)


@pytest.mark.parametrize("text", ["share=0.8", "top-k", "top-k=0.5", "top-k=7", "batch-aware=x", "4"])
def test_a_policy_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Skipping.read(text)


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    speed = published(TIER.hardware)
    with pytest.raises(Impossible, match="weights need"):
        rows(replace(TIER, hardware=hardware("h200x1")), speed, [OFF], [1])
    with pytest.raises(ValueError, match="room for"):
        rows(replace(TIER, context=1_000_000), speed, [OFF], [1024])
    with pytest.raises(ValueError, match="arithmetic takes longer"):
        rows(replace(TIER, context=256), speed, [OFF], [4096])
    with pytest.raises(ValueError, match="no memory rate"):
        published(hardware("ram128"))


def test_every_gpu_has_a_memory_rate() -> None:
    assert all(gpu.rate > 0 for gpu in GPUS.values())


def test_the_table_and_the_json_say_the_same_and_what_they_rest_on(tmp_path: Path) -> None:
    words = ["estimate", "--hardware", "h200x4", "--batch", "1", "16"]
    found, text = json.loads(written(options([*words, "--json"]))), written(options(words))
    assert len(found["rows"]) == 6
    for row in found["rows"]:
        assert f"{row['policy']:<16}{row['batch']:>6}{row['experts']:>9.1f}{row['step_ms']:9.2f}" in text
    assert text.count("  bound\n") == 6
    assert all(part in text for parts in found["basis"].values() for part in parts)
    assert "8.4 ms a token at concurrency 16" in text
    timed = written(options([*words, "--kernels", str(file(tmp_path / "grid.json"))]))
    assert "bound\n" not in timed
    assert "6 of 6 rows" in timed
    many = [*words, "--hardware", "h200x8", "--kernels", str(file(tmp_path / "grid.json", least=100e6))]
    assert "  beyond\n" in written(options(many))


def test_the_gateways_command_starts_it_and_passes_its_refusal_on() -> None:
    command = [sys.executable, "-m", "gateway", "backends", "estimate", "--hardware", "h200x1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert "weights need 145 GiB" in run.stderr
