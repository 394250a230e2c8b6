"""Scores against a server that knows what is right: it must be seen when it is wrong, and nothing is asked twice."""

import json
import math
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.evals.asking import AskError, Endpoint, _seconds
from backends.evals.reporting import compared, summed_up
from backends.evals.running import Outcome, Run, Running, done, run
from backends.evals.tasks import items
from tests.backends.evals.oracle import NATS, Oracle, serving

GRADED = ("humaneval", "mmlu_pro", "gsm8k")


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    with serving() as told:
        yield told


def evaluate(oracle: Oracle, folder: Path, task: str, model: str = "m", **options: Any) -> Run:
    how = Running(4, 100, lambda: None)
    asked = Endpoint(f"{oracle.url}/v1", model, pause=0.001, **options)
    return run(task, items(task, None), asked, folder / f"{model}-{task}.jsonl", how)


@pytest.mark.parametrize("task", GRADED)
def test_the_score_is_the_share_of_right_answers(oracle: Oracle, tmp_path: Path, task: str) -> None:
    all_items = items(task, None)
    assert summed_up(evaluate(oracle, tmp_path, task))["accuracy"]["value"] == 1
    oracle.wrong = {("bad", item.id) for item in all_items[:3]}
    told = summed_up(evaluate(oracle, tmp_path, task, "bad"))
    assert told["accuracy"]["value"] == pytest.approx(1 - 3 / len(all_items))
    assert told["accuracy"]["low"] < told["accuracy"]["value"] < told["accuracy"]["high"]
    counts = (told["done"], told["prompt_tokens"], told["completion_tokens"], told["without_answer"])
    assert counts == (len(all_items), 10 * len(all_items), 5 * len(all_items), 0)


def test_categories_are_scored_alone(oracle: Oracle, tmp_path: Path) -> None:
    oracle.wrong = {("m", item.id) for item in items("mmlu_pro", None) if item.group == "physics"}
    groups = summed_up(evaluate(oracle, tmp_path, "mmlu_pro"))["groups"]
    assert {name: told["value"] for name, told in groups.items() if told["value"] != 1} == {"physics": 0}


def test_an_answer_that_only_thought_is_wrong_and_counted(oracle: Oracle, tmp_path: Path) -> None:
    oracle.silent = oracle.cut = True
    told = summed_up(evaluate(oracle, tmp_path, "gsm8k"))
    assert (told["accuracy"]["value"], told["without_answer"], told["cut"]) == (0, told["done"], told["done"])


def test_tokens_that_a_server_does_not_count_are_none(oracle: Oracle, tmp_path: Path) -> None:
    oracle.counts, oracle.forms = False, ("echo",)
    told = summed_up(evaluate(oracle, tmp_path, "gsm8k"))
    assert (told["accuracy"]["value"], told["prompt_tokens"], told["completion_tokens"]) == (1, 0, 0)
    with pytest.raises(AskError, match="no log-probabilities"):
        Endpoint(f"{oracle.url}/v1", "m").score("a text")


def test_a_run_goes_on_where_it_was_stopped(oracle: Oracle, tmp_path: Path) -> None:
    whole = evaluate(oracle, tmp_path, "gsm8k")
    journal = tmp_path / "m-gsm8k.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # killed while it wrote the fifth
    kept = set(done(journal))
    assert len(kept) == 4
    oracle.asked.clear()
    again = evaluate(oracle, tmp_path, "gsm8k")
    assert len(oracle.asked) == len(whole.outcomes) - 4
    assert [one.id for one in again.outcomes] == [one.id for one in whole.outcomes]
    assert len(done(journal)) == len(whole.outcomes)


def test_a_server_in_trouble_is_asked_again_and_one_that_refuses_is_not(oracle: Oracle, tmp_path: Path) -> None:
    oracle.status = [503, 429, 500]
    assert not evaluate(oracle, tmp_path, "gsm8k").failed
    oracle.asked.clear()
    oracle.status = [400]
    found = evaluate(oracle, tmp_path, "gsm8k", "other")
    assert len(oracle.asked) == len(items("gsm8k", None))
    assert [message[:40] for message in found.failed.values()] == [f"{oracle.url}/v1/chat/completions: 400"[:40]]
    assert summed_up(found)["done"] == len(oracle.asked) - 1
    assert not evaluate(oracle, tmp_path, "gsm8k", "other").failed


def test_a_server_that_answers_nothing_ends_the_run(oracle: Oracle, tmp_path: Path) -> None:
    oracle.status = [401] * 100
    with pytest.raises(AskError, match="401"):
        evaluate(oracle, tmp_path, "gsm8k")
    assert not done(tmp_path / "m-gsm8k.jsonl")
    gone = Endpoint("http://127.0.0.1:9/v1", "m", pause=0.001)
    with pytest.raises(AskError, match="refused"):
        gone.answer("hello", 5)


def test_a_server_that_breaks_off_is_asked_again_also_when_it_breaks_off_an_error() -> None:
    whole = json.dumps({"choices": [{"message": {"content": "Here."}}]}).encode()
    head = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n"
    told = [head % (503, 500) + b"tro", head % (200, 500) + b'{"cho', head % (200, len(whole)) + whole]

    def answer(listening: socket.socket) -> None:
        for raw in told:
            one = listening.accept()[0]
            one.recv(65536)
            one.sendall(raw)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", raw is told[0], 0))
            one.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=answer, args=(listening,), daemon=True)
        serving.start()
        model = Endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}", "m", pause=0.001)
        assert model.answer("hello", 5).text == "Here."
        serving.join()


def test_key_and_extra_fields_reach_the_server(oracle: Oracle, tmp_path: Path) -> None:
    evaluate(oracle, tmp_path, "gsm8k", key="secret", extra={"temperature": 0.5, "top_p": 0.9})
    assert oracle.keys == {"Bearer secret"}
    body = oracle.asked[0]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.9, 100)


def test_an_answer_is_greedy_and_a_server_in_trouble_is_left_alone_as_long_as_it_says(oracle: Oracle) -> None:
    oracle.status, oracle.after = [503], "0.2"
    began = time.monotonic()
    Endpoint(f"{oracle.url}/v1", "m", pause=0.0).answer(items("gsm8k", None)[0].prompt, 5)
    assert time.monotonic() - began >= 0.2
    assert [body["temperature"] for body in oracle.asked] == [0, 0]


@pytest.mark.parametrize(
    ("told", "waited"), [("3", 3.0), ("0.5", 0.5), ("999", 60.0), ("Mon, 23 Nov", 7.0), ("", 7.0), (None, 7.0)]
)
def test_a_server_may_say_for_how_many_seconds_it_wants_to_be_left_alone(told: str | None, waited: float) -> None:
    assert _seconds(told, 7.0) == waited


@pytest.mark.parametrize("form", ["prompt_logprobs", "echo"])
def test_perplexity_is_that_of_the_servers_probabilities(oracle: Oracle, tmp_path: Path, form: str) -> None:
    oracle.forms = (form,)
    told = summed_up(evaluate(oracle, tmp_path, "perplexity"))
    assert told["perplexity"]["value"] == pytest.approx(math.exp(NATS))
    size = sum(item.key for item in items("perplexity", None))
    assert told["tokens"] == 9 * told["done"]
    assert told["bits_per_byte"]["value"] == pytest.approx(9 * told["done"] * NATS / math.log(2) / size)


def test_a_server_without_probabilities_is_told(oracle: Oracle, tmp_path: Path) -> None:
    oracle.forms = ()
    with pytest.raises(AskError, match="gives no log-probabilities of a prompt"):
        evaluate(oracle, tmp_path, "perplexity")


def outcomes(right: str) -> Run:
    return Run("gsm8k", tuple(Outcome(str(at), "", one == "1") for at, one in enumerate(right)), {})


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("1" * 400, "1" * 400, "not worse by more than 0.02"),
        ("10" * 20, "10" * 20, "nothing shown"),  # too few to exclude a loss of two in a hundred
        ("0" * 40 + "1" * 60, "1" * 100, "better"),
        ("1" * 100, "0" * 40 + "1" * 60, "worse"),
        ("10" * 200, "01" * 200, "nothing shown"),
    ],
)
def test_a_comparison_says_what_the_items_show(first: str, second: str, verdict: str) -> None:
    told = compared(outcomes(first), outcomes(second), 0.02)
    assert told["verdict"] == verdict
    assert told["difference"]["value"] == pytest.approx((second.count("1") - first.count("1")) / len(first))


def test_only_items_that_both_did_are_compared() -> None:
    short = Run("gsm8k", outcomes("11").outcomes, {"2": "gone"})
    assert compared(short, outcomes("1100"), 0.1)["items"] == 2
    with pytest.raises(ValueError, match="no item was done by both"):
        compared(Run("gsm8k", (), {}), outcomes("1"), 0.1)


def test_a_model_that_finds_texts_less_likely_is_worse(oracle: Oracle, tmp_path: Path) -> None:
    plain, doubled = (evaluate(oracle, tmp_path, "perplexity", model) for model in ("m1", "m2"))
    told = compared(plain, doubled, 0.01)
    assert (told["verdict"], told["difference"]["value"]) == ("worse", pytest.approx(-1.0))
    assert compared(doubled, plain, 0.01)["verdict"] == "better"
    assert compared(plain, plain, 0.01)["verdict"] == "not worse by more than 0.01"
