"""Does the gateway do on real vLLM servers what it does on simulated ones?   What the tiny models say means nothing."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import openai
import pytest

from loadtest.servers import Sim, free_port, until
from tests.engines.conftest import DEEPSEEK_V4, QWEN3_MOE, Architecture, Engines, client_of
from tests.engines.tiny import CONTEXT

ARCHITECTURES = [QWEN3_MOE, DEEPSEEK_V4]
BLOCK = 128  # tokens of a KV block on a CPU; of a byte each, for these models
LONG = "Here is a report about a harbour, its cranes and its ships. " * 20
# White space only where a grammar must have it: V4's for a call allows any amount, and random weights go on with it.
DENSE = {"logit_bias": dict.fromkeys(("197", "198", "220"), -100)}
GO_ON = {"allowed_token_ids": list(range(94))}  # letters and signs only: no end, no call, no end of a thought
POLICY = """\
schema: 1
tiers:
  flash:
    model: flash-model
    replicas: ["${FLASH_URL}"]
    balance: least_waiting
    set: {chat_template_kwargs: {thinking: false, enable_thinking: false}}
  flash_think: {extends: flash, set: {chat_template_kwargs: {thinking: true, enable_thinking: true}}}
  pro:
    model: pro-model
    replicas: ["${PRO_URL}"]
    set: {chat_template_kwargs: {thinking: false, enable_thinking: false}}
triage: {tier: flash, timeout: 30s, cache: null%s}
rules: [{id: triaged, route: {simple: flash, complex: pro}}]
callers: {default: {plan: free}, plans: {free: {requests_per_minute: 100000, concurrency: 1000, may: [pro]}}}
"""
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Lisbon", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def place(engines: Engines, more: str = "", **triage: str) -> AbstractContextManager[openai.OpenAI]:
    """A client of a gateway whose policy has these keys of triage, and `more` sections."""
    policy = POLICY % "".join(f", {key}: {value}" for key, value in ({"speculate": "never"} | triage).items()) + more
    return client_of(policy, engines)


@pytest.fixture(scope="module")
def client(engines: Engines) -> Iterator[openai.OpenAI]:
    with place(engines) as made:
        yield made


def ask(client: openai.OpenAI, text: str, **more: Any) -> Any:
    """The raw reply to one question."""
    messages: Any = [{"role": "user", "content": text}]
    asked: Any = {"model": "flash", "max_tokens": 16, "messages": messages} | more
    return client.chat.completions.with_raw_response.create(**asked)


def streamed(client: openai.OpenAI, **more: Any) -> list[Any]:
    """The chunks of the answer to one question."""
    messages: Any = [{"role": "user", "content": "Cranes?"}]
    asked: Any = {"model": "flash", "max_tokens": 16, "messages": messages} | more
    chunks: Any = client.chat.completions.create(stream=True, **asked)
    return list(chunks)


def decision(client: openai.OpenAI, text: str, **more: Any) -> dict[str, Any]:
    reply = ask(client, text, model="auto", extra_headers={"x-route-explain": "1"}, **more)
    told: dict[str, Any] = json.loads(reply.content)
    route: dict[str, Any] = told.pop("route")
    return told | route


def ready(client: openai.OpenAI) -> dict[str, Any]:
    with urllib.request.urlopen(str(client.base_url).replace("/v1/", "/ready"), timeout=5) as answer:
        told: dict[str, Any] = json.loads(answer.read())
        return told


def metric(engine: Sim, name: str) -> float:
    """The sum of a metric's series."""
    with urllib.request.urlopen(f"{engine.url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(map(float, re.findall(rf"^{name}(?:{{[^\n]*}})? ([0-9.e+]+)$", text, re.MULTILINE)))


def doctor(policy: Path, **env: str) -> list[dict[str, str]]:
    """What it finds of the tiers."""
    command = [sys.executable, "-m", "gateway", "doctor", "--json", "--policy", str(policy), "--port", str(free_port())]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=True, env={**os.environ, **env})
    return [one for one in json.loads(ran.stdout) if one["about"].startswith("tier")]


def paints(client: openai.OpenAI) -> None:
    """A caller's schema binds the answer."""
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"],
              "additionalProperties": False}  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "paint", "strict": True, "schema": schema}}
    answer = ask(client, "Pick.", response_format=form, max_tokens=60).parse()
    assert json.loads(answer.choices[0].message.content)["colour"] in ("red", "green")


def speaks(client: openai.OpenAI, go_on: Any) -> None:
    """Other dialects than chat's pass; `go_on`: what keeps the model from ending early."""
    text: Any = client.completions.create(model="flash", prompt="hello", max_tokens=5, extra_body=go_on)
    assert (text.usage.completion_tokens, text.model) == (5, "flash-model")
    said: Any = client.responses.create(model="flash", input="hello", max_output_tokens=8)
    assert (said.usage.output_tokens > 0, said.model) == (True, "flash-model")
    asked = {"model": "flash", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
    message: Any = client.post("/messages", body=asked, cast_to=object)
    assert (message["role"], message["usage"]["output_tokens"] > 0) == ("assistant", True)


def running_on(engine: Sim) -> float:
    return metric(engine, "vllm:num_requests_running")


def generated(engine: Sim) -> float:
    return metric(engine, "vllm:generation_tokens_total")


def test_the_start_finds_out_what_the_server_can_do(client: openai.OpenAI) -> None:
    until(lambda: ready(client)["triage"]["replicas"] != [None], 60)
    told = ready(client)["triage"]
    assert told["strategy"] == "choice"
    found = told["replicas"][0]
    assert (found["choice"], found["json_logprobs"]) == ("ok", "ok")
    assert found["decisions"] == "error", "0.32 has no /v1/decisions, 0.33 none for these models"
    assert found["json"] in ("ok", "parse", "truncated"), "asked for any JSON, this model says any JSON"


@pytest.mark.parametrize("strategy", ["choice", "json_logprobs"])
def test_each_bound_strategy_gives_a_verdict_with_a_probability(engines: Engines, strategy: str) -> None:
    with place(engines, strategy=strategy) as client:
        told = decision(client, "Tell me of cranes.")
    verdict = told["verdict"]
    assert (verdict["reason"], verdict["strategy"], verdict["source"]) == ("ok", strategy, "triage")
    assert 0.001 < verdict["p_complex"] < 0.999, "between what one of two labels is bound to be"
    assert told["tier"] == ("pro" if verdict["p_complex"] >= 0.5 else "flash")
    assert told["model"] == f"{told['tier']}-model"


@pytest.mark.parametrize(("strategy", "reasons"), [("json", ("parse", "truncated")), ("decisions", ("error",))])
def test_what_the_server_cannot_bind_falls_back_and_is_answered(
    engines: Engines, strategy: str, reasons: tuple[str, ...]
) -> None:
    with place(engines, strategy=strategy) as client:
        told = decision(client, "Tell me of cranes.")
    assert told["verdict"]["reason"] in reasons
    assert (told["tier"], told["choices"][0]["message"]["role"]) == ("flash", "assistant")


@pytest.fixture
def caching(architecture: Architecture) -> None:
    if architecture == DEEPSEEK_V4:
        pytest.skip("prefix caching: vLLM 0.32 forces it off for DeepSeek-V4 on CPUs without AMX")


@pytest.mark.usefixtures("caching")
@pytest.mark.parametrize(("layout", "shares"), [("suffix", True), ("system", False)])
def test_only_the_question_at_the_end_shares_its_prefill_with_the_answer(
    engines: Engines, layout: str, shares: bool
) -> None:
    text = f"{layout}: {LONG}"
    with place(engines, layout=layout, threshold="1.0", strategy="choice") as client:
        usage = decision(client, text)["usage"]
    cached, whole = usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]
    assert whole > 8 * BLOCK
    assert cached == (whole // BLOCK * BLOCK if shares else 0), "all whole blocks, or none"


@pytest.mark.usefixtures("caching")
def test_tools_are_in_the_shared_prefix_too(engines: Engines) -> None:
    text = f"with tools: {LONG}"
    with place(engines, threshold="1.0", strategy="choice") as client:
        usage = decision(client, text, tools=[WEATHER], tool_choice="auto")["usage"]
    cached, whole = usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]
    assert cached == whole // BLOCK * BLOCK


@pytest.mark.usefixtures("caching")
def test_what_one_caller_had_read_is_not_read_from_another_ones_cache(client: openai.OpenAI, engines: Engines) -> None:
    text = f"mine: {LONG}"
    salted = [ask(client, text, extra_body={"cache_salt": salt}).parse().usage for salt in ("a", "a", "b")]
    assert [usage.prompt_tokens_details.cached_tokens > 0 for usage in salted] == [False, True, False]


def test_thinking_is_on_or_off_as_the_tier_says(client: openai.OpenAI) -> None:
    off = ask(client, "Tell me of cranes.", extra_body=GO_ON).parse().choices[0].message
    on = ask(client, "Tell me of cranes.", model="flash_think", extra_body=GO_ON).parse().choices[0].message
    assert (bool(off.content), off.to_dict().get("reasoning")) == (True, None)
    assert (on.content, bool(on.to_dict()["reasoning"])) == (None, True)


def test_thinking_streams_as_reasoning(client: openai.OpenAI) -> None:
    deltas = [chunk.choices[0].delta.to_dict() for chunk in streamed(client, model="flash_think", extra_body=GO_ON)]
    assert any(delta.get("reasoning") for delta in deltas)
    assert not any(delta.get("content") for delta in deltas)


def test_a_stream_comes_in_pieces_and_keeps_usage_to_those_who_asked(client: openai.OpenAI) -> None:
    plain = streamed(client, model="auto", extra_body=GO_ON)
    assert len(plain) > 4, "the server puts what it has said meanwhile into one chunk"
    assert all(chunk.usage is None for chunk in plain)
    assert plain[-1].choices[0].finish_reason == "length"
    *_, last = streamed(client, extra_body=GO_ON, stream_options={"include_usage": True})
    assert (last.choices, last.usage.completion_tokens) == ([], 16)


def test_a_forced_tool_is_called_in_json_and_in_streams(client: openai.OpenAI) -> None:
    """`strict` binds the arguments too; without it this model called it with a number."""
    forced: Any = {"type": "function", "function": {"name": "get_weather"}}
    more: Any = {"tools": [WEATHER], "tool_choice": forced, "max_tokens": 300, "extra_body": DENSE}
    call = ask(client, "Lisbon?", **more).parse().choices[0].message.tool_calls[0].function
    assert call.name == "get_weather"
    assert json.loads(call.arguments)["city"] in ("Lisbon", "Oslo")
    parts = [part for chunk in streamed(client, **more) for part in chunk.choices[0].delta.tool_calls or ()]
    assert parts[0].function.name == "get_weather"
    assert json.loads("".join(part.function.arguments or "" for part in parts))["city"] in ("Lisbon", "Oslo")


def test_log_probabilities_pass(client: openai.OpenAI) -> None:
    content = ask(client, "hi", logprobs=True, top_logprobs=3, extra_body=GO_ON).parse().choices[0].logprobs.content
    assert len(content) == 16
    assert all(len(token.top_logprobs) >= 3 for token in content)


def test_a_callers_schema_binds(client: openai.OpenAI) -> None:
    paints(client)


def test_a_caller_who_leaves_is_gone_from_the_server_too(client: openai.OpenAI, engines: Engines) -> None:
    """By running requests and generated tokens: 0.32 does not count one whose caller left as aborted, or at all."""
    before = generated(engines.flash)
    asked: Any = {"model": "flash", "stream": True, "max_tokens": 3900, "extra_body": GO_ON}
    with client.chat.completions.create(messages=[{"role": "user", "content": "Cranes?"}], **asked) as stream:
        next(iter(stream))
        until(lambda: running_on(engines.flash) == 1)
    until(lambda: running_on(engines.flash) == 0)
    assert 0 < generated(engines.flash) - before < 3900


def test_the_draft_of_what_goes_to_pro_is_given_up_on_flash(engines: Engines) -> None:
    with place(engines, threshold="0.0", speculate="always", strategy="choice") as client:
        before = generated(engines.flash)
        told = decision(client, "Tell me of cranes.", max_tokens=400, extra_body=GO_ON)
        assert (told["tier"], told["draft"], told["usage"]["completion_tokens"]) == ("pro", "wasted", 400)
        assert running_on(engines.flash) == 0
        assert generated(engines.flash) - before < 400


def test_a_draft_that_is_kept_is_the_answer(engines: Engines) -> None:
    with place(engines, threshold="1.0", speculate="always", strategy="choice") as client:
        told = decision(client, "Tell me of cranes.", max_tokens=200)
    assert (told["tier"], told["draft"], told["model"]) == ("flash", "kept", "flash-model")


def test_other_dialects_pass(client: openai.OpenAI) -> None:
    speaks(client, GO_ON)


@pytest.mark.parametrize(("bound", "tier", "outcome"), [(-0.01, "pro", "escalated"), (-90, "flash", "kept")])
def test_an_unsure_start_is_told_by_the_servers_own_log_probabilities(
    engines: Engines, bound: float, tier: str, outcome: str
) -> None:
    weak = f"{{mean_logprob: {{max: {bound}}}}}"
    held = f"holdback: {{tiers: [flash], tokens: 8, wait: 30s, escalate_when: {weak}, to: pro}}\n"
    with place(engines, held, threshold="1.0", strategy="choice") as client:
        told = decision(client, "Tell me of cranes.", extra_body=GO_ON)
        assert (told["tier"], told["holdback"]["outcome"], told["model"]) == (tier, outcome, f"{tier}-model")
        assert told["choices"][0]["logprobs"] is None, "nobody asked for them"
        chunks = streamed(client, model="auto", extra_body=GO_ON)
    assert chunks[0].model == f"{tier}-model"
    assert not any(chunk.choices[0].logprobs for chunk in chunks)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"max_tokens": 1_000_000}, "max_model_len"),
        ({"temperature": -1}, "temperature"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nope"}}}},
            "grammar",
        ),
    ],
)
def test_what_the_server_refuses_is_told_in_its_own_words(
    client: openai.OpenAI, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, "hi", **more)


def test_the_doctor_finds_nothing_but_the_short_context_and_says_what_the_servers_can(
    engines: Engines, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY % "")
    found = doctor(policy, FLASH_URL=engines.flash.url, PRO_URL=engines.pro.url)
    wrong = [one["told"] for one in found if one["level"] != "ok"]
    assert len(wrong) == 2
    assert all(f"takes {CONTEXT} tokens" in told for told in wrong)
    told = {f"{one['about']}: {one['told']}".replace(engines.flash.url, "URL") for one in found}
    assert "tier flash: triage asks by choice, which auto takes" in told
    by = next(one for one in told if "by choice, json_logprobs" in one)
    assert 'decisions: error (404 {"detail":"Not Found"})' in by or 'decisions: error (501 {"error":' in by
    assert "tier flash: URL tells log-probabilities, and would think, but `set` tells it not to" in told
    assert any(one.startswith("tier flash_think: URL tells log-probabilities, and thinks before") for one in told)


def test_the_servers_queue_is_read(client: openai.OpenAI) -> None:
    told = decision(client, "Tell me of cranes.")
    assert told["facts"]["waiting"]["flash"] == 0


def test_figures_that_move_keep_a_slow_answer_where_it_is(engines: Engines) -> None:
    """Where they stood still, the other server would be asked: it is well, and knows the model by another name."""
    both = f'["${{FLASH_URL}}", "{engines.pro.url}"]'
    policy = (POLICY % ", speculate: never").replace("balance: least_waiting", "timeouts: {first_byte: 1s}")
    with client_of(policy.replace('["${FLASH_URL}"]', both, 1), engines) as client:
        before = generated(engines.flash)
        found: list[tuple[int, bool]] = []
        while len(found) < 2:  # half of all prompts go to the server without the model
            started = time.monotonic()
            try:
                answer = ask(client, f"{len(found)} {time.time()}", max_tokens=3500, extra_body=GO_ON).parse()
            except openai.NotFoundError:
                assert time.monotonic() - started < 1, "nothing was moved"
            else:
                found.append((answer.usage.completion_tokens, time.monotonic() - started > 2))
    assert found == [(3500, True)] * 2
    assert generated(engines.flash) - before < 3 * 3500, "that and what is asked at the start"
