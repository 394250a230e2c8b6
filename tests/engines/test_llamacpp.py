"""Does the gateway live with llama.cpp's own server?   It binds schemas, tells log-probabilities, and is no vLLM.

LLAMA_SERVER names the program, else it is looked for in PATH; `make llama-server` builds one from what PyPI carries.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import openai
import pytest

from backends.recipes.__main__ import parser, written
from loadtest.servers import Sim, free_port, running, until
from tests.engines.conftest import ROOT, Engines, client_of, started, wait
from tests.engines.gguf import make
from tests.engines.test_vllm import WEATHER, ask, decision, doctor, metric, paints, ready, speaks, streamed
from tests.engines.tiny import CONTEXT

BUILT = ROOT / ".llama" / "bin" / "llama-server"
LONG = "Here is a report about a harbour, its cranes and its ships. " * 20
GO_ON: Any = {"logit_bias": {"256": -100, "258": -100}}  # no end
OFF = "{chat_template_kwargs: {enable_thinking: false}}"
POLICY = """\
schema: 1
tiers:
  flash:
    model: flash-model
    engine: openai
    replicas: ["${FLASH_URL}"]
    set: %(set)s
    can: {messages: true, responses: true}
  pro: {extends: flash, model: pro-model, replicas: ["${PRO_URL}"]}
triage: {tier: flash, timeout: 30s, cache: null, speculate: never, threshold: %(threshold)s}
rules: [{id: triaged, route: {simple: flash, complex: pro}}]
callers: {default: {plan: free}, plans: {free: {requests_per_minute: 100000, concurrency: 1000, may: [pro]}}}
"""


def program() -> str:
    """llama-server; skips where there is none."""
    found = shutil.which(os.environ.get("LLAMA_SERVER", BUILT)) or shutil.which("llama-server")
    if not found:
        pytest.skip("no llama-server: `make llama-server` builds one, or LLAMA_SERVER names it")
    return found


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    place, llama = tmp_path_factory.mktemp("llama"), program()
    with contextlib.ExitStack() as stack:
        made = []
        for seed, tier in enumerate(("flash", "pro")):
            model = make(place / f"{tier}.gguf", seed)
            flags = ["--host", "127.0.0.1", "--jinja", "--ctx-size", str(2 * CONTEXT), "--parallel", "2", "--metrics"]
            command = [llama, "--model", str(model), "--alias", f"{tier}-model", "--threads", "1", *flags]
            made.append(stack.enter_context(started(command, free_port(), place / f"{tier}.log")))
        wait(made, 60.0)
        yield Engines(*(Sim(url, f"{tier}-model") for (url, _, _), tier in zip(made, ("flash", "pro"), strict=True)))


def place(servers: Engines, **more: str) -> AbstractContextManager[openai.OpenAI]:
    return client_of(POLICY % ({"set": OFF, "threshold": "0.5"} | more), servers)


@pytest.fixture(scope="module")
def client(servers: Engines) -> Iterator[openai.OpenAI]:
    with place(servers) as made:
        yield made


def test_the_start_finds_that_schemas_bind_and_log_probabilities_are_told(client: openai.OpenAI) -> None:
    until(lambda: ready(client)["triage"]["replicas"] != [None], 60)
    told = ready(client)["triage"]
    assert told["strategy"] == "json_logprobs"
    (found,) = told["replicas"]
    assert (found["json_logprobs"], found["decisions"]) == ("ok", "error")
    assert "choice" not in found, "nobody but vLLM is asked by vLLM's own field"


@pytest.mark.parametrize(("threshold", "tier"), [("0.0", "pro"), ("1.0", "flash")])
def test_a_verdict_has_a_probability_and_the_threshold_decides(servers: Engines, threshold: str, tier: str) -> None:
    with place(servers, threshold=threshold) as client:
        told = decision(client, "Tell me of cranes.", extra_body=GO_ON)
    verdict = told["verdict"]
    assert (verdict["reason"], verdict["strategy"]) == ("ok", "json_logprobs")
    assert 0 < verdict["p_complex"] < 1
    assert (told["tier"], told["model"]) == (tier, f"{tier}-model")


def test_a_conversation_with_tools_gets_a_verdict_too(client: openai.OpenAI) -> None:
    told = decision(client, "Tell me of cranes.", tools=[WEATHER], extra_body=GO_ON)
    assert (told["verdict"]["reason"], told["verdict"]["label"] in ("simple", "complex")) == ("ok", True)


def test_a_server_that_is_called_vllm_and_is_not_is_asked_by_what_it_binds(servers: Engines) -> None:
    """It takes vLLM's own fields without a word, and `choice` binds nothing."""
    policy = (POLICY % {"set": OFF, "threshold": "0.5"}).replace("engine: openai", "engine: vllm")
    with (
        running(policy, servers) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="anything", max_retries=0, timeout=60) as client,
    ):
        until(lambda: ready(client)["triage"]["replicas"] != [None], 60)
        told = ready(client)["triage"]
        assert told["strategy"] == "json_logprobs"
        assert told["replicas"][0]["choice"] != "ok"
        assert decision(client, "Tell me of cranes.", extra_body=GO_ON)["verdict"]["reason"] == "ok"


def test_a_callers_schema_binds(client: openai.OpenAI) -> None:
    paints(client)


def test_a_stream_comes_in_pieces_and_keeps_usage_to_those_who_asked(client: openai.OpenAI) -> None:
    plain = streamed(client, model="auto", extra_body=GO_ON)
    assert len(plain) > 4
    assert all(chunk.usage is None for chunk in plain)
    assert plain[-1].choices[0].finish_reason == "length"
    *_, last = streamed(client, extra_body=GO_ON, stream_options={"include_usage": True})
    assert (last.choices, last.usage.completion_tokens) == ([], 16)
    raw = ask(client, "hi", stream=True).http_response.read()
    assert raw.endswith(b"data: [DONE]\n\n")


def test_no_name_of_the_servers_own_makes_an_answer_longer_than_its_limit_or_two_of_it(client: openai.OpenAI) -> None:
    more: Any = {**GO_ON, "n_predict": 64, "n_cmpl": 2}
    chat = client.chat.completions.create(
        model="flash", messages=[{"role": "user", "content": "hi"}], max_tokens=3, extra_body=more
    )
    text = client.completions.create(model="flash", prompt="hi", max_tokens=3, extra_body=more)
    told = client.responses.create(model="flash", input="hi", max_output_tokens=3, extra_body=more)
    assert [len(chat.choices), chat.usage and chat.usage.completion_tokens] == [1, 3]
    assert [len(text.choices), text.usage and text.usage.completion_tokens] == [1, 3]
    assert told.usage
    assert told.usage.output_tokens == 3


def test_log_probabilities_pass_unless_they_are_streamed_beside_tools(client: openai.OpenAI) -> None:
    likely: Any = {"logprobs": True, "top_logprobs": 3, "extra_body": GO_ON}
    content = ask(client, "hi", **likely).parse().choices[0].logprobs.content
    assert {len(token.top_logprobs) for token in content} == {3}  # tokens that are half a letter are told as one
    assert any(chunk.choices[0].logprobs for chunk in streamed(client, **likely) if chunk.choices)
    with pytest.raises(openai.BadRequestError, match="logprobs is not supported with tools"):
        streamed(client, tools=[WEATHER], **likely)


def test_a_tool_that_must_be_called_is_called_in_json_and_in_streams(client: openai.OpenAI) -> None:
    more: Any = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 300}
    call = ask(client, "Lisbon?", **more).parse().choices[0].message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments)["city"] in ("Lisbon", "Oslo")) == ("get_weather", True)
    parts = [part for chunk in streamed(client, **more) for part in chunk.choices[0].delta.tool_calls or ()]
    first = [part.function for part in parts if part.index == 0]
    assert first[0].name == "get_weather"
    assert json.loads("".join(one.arguments or "" for one in first))["city"] in ("Lisbon", "Oslo")


def test_a_caller_who_leaves_is_gone_from_the_server_too(client: openai.OpenAI, servers: Engines) -> None:
    asked: Any = {"model": "flash", "stream": True, "max_tokens": 12_000, "extra_body": GO_ON}
    with client.chat.completions.create(messages=[{"role": "user", "content": "Cranes?"}], **asked) as stream:
        next(iter(stream))
        until(lambda: busy(servers.flash) == 1)
    until(lambda: busy(servers.flash) == 0)
    assert metric(servers.flash, "llamacpp:tokens_predicted_total") < 12_000


def busy(server: Sim) -> float:
    return metric(server, "llamacpp:requests_processing")


def test_an_answer_reads_what_its_triage_left_where_that_is_free_in_time(servers: Engines) -> None:
    """The answer begins once the verdict stands, which may be before the question's slot is free: then it goes to
    another one, and is read anew. vLLM shares by block, whoever reads."""

    def shared(client: openai.OpenAI, number: int) -> bool:
        usage = decision(client, f"{number}. {LONG}", extra_body=GO_ON)["usage"]
        return bool(usage["prompt_tokens_details"]["cached_tokens"] > 0.9 * usage["prompt_tokens"])

    with place(servers, threshold="1.0") as asking:
        assert any(shared(asking, number) for number in range(10))


def test_other_dialects_pass(client: openai.OpenAI) -> None:
    speaks(client, GO_ON)


def test_the_doctor_says_what_it_can(servers: Engines, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY % {"set": OFF, "threshold": "0.5"})
    found = doctor(policy, FLASH_URL=servers.flash.url, PRO_URL=servers.pro.url)
    assert {one["level"] for one in found} == {"ok"}
    told = [f"{one['about']}: {one['told']}".replace(servers.flash.url, "URL") for one in found]
    assert "tier flash: URL serves flash-model" in told
    assert any(one.startswith("tier flash: URL (openai) can be asked for a verdict by json_logprobs") for one in told)
    assert any(one.startswith("tier flash: URL tells log-probabilities") for one in told)
    assert "tier flash: triage asks by json_logprobs, which auto takes" in told


def test_it_knows_every_flag_of_the_recipe() -> None:
    wanted = ["command", "--tier", "flash", "--hardware", "mac192", "--engine", "llama.cpp"]
    flags = set(re.findall(r"--[a-z-]+", written(parser().parse_args(wanted))))
    known = subprocess.run([program(), "--help"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert {"--model", "--ctx-size", "--jinja"} <= flags
    assert flags <= set(re.findall(r"--[a-z-]+", known))
