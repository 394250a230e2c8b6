"""Are a load test's figures what they are called, and does one run end as it should?"""

import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.__main__ import CONFIG
from loadtest.answers import Answer, Failed, quantile, read
from loadtest.figures import DIRECT, Exchange, Objectives, figures, level, ratios, summary, told
from loadtest.servers import DEFAULT, MODELS, Sim, gateway

ALL = Objectives({})


def one(tier: str = "flash", label: str = "simple", **more: Any) -> Exchange:
    return Exchange(more.pop("at", 0.0), tier, label, {"e2e": 100.0} | more.pop("times", {}), **more)


def test_the_times_of_an_answer_are_taken_from_its_pieces() -> None:
    answer = Answer(pieces=[50.0, 60.0, 90.0], end=100.0, tokens=6)
    assert answer.times() == {"e2e": 100.0, "ttft": 50.0, "tpot": 10.0, "itl_p99": 30.0}


def test_an_answer_too_short_for_a_time_does_not_have_it() -> None:
    assert Answer(pieces=[50.0], end=60.0, tokens=1).times() == {"e2e": 60.0, "ttft": 50.0}
    assert Answer(end=60.0).times() == {"e2e": 60.0}


def test_an_answer_is_read_from_its_events_and_must_come_whole() -> None:
    said = [{"content": "Hi"}, {"role": "assistant"}, {"reasoning": "..."}, {"tool_calls": [{}]}]
    lines = [f"data: {json.dumps({'choices': [{'delta': delta}]})}".encode() for delta in said]
    lines += [b"", b": ping", b'data: {"choices": [], "usage": {"completion_tokens": 9}}']
    answer = Answer()
    read(iter([*lines, b"data: [DONE]"]), time.perf_counter(), answer)
    assert (len(answer.pieces), answer.tokens, answer.pieces == sorted(answer.pieces)) == (3, 9, True)
    for cut in (lines, [*lines, b'data: {"error": {"code": "upstream_failed"}}']):
        with pytest.raises(Failed):
            read(iter(cut), 0.0, Answer())


def test_quantiles_are_values_that_came() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, part) for part in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert quantile([7.0], 0.01) == 7.0
    assert quantile([1.0, 2.0], 0.99) == 2.0


def test_a_tiers_own_objective_takes_the_place_of_everyones() -> None:
    objectives = Objectives.read("ttft=100, pro.ttft=300")
    slow = {"ttft": 200.0}
    assert [objectives.met(one(tier, times=slow)) for tier in ("flash", "pro")] == [False, True]
    assert objectives.met(one("flash")), "no time of a kind, no objective missed"
    assert not ALL.met(one(problem="503"))


@pytest.mark.parametrize("text", ["ttfb=1", "ttft", "ttft=fast"])
def test_a_wrong_objective_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"ttfb|float"):
        Objectives.read(text)


def test_goodput_counts_whole_answers_within_the_objectives_each_second() -> None:
    rows = [one(times={"ttft": ms}) for ms in (10.0, 20.0, 500.0)] + [one(problem="503")]
    found = figures(rows, Objectives.read("ttft=100"), 2.0)
    assert (found["requests"], found["failed"], found["achieved"], found["goodput"]) == (4, 1, 1.5, 1.0)
    assert found["good"] == 0.5
    assert found["ttft"] == {"p50": 20.0, "p95": 500.0, "p99": 500.0}
    assert found["tpot"] is None


def test_what_was_asked_directly_is_no_part_of_the_whole() -> None:
    found = summary([one(), one(DIRECT, times={"e2e": 50.0})], ALL, 1.0)
    assert (found["requests"], found["e2e"]["p50"], found["tiers"][DIRECT]["e2e"]["p50"]) == (1, 100.0, 50.0)


def test_routing_is_right_when_complex_goes_to_a_strong_tier_and_simple_does_not() -> None:
    rows = [one("pro_max", "complex"), one("flash", "complex"), one("flash_think"), one("pro"), one(problem="503")]
    assert summary(rows, ALL, 1.0)["routing"] == {"complex": (1, 2), "simple": (1, 2), "all": (2, 4)}


def test_pairs_are_compared_prompt_by_prompt() -> None:
    pairs = [
        (one(times={"ttft": a}), one(DIRECT, times={"ttft": b})) for a, b in ((11.0, 10.0), (220.0, 200.0), (9, 1))
    ]
    pairs.append((one(problem="cut"), one(DIRECT)))
    assert ratios(pairs) == {"ttft": 1.1, "e2e": 1.0}


@pytest.mark.parametrize(
    ("shape", "levels"),
    [("flat", [1, 1, 1, 1]), ("steps", [0.25, 0.5, 0.75, 1]), ("spike", [0.2, 0.2, 1, 0.2]), ("soak", [0.05, 1, 1, 1])],
)
def test_shapes_say_how_much_of_the_load_there_is(shape: str, levels: list[float]) -> None:
    assert [level(shape, part) for part in (0.0, 0.25, 0.5, 0.99)] == levels
    assert 0 < level(shape, 1.0) <= 1


def test_figures_without_an_answer_are_told() -> None:
    assert any("nan" in line for line in told(summary([one("none", problem="no reply")], ALL, 1.0)))
    assert math.isfinite(summary([], ALL, 1.0)["good"])


def locust(url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    file = Path("loadtest", "locustfile.py")
    command = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "--only-summary", "--host", url, *flags]
    here = Path(__file__).parent.parent
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=here)


def test_an_open_loop_tells_what_it_offered_and_who_answers_while_something_is_broken(
    flash: Sim, pro: Sim, tmp_path: Path
) -> None:
    policy = DEFAULT.read_text()
    for was, name in ((MODELS["flash"], flash.model), (MODELS["pro"], pro.model)):
        policy = policy.replace(was, name)
    policy = policy.replace("concurrency: 16", "concurrency: 100")  # a slow machine has more than 16 under way at once
    broken, mended = (
        shlex.join([sys.executable, "-c", CONFIG, f"{flash.url}/admin/config", body, method])
        for body, method in (('{"status": 500}', "POST"), ("", "DELETE"))
    )
    report = tmp_path / "report.json"
    with gateway(policy, flash, pro) as url:
        load = ("-u", "40", "-r", "40", "-t", "6s", "--rate", "20", "--shape", "steps", "--model", "auto:fast")
        bounds = ("--slo", "flash.e2e=0", "--min-good", "0.9", "--report", str(report))
        files = ("--json", "--csv", str(tmp_path / "run"), "--html", str(tmp_path / "run.html"))
        ran = locust(url, *load, *bounds, *files, "--break", broken, "--mend", mended)
    found = json.loads(report.read_text())
    assert 3 < found["offered"] < 20, "20 a second at the end, fewer before"
    assert found["failed"] == 0, ran.stderr
    assert found["achieved"] == pytest.approx(found["offered"])
    pros = [("pro" in found["parts"][part]["tiers"]) for part in ("before", "broken", "mended")]
    assert not pros[0]
    assert any(pros), "a slow machine has not broken it before the last third"
    assert 0 < found["good"] < 0.9, "the objectives let Pro's answers pass only"
    assert ran.returncode == 1
    assert "offered" in ran.stderr
    assert {row["method"] for row in json.loads(ran.stdout)} >= {"TTFT", "TPOT", "ITL_P99", "E2E"}
    assert {path.name for path in tmp_path.glob("run*")} >= {"run.html", "run_stats.csv"}
    assert found["routing"] == {}, "nobody had to find out where prompts belong"
