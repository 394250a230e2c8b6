"""Does the gateway live with a real SGLang?   Asked in words of vLLM's and its own.

SGLANG_PYTHON names an interpreter with sglang 0.5.23 and a torch for CPUs; its kernels are stood in for. A server at
SGLANG_URL (served name flash-model) takes the place of one of our own.
"""

import contextlib
import json
import os
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from backends.recipes.__main__ import parser, written
from gateway.upstream.loads import load
from loadtest.servers import Sim, free_port, until
from tests.engines.conftest import ROOT, client_of, started, wait
from tests.engines.test_vllm import ask, decision, doctor, paints, ready, speaks, streamed
from tests.engines.tiny import CONTEXT, make

PYTHON = os.environ.get("SGLANG_PYTHON", "")
START = 300.0  # seconds; two busy cores took 60 to 150 (2026-11-24)
SERVE = ("-m", "sglang.launch_server", "--host", "127.0.0.1", "--served-model-name", "flash-model", "--device", "cpu",
         "--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--disable-overlap-schedule",
         "--context-length", str(CONTEXT), "--max-total-tokens", "40000", "--max-running-requests", "16",
         "--constrained-json-disable-any-whitespace", "--enable-metrics", "--enable-cache-report",
         "--reasoning-parser", "qwen3", "--tool-call-parser", "qwen", "--skip-server-warmup")  # fmt: skip
GO_ON: Any = {"logit_bias": {"256": -100, "258": -100}}  # no end
OFF: Any = {"chat_template_kwargs": {"enable_thinking": False}}
POLICY = """\
schema: 1
tiers:
  flash: {model: flash-model, replicas: ["${FLASH_URL}"], engine: sglang, balance: least_waiting,
          can: {context: 16384}, set: %(set)s}
  pro: {extends: flash}
triage: {tier: flash, timeout: 30s, cache: null, speculate: never, strategy: %(strategy)s}
rules: [{id: triaged, route: {simple: flash, complex: pro}}]
callers: {default: {plan: free}, plans: {free: {requests_per_minute: 100000, concurrency: 1000, may: [pro]}}}
"""
PARSED = """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
known = argparse.ArgumentParser()
ServerArgs.add_cli_args(known)
for command in json.loads(sys.argv[1]):
    known.parse_args(command)
"""


def policy(strategy: str = "auto") -> str:
    return POLICY % {"strategy": strategy, "set": json.dumps(OFF)}


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH; skips where there is no SGLang."""
    if not PYTHON:
        pytest.skip("no SGLang: SGLANG_PYTHON names an interpreter that has one")
    place = tmp_path_factory.mktemp("points")
    (place / "sitecustomize.py").write_text("import tests.engines.sglang_on_cpu\n")
    return place


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    if given := os.environ.get("SGLANG_URL"):
        yield Sim(given, "flash-model")
        return
    points, place = request.getfixturevalue("points"), tmp_path_factory.mktemp("sglang")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{points}:{ROOT}")
        environment.setenv("SGLANG_USE_CPU_ENGINE", "1")
        serve = (PYTHON, *SERVE, "--model-path", str(make(place / "model", 0)))
        with started(serve, free_port(), place / "log") as found:
            environment.undo()
            wait([found], START)
            yield Sim(found[0], "flash-model")


@pytest.fixture(scope="module")
def client(server: Sim) -> Iterator[openai.OpenAI]:
    with client_of(policy(), [server]) as made:
        yield made


def test_the_start_finds_that_it_binds_a_bare_label(client: openai.OpenAI) -> None:
    until(lambda: ready(client)["triage"]["replicas"] != [None], 60)
    found: dict[str, Any] = ready(client)["triage"]
    assert found["strategy"] == "choice"
    assert (found["replicas"][0]["choice"], found["replicas"][0]["json_logprobs"]) == ("ok", "ok")
    assert found["replicas"][0]["decisions"] == "error", "its /v1/decisions is not OpenAI's"


@pytest.mark.parametrize("strategy", ["choice", "json_logprobs"])
def test_each_bound_strategy_gives_a_verdict_with_a_probability(server: Sim, strategy: str) -> None:
    with client_of(policy(strategy), [server]) as client:
        verdict = decision(client, "Tell me of cranes.")["verdict"]
    assert (verdict["reason"], verdict["strategy"]) == ("ok", strategy)
    assert 0.001 < verdict["p_complex"] < 0.999


def test_answers_have_the_shapes_of_all_dialects(client: openai.OpenAI) -> None:
    paints(client)
    chunks = streamed(client, stream_options={"include_usage": True}, extra_body=GO_ON)
    assert chunks[-1].usage.completion_tokens == 16
    assert ask(client, "hi", stream=True).http_response.read().endswith(b"data: [DONE]\n\n")
    speaks(client, GO_ON)


def test_its_figures_are_read_and_a_stream_that_is_left_stops(server: Sim, client: openai.OpenAI) -> None:
    def told() -> Any:
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=5) as answer:
            return load(answer.read())

    with client.chat.completions.with_streaming_response.create(
        model="flash", stream=True, max_tokens=15_000, messages=[{"role": "user", "content": "hi"}], extra_body=GO_ON
    ) as answer:
        lines = answer.iter_lines()  # held, as it ends the answer when it goes
        assert next(lines)
        until(lambda: told().running == 1, 60)
        assert told().waiting == 0
    until(lambda: told().running == 0, 60)
    assert told().prefix_hits is not None


@pytest.mark.parametrize(
    "more", [{"top_k": 1 << 40}, {"logprobs": True, "top_logprobs": 1000}, {"input_ids": [1 << 40]}]
)
def test_no_request_ends_it(client: openai.OpenAI, more: dict[str, Any]) -> None:
    with contextlib.suppress(openai.BadRequestError):
        ask(client, "hi", extra_body=more)
    assert ask(client, "hi").parse().choices


@pytest.mark.parametrize("prompt", [[1 << 40], [65, 1000], [[65], [-1]]])
def test_a_prompt_of_token_ids_does_not_reach_it(client: openai.OpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="token_ids"):
        client.completions.create(model="flash", prompt=prompt, max_tokens=4)
    assert ask(client, "hi").parse().choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_the_callers_error(client: openai.OpenAI, stream: bool) -> None:
    """SGLang begins a stream first: the error is its first event, or comes before one."""
    said = [{"role": "user", "content": "a " * CONTEXT}]
    asked = {"model": "flash", "max_tokens": 8, "stream": stream, "messages": said}
    try:
        told = client.post("/messages", body=asked, cast_to=str)
    except openai.BadRequestError as error:
        told = str(error)
    assert "longer than the model's context" in told


def test_the_doctor_has_nothing_to_say(server: Sim, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy())
    found = doctor(file, FLASH_URL=server.url)
    assert {one["level"] for one in found} == {"ok"}, "\n".join(one["told"] for one in found)


def test_its_parser_takes_each_flag_of_the_recipes(points: Path) -> None:
    commands = []
    for wish in ("flash h200x4", "pro h200x8", "flash b300x4 --context 65536"):
        tier, hardware, *more = wish.split()
        wanted = ["command", "--tier", tier, "--hardware", hardware, "--engine", "sglang", *more]
        shown = shlex.split(written(parser().parse_args(wanted)).replace("\\\n", ""), comments=True)
        commands.append(shown[shown.index("serve") + 1 :])
    env = {**os.environ, "PYTHONPATH": f"{points}:{ROOT}", "SGLANG_USE_CPU_ENGINE": "1"}
    command = [PYTHON, "-c", PARSED, json.dumps(commands)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=env)
