"""Which figures follow from outcomes, and how they are told."""

import math
from typing import Any

import pytest

from backends.evals.metrics import Estimate, mcnemar, paired_difference, wilson
from backends.evals.reporting import compared, comparison_in_words, in_words, summed_up, verdict
from backends.evals.running import Outcome, Run

SETTINGS: dict[str, Any] = {"model": "m", "tokens": {"gsm8k": 64}}


def graded(right: str, task: str = "gsm8k", **failed: str) -> Run:
    """A run in which each item was right (1) or wrong (0); those of even place are of the group `even`."""
    found = (
        Outcome(str(at), "" if at % 2 else "even", one == "1", None if one == "-" else "7", seconds=float(at))
        for at, one in enumerate(right)
    )
    return Run(task, tuple(found), failed)


def scored(*bits: float) -> Run:
    """Texts of ten bytes and five tokens, of so many bits a byte."""
    found = (Outcome(str(at), "", nats=10 * one * math.log(2), tokens=5, bytes=10) for at, one in enumerate(bits))
    return Run("perplexity", tuple(found), {})


def test_a_runs_figures_are_of_the_items_that_were_done() -> None:
    told = summed_up(graded("1101-", x="timed out"))
    assert (told["items"], told["done"], told["failed"]) == (6, 5, {"x": "timed out"})
    assert told["accuracy"]["value"] == wilson(3, 5).value
    assert {name: group["value"] for name, group in told["groups"].items()} == {"even": wilson(1, 3).value}
    assert (told["without_answer"], told["seconds_p50"]) == (1, 2.0)
    assert summed_up(Run("gsm8k", (), {}))["seconds_p50"] == 0.0


def test_perplexity_is_by_token_and_bits_are_by_byte() -> None:
    told = summed_up(scored(1.0, 1.0))
    assert told["perplexity"]["value"] == pytest.approx(4.0), "two bits a token"
    assert told["bits_per_byte"] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
    assert told["tokens"] == 10


def test_two_models_are_compared_on_what_both_did() -> None:
    told = compared(graded("1100" * 5 + "111"), graded("1011" * 5), margin=0.1)
    assert (told["items"], told["gained"], told["lost"], told["p"]) == (20, 10, 5, mcnemar(10, 5))
    assert told["difference"]["value"] == paired_difference(10, 5, 20).value == 0.25
    assert told["items_needed"] == math.ceil(15 / 20 * (1.959964 / 0.1) ** 2) == 289
    assert {name: (one["items"], one["gained"], one["lost"]) for name, one in told["groups"].items()} == {
        "even": (10, 5, 0)
    }
    with pytest.raises(ValueError, match="gsm8k: no item was done by both"):
        compared(graded("1"), graded(""), margin=0.1)


def test_likelihoods_are_compared_by_byte_as_a_part_of_the_firsts() -> None:
    told = compared(scored(2.0, 2.0), scored(1.5, 1.5), margin=0.01)
    assert (told["bits_per_byte"], told["verdict"]) == (pytest.approx(2.0), "better")
    assert told["difference"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})


def test_what_is_shown_depends_on_where_the_interval_ends() -> None:
    ends = [(0.01, 0.1), (-0.1, -0.01), (-0.04, 0.1), (-0.05, 0.1)]
    shown = [verdict(Estimate(0.0, low, high), 0.05) for low, high in ends]
    assert shown == ["better", "worse", "not worse by more than 0.05", "nothing shown"]


def test_the_report_has_a_row_a_task_and_says_what_is_wrong_with_it() -> None:
    tasks = {"gsm8k": summed_up(graded("10", x="late")), "perplexity": summed_up(scored(1.0))}
    lines = in_words(SETTINGS, tasks).splitlines()
    assert lines[:2] == ["# m", ""]
    assert lines[3] == "|" + "---|" * lines[2].count(" | ") + "---|"
    assert lines[4].startswith("| gsm8k | 2 of 3 | 0.500 (0.095 to 0.905) | 0 | 0 | 0 / 0 | 1.00 |")
    assert lines[5].startswith("| perplexity | 1 of 1 | perplexity 4.000 (4.000 to 4.000), 1.000 (1.000 to 1.000) bits")
    assert {line.count("|") for line in lines[2:6]} == {8}
    assert lines[7:9] == ["- gsm8k: 1 items failed", ""]
    assert "- model: m" in lines


@pytest.mark.parametrize(("cut", "told"), [(0, False), (1, False), (2, True)])
def test_answers_that_were_cut_are_told_from_more_than_one_in_a_hundred_on(cut: int, told: bool) -> None:
    outcomes = tuple(Outcome(str(at), "", cut=at < cut) for at in range(100))
    text = in_words(SETTINGS, {"gsm8k": summed_up(Run("gsm8k", outcomes, {}))})
    assert (f"- gsm8k: {cut} of 100 answers were cut at 64 tokens" in text, "were cut" in text) == (told, told)
    assert "- \n" not in text


def test_a_comparison_has_a_row_a_task_and_a_row_a_group() -> None:
    tasks = {
        "gsm8k": compared(graded("10"), graded("01"), 0.1),
        "perplexity": compared(scored(2.0), scored(1.0), 0.1),
    }
    lines = comparison_in_words({"model": "a"}, {"model": "b"}, tasks).splitlines()
    assert lines[0] == "# b against a"
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["gsm8k", "gsm8k: even", "perplexity"]
    assert {line.count("|") for line in lines[2:]} == {9}
    assert "| 1.0000 |" in lines[4]
    assert lines[6] == "| perplexity | 1 |  |  | 0.500 (0.500 to 0.500) |  | better |  |"
