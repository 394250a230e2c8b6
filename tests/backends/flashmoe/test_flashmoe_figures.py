"""Does the GPU benchmark ask what it should, and does it judge what it finds?   No GPU and no kernel is needed here."""

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from backends.flashmoe.kernels.launch import SHAPES, Format
from loadtest.kernels import goals as judge
from loadtest.kernels.goals import Goal, goals, verdict
from loadtest.kernels.parts import GRACE, Book, Ended, collected, read, run
from loadtest.kernels.plan import FULL, GRID, MASKS, OURS, PARTS, RIDING, Mask, Part, cases, expert_bytes
from loadtest.kernels.report import page

READ = 4e12
HALF = MASKS[2]


def row(batch: int = 16, mask: Mask = FULL, way: str = OURS, seconds: float | None = None, read: float = 1e9) -> Any:
    """A row of V4-Flash in bf16; without seconds as fast as reading, with 5 us besides."""
    took = read / READ + 5e-6 if seconds is None else seconds
    told = {"shape": "v4-flash", "format": "bf16", "batch": batch, "mask": mask.name, "routing": "uniform", "way": way}
    return told | {"seconds": took, "bytes": read, "noise": 0.0, "distinct": 50.0, "kept": 6.0, "runs": 9}


def point(curve: str, knob: float, distinct: float, damage: float) -> dict[str, Any]:
    told = {"curve": curve, "knob": knob, "batch": 16, "kept": 4.0}
    return told | {"distinct": distinct, "damage": damage, "error": 0.01}


def time(way: str, seconds: float, kind: str = "ttft", count: int = 128) -> dict[str, Any]:
    told = {"model": "m", "measured": kind, "count": count, "way": way}
    return told | {"seconds": seconds, "how": "launched"}


def result(command: str, gpu: str | None = "NVIDIA H200", tiny: bool = False, **lists: Any) -> dict[str, Any]:
    found = collected(command, [Ended("a", 1.0, "ran")], [], tiny)
    return found | {"gpu": gpu, "env": {"gpu": gpu, "torch": "2.11"}} | lists


def found(name: str, **results: Any) -> Goal:
    (one,) = [goal for goal in goals(results) if name in goal.name]
    return one


@pytest.mark.parametrize("name", GRID)
def test_each_case_is_asked_once_and_what_the_goals_need_comes_first(name: str) -> None:
    asked = list(cases(name))
    assert max(Counter(asked).values()) == 1
    assert {case.batch for case in asked[:18]} == {1, 16, 64}
    assert {(case.form, case.mask) for case in asked[:18]} == {
        (form, mask) for form in Format for mask in (FULL, RIDING)
    }
    assert {case.way for case in asked[:42]} == {OURS}
    assert all(case.form is Format.BF16 for case in asked if case.way != OURS)
    assert {case.batch for case in asked} == {1, 2, 4, 8, 16, 32, 64}
    assert {case.mask for case in asked} == set(MASKS)


@pytest.mark.parametrize("command", PARTS)
def test_the_parts_of_a_command_end_within_nine_minutes(command: str) -> None:
    assert sum(max(part.seconds for part in together) for together in PARTS[command]) <= 540


def test_an_expert_has_the_bytes_that_its_format_gives_it() -> None:
    v4 = SHAPES["v4-flash"]
    assert expert_bytes(v4, Format.BF16) == 2 * 3 * 4096 * 2048
    assert expert_bytes(v4, Format.MXFP4) == pytest.approx(13.37e6, rel=1e-3)
    assert expert_bytes(v4, Format.FP8) == 3 * 4096 * 2048 + 4 * 3 * 32 * 16


@pytest.mark.parametrize(("name", "top", "base"), [("1/2", 6, 3), ("5/16", 8, 2.5), ("5/16", 2, 1), ("full", 6, 6)])
def test_a_mask_keeps_its_part_and_at_least_one(name: str, top: int, base: float) -> None:
    (mask,) = [mask for mask in MASKS if mask.name == name]
    assert mask.base(top) == base


def test_time_that_falls_less_than_bytes_misses_the_goal() -> None:
    whole = row()
    good, bad = row(mask=HALF, read=5e8), row(mask=RIDING, read=5e8, seconds=0.6 * whole["seconds"])
    met = found("time(skip)", grid=result("grid", rows=[whole, good]))
    assert met.found == pytest.approx((5e8 / READ + 5e-6) / (1e9 / READ + 5e-6) / 0.5)
    assert verdict(met, True) == "met"
    missed = found("time(skip)", grid=result("grid", rows=[whole, good, bad]))
    assert missed.found == pytest.approx(1.2)
    assert verdict(missed, True) == "missed"
    assert RIDING.name in missed.note
    assert "1 of 2 hold" in missed.note


def test_bandwidth_is_of_the_measured_ceiling_and_the_worst_batch_counts() -> None:
    rows = [row(batch, seconds=1e9 / (part * READ)) for batch, part in ((8, 0.9), (64, 0.7), (1, 0.65))]
    of = {"grid": result("grid", rows=rows, ceilings={"read": READ})}
    many, alone = found("B >= 8", **of), found("bandwidth at B = 1", **of)
    assert [many.found, alone.found] == pytest.approx([0.7, 0.65])
    assert (verdict(many, True), verdict(alone, True)) == ("missed", "met")
    assert verdict(found("B >= 8", grid=result("grid", rows=rows)), True) == "not measured"


def test_vllms_kernel_is_compared_on_the_same_case_only() -> None:
    rows = [row(1), row(16), row(16, way="vllm", seconds=1.0), row(4, way="vllm", seconds=1e-9)]
    goal = found("vLLM", grid=result("grid", rows=rows))
    assert goal.found == pytest.approx(row(16)["seconds"])
    rows.append(row(1, way="vllm", seconds=row(1)["seconds"] / 1.05))
    assert found("vLLM", grid=result("grid", rows=rows)).found == pytest.approx(1.05)


def test_a_layers_saving_is_its_time_at_the_share_that_the_trained_model_can_read() -> None:
    points = [
        point("whole", 8, 50.0, 0.0),
        point(judge.PRICE, 0.001, 40.0, 0.05),
        point(judge.PRICE, 0.002, 20.0, 0.15),
    ]
    rows = [one | {"shape": "qwen3-30b"} for one in (row(seconds=10e-6), row(mask=HALF, read=5e8, seconds=6e-6))]
    ceilings = {"route qwen3-30b B=16": 1e-6, "route, head qwen3-30b B=16": 2e-6}
    quality = result("quality", points=points)
    goal = found("qwen3-30b", grid=result("grid", rows=rows, ceilings=ceilings), quality=quality)
    share = 30.0 / 50.0
    assert goal.found == pytest.approx(1 - (6 + 4 * (share - 0.5) / 0.5 + 2) / (10 + 1))
    assert verdict(found("qwen3-30b", grid=result("grid", rows=rows), quality=quality), True) == "not measured"
    assert verdict(found("qwen3-30b", grid=result("grid", rows=rows, ceilings=ceilings)), True) == "not measured"


def test_policies_are_compared_at_equal_damage_and_at_equal_experts() -> None:
    points = [
        point("whole", 8, 60.0, 0.0),
        *(point(judge.PRICE, knob, distinct, damage) for knob, distinct, damage in ((1, 50, 0.04), (2, 30, 0.16))),
        *(point(judge.OEA, knob, distinct, damage) for knob, distinct, damage in ((4, 50, 0.08), (3, 40, 0.2))),
        *(point("top-k", knob, distinct, damage) for knob, distinct, damage in ((6, 56, 0.05), (5, 50, 0.15))),
    ]
    of = {"quality": result("quality", points=points)}
    ours, oea, static = 40.0, 50 - 10 * 0.02 / 0.12, 53.0
    assert found("static top-k", **of).found == pytest.approx(static / ours)
    assert found("OEA as published", **of).found == pytest.approx(1 - ours / oea)
    assert found("equal experts", **of).found == pytest.approx(0.5)


def test_speed_is_against_the_eager_loop_and_the_slowest_count_counts() -> None:
    times = [time("eager", 8.0), time("grouped_mm", 2.0), time(OURS, 2.0), time("ours, skipping", 1.0)]
    times += [time("eager", 9.0, count=512), time(OURS, 3.0, count=512)]
    goal = found("TTFT", serve=result("serve", times=times))
    assert goal.found == pytest.approx(3.0)
    assert goal.note == "m 512"
    assert math.isnan(found("TPOT", serve=result("serve", times=times)).found)


@pytest.mark.parametrize("made", [{"gpu": None}, {"tiny": True}])
def test_figures_of_no_gpu_or_of_tiny_shapes_meet_nothing(made: dict[str, Any]) -> None:
    text = page({"grid": result("grid", rows=[row(), row(mask=HALF, read=5e8)], **made)})
    assert "No figure on this page counts" in text
    assert text.count("no GPU figure") == len(goals({}))
    assert "| met |" not in text


def test_the_page_tells_what_broke_and_what_was_not_run() -> None:
    left = [{"name": f"case {n}", "why": "no time"} for n in range(5)]
    grid = result("grid", rows=[row()], left=left, ceilings={"read": READ})
    grid["parts"].append({"name": "mixtral", "seconds": 80.0, "state": "out of time", "note": "exit -9: said nothing"})
    text = page({"grid": grid})
    assert "**mixtral: out of time** after 80 s. exit -9" in text
    assert "(no time): case 0; case 1; case 2 and 2 more." in text
    assert "No figure on this page counts" not in text
    assert f"| {1e9 / READ * 1e6 + 5:.1f} |" in text


def program(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys, time, json\nout = open(sys.argv[2], 'a')\n{code}"]


def test_a_part_that_hangs_is_ended_and_what_it_had_written_is_kept(tmp_path: Path) -> None:
    code = "out.write(json.dumps({'kind': 'row', 'n': 1}) + '\\n{\"kind\": \"ro'); out.flush(); time.sleep(60)"
    ended, lines = run(Part("hangs", 9), GRACE + 0.5, [], tmp_path, program(code))
    assert ended.state == "out of time"
    assert ended.seconds < GRACE + 5
    assert lines == [{"kind": "row", "n": 1}]


def test_a_part_that_dies_says_its_last_word(tmp_path: Path) -> None:
    code = "out.write('{\"kind\": \"row\"}\\n'); out.close(); sys.exit('CUDA error: an illegal memory access')"
    ended, lines = run(Part("dies", 9), GRACE + 20, [], tmp_path, program(code))
    assert (ended.state, ended.note) == ("failed", "exit 1: CUDA error: an illegal memory access")
    assert lines == [{"kind": "row"}]


def test_what_breaks_costs_its_own_figure_and_what_has_no_time_is_named(tmp_path: Path) -> None:
    with (tmp_path / "lines").open("w") as file:
        book = Book(file, 60)
        for case in book.within(["one", "two"]):
            with book.figure(case):
                book.write("row", seconds=1 / (case != "one"))
        assert list(Book(file, 0).within(["three"])) == []
    assert read(tmp_path / "lines") == [
        {"kind": "left", "name": "one", "why": "broke: ZeroDivisionError: division by zero"},
        {"kind": "row", "seconds": 1.0},
        {"kind": "left", "name": "three", "why": "no time"},
    ]


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path: Path) -> None:
    ended, lines = run(Part("late", 9), GRACE, [], tmp_path, program("out.write('{}')"))
    assert (ended.state, lines) == ("not run", [])
    assert not list(tmp_path.iterdir())
