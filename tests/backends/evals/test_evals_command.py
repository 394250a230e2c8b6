"""The commands as they are typed, against real processes: simulated servers, and one that is wrong on purpose."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backends.evals.tasks import items
from loadtest.servers import Sim
from tests.backends.evals.oracle import serving

ROOT = Path(__file__).parents[3]


def evals(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backends.evals", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_simulated_model_is_evaluated_and_not_asked_again(flash: Sim, tmp_path: Path) -> None:
    tasks = "humaneval,mmlu_pro,gsm8k,perplexity"
    command = ("run", "--url", flash.url, "--model", "flash-model", "--tasks", tasks, "--out", str(tmp_path))
    first = evals(*command)
    assert first.returncode == 0, first.stderr
    told = json.loads((tmp_path / "report.json").read_text())
    asked = sum(len(items(task, None)) for task in tasks.split(","))
    assert {task: found["done"] for task, found in told["tasks"].items()} == {
        task: len(items(task, None)) for task in tasks.split(",")
    }
    # it talks about each question and solves none, but by chance
    assert told["tasks"]["humaneval"]["accuracy"]["value"] == 0
    assert told["tasks"]["mmlu_pro"]["without_answer"] > 6
    assert told["tasks"]["gsm8k"]["completion_tokens"] > 100
    assert 1 < told["tasks"]["perplexity"]["perplexity"]["value"] < 20
    assert told["settings"]["extra"] == {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}}
    assert "| gsm8k | 10 of 10 |" in (tmp_path / "report.md").read_text()
    assert first.stdout.strip() == (tmp_path / "report.md").read_text().strip()
    assert len(flash.seen()) == asked
    assert evals(*command).stdout == first.stdout
    assert len(flash.seen()) == asked
    other = evals(*command, "--max-tokens", "7")
    assert (other.returncode, "take another --out" in other.stderr) == (1, True)


def test_one_command_shows_that_a_second_model_is_worse(tmp_path: Path) -> None:
    with serving() as oracle:
        oracle.wrong = {("four", item.id) for item in items("mmlu_pro", None)[:9]}
        oracle.cut = True
        command = (
            "compare",
            "--url",
            oracle.url,
            "--model",
            "six",
            "--against-model",
            "four",
            "--tasks",
            "mmlu_pro,gsm8k",
        )
        found = evals(*command, "--out", str(tmp_path))
        assert found.returncode == 0, found.stderr
        assert {body["model"] for body in oracle.asked} == {"six", "four"}
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["compared"]["mmlu_pro"]["lost"], told["compared"]["mmlu_pro"]["verdict"]) == (9, "worse")
    assert told["compared"]["mmlu_pro"]["p"] == pytest.approx(2 / 2**9)
    physics = told["compared"]["mmlu_pro"]["groups"]["physics"]
    assert (physics["items"], physics["lost"], physics["p"]) == (2, 2, 0.5)
    assert "| mmlu_pro: physics | 2 | 0 | 2 | -1.000 " in found.stdout
    assert told["compared"]["gsm8k"]["verdict"] == "nothing shown"
    assert told["second"]["tasks"]["mmlu_pro"]["accuracy"]["value"] == pytest.approx(3 / 12)
    assert "12 of 12 answers were cut at 4096 tokens; the score measures that limit, too" in found.stdout


def test_wrong_commands_are_refused_in_one_line(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    for words, said in (
        (("run", *out), "a model is --url with --model, or --local"),
        (("run", *out, "--tasks", "poetry"), "unknown task 'poetry'; there are humaneval"),
        (("run", *out, "--data", str(tmp_path)), "no rows of humaneval"),
        (("compare", *out, "--url", "http://127.0.0.1:9", "--model", "m"), "--against-model or --against-local"),
        (("compare", *out, "--against-model", "m", "--margin", "0"), "no number of items shows"),
    ):
        found = evals(*words)
        assert (found.returncode, found.stderr.count("\n"), said in found.stderr) == (1, 1, True), found.stderr
    assert not (tmp_path / "out").exists()


def test_a_key_is_sent_only_from_the_variable_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "elsewhere")
    monkeypatch.setenv("OWN_KEY", "mine")
    with serving() as oracle:
        command = ("run", "--url", oracle.url, "--model", "m", "--tasks", "gsm8k", "--out")
        assert evals(*command, str(tmp_path / "without")).returncode == 0
        assert oracle.keys == {None}
        assert evals(*command, str(tmp_path / "with"), "--key-from", "OWN_KEY").returncode == 0
        assert oracle.keys == {None, "Bearer mine"}
