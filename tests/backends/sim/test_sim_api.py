"""Does the simulator speak vLLM's OpenAI API?"""

import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from backends.sim.app import Simulator
from backends.sim.protocol import ChatRequest
from backends.sim.settings import parser, settings
from backends.sim.wire import Message
from tests.backends.sim.servers import HTTP, JSON, OFF, chat, events, served

WEATHER: JSON = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
        },
    },
}
ODD = '[null, true, -1, 0, 1180591620717411303424, 1.5, "", "x", "\\u0000", [], [[]], [null], {}, {"type": []}, "none"]'
BAD_BODIES: list[bytes] = [
    b"",
    b"not json",
    b"null",
    b"[]",
    b'"x"',
    b"{}",
    b'{"messages": NaN}',
    b'{"messages": []}',
    b'{"messages": [1]}',
    b'{"messages": [{"content": "x"}]}',
    b'{"messages": [{"role": "nobody", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": 5}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "\xff"}]}',
    b'{"messages": "x"}',
    b"[" * 5000,
]
BAD_FIELDS: list[JSON] = [
    {"stream": "perhaps"},
    {"max_tokens": 0},
    {"max_tokens": "many"},
    {"n": 0},
    {"temperature": -1},
    {"top_p": 0},
    {"logprobs": True, "top_logprobs": 21},
    {"top_logprobs": 2},
    {"stream_options": {"include_usage": True}},
    {"cache_salt": ""},
    {"tools": [{}], "tool_choice": "auto"},
    {"tool_choice": "required"},
    {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    {"response_format": {"type": "yaml"}},
    {"response_format": {"type": "json_schema"}},
    {"structured_outputs": {}},
    {"structured_outputs": {"json": "{"}},
]


def test_models_are_listed_as_vllm_lists_them(url: str) -> None:
    card = HTTP.get(f"{url}/v1/models").json()["data"][0]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == ("deepseek-ai/DeepSeek-V4-Flash", "vllm", 1_048_576)
    assert card["permission"][0]["object"] == "model_permission"


def test_a_stream_is_a_role_then_tokens_then_one_finish(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "chat_template_kwargs": OFF}
    reply = HTTP.post(f"{url}/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    seen = [event["choices"][0] for event in events(reply.text)]
    assert seen[0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["finish_reason"] for c in seen] == [None] * (len(seen) - 1) + ["stop"]
    whole = chat(url, "hello").json()["choices"][0]["message"]["content"]
    assert "".join(c["delta"]["content"] for c in seen) == whole
    assert "DeepSeek-V4-Flash" in whole


def test_usage_comes_in_a_stream_only_when_asked(url: str) -> None:
    plain = events(chat(url, stream=True).text)
    assert all("usage" not in event for event in plain)
    asked = events(chat(url, stream=True, stream_options={"include_usage": True}).text)
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["completion_tokens"] == len(asked) - 2


def test_thinking_is_on_by_default_and_starves_a_tiny_limit(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
    choice = HTTP.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    "off",
    [
        {"chat_template_kwargs": {"thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
    ],
)
def test_each_switch_turns_thinking_off(url: str, off: JSON) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **off}
    message = HTTP.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert message["reasoning"] is None
    assert message["content"].startswith("Hello")


@pytest.mark.parametrize("effort", ["high", "none"])
def test_a_response_tells_how_much_of_it_was_thought(url: str, effort: str) -> None:
    asked = {"input": "What is 2+2?", "max_output_tokens": 5, "reasoning": {"effort": effort}}
    used = HTTP.post(f"{url}/v1/responses", json=asked).json()["usage"]
    thought = used["output_tokens_details"]["reasoning_tokens"]
    assert (used["output_tokens"], thought) == (5, 5 if effort == "high" else 0)


def test_reasoning_streams_under_both_names_when_the_server_says_both() -> None:
    with served("--speed", "0", "--reasoning-field", "both") as base:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        deltas = [e["choices"][0]["delta"] for e in events(HTTP.post(f"{base}/v1/chat/completions", json=body).text)]
        assert deltas[1]["reasoning"] == deltas[1]["reasoning_content"] != ""
        assert "content" in deltas[-1]
        quiet = {"messages": [{"role": "user", "content": "hi"}], "thinking_token_budget": 8}
        used = HTTP.post(f"{base}/v1/chat/completions", json=quiet).json()
        assert used["choices"][0]["message"]["content"].startswith("Hello")


def test_an_answer_is_about_as_long_as_was_asked_for(url: str) -> None:
    for words in (40, 300):
        said = chat(url, f"Explain tides in {words} words.").json()["choices"][0]["message"]["content"]
        assert words - 15 <= len(said.split()) <= words + 30


def test_stop_ends_the_text_before_it_and_is_named(url: str) -> None:
    choice = chat(url, "hello", stop=["simulated", "zzz"]).json()["choices"][0]
    assert choice["message"]["content"].endswith("(")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "simulated")


def test_n_choices_interleave_and_differ(url: str) -> None:
    seen = [e["choices"][0] for e in events(chat(url, "Explain tides", n=3, stream=True).text)]
    assert {c["index"] for c in seen} == {0, 1, 2}
    assert sum(c["finish_reason"] is not None for c in seen) == 3
    texts = {c["message"]["content"] for c in chat(url, "Explain tides", n=3).json()["choices"]}
    assert len(texts) == 3


def test_logprobs_cover_the_text_and_rank_the_alternatives(url: str) -> None:
    choice = chat(url, logprobs=True, top_logprobs=4).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == choice["message"]["content"]
    for token in content:
        ranked = [top["logprob"] for top in token["top_logprobs"]]
        assert len(ranked) == 4
        assert ranked == sorted(ranked, reverse=True)
        assert bytes(token["bytes"]).decode() == token["token"]
    assert chat(url).json()["choices"][0]["logprobs"] is None


def test_tool_deltas_come_by_index_and_join_to_valid_arguments(url: str) -> None:
    seen = events(chat(url, "What is the weather in Paris?", tools=[WEATHER], stream=True).text)
    calls = [c for e in seen for c in e["choices"][0]["delta"].get("tool_calls", [])]
    assert (calls[0]["function"]["name"], calls[0]["type"], calls[0]["index"]) == ("get_weather", "function", 0)
    arguments = json.loads("".join(c["function"]["arguments"] for c in calls))
    assert arguments["unit"] in ("celsius", "fahrenheit")
    assert seen[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_tool_choice_rules_whether_a_tool_is_called(url: str) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    ends = {}
    for key, text, choice in [
        ("unrelated", "Sing a song", "auto"),
        ("none", "weather in a city", "none"),
        ("required", "Sing a song", "required"),
        ("named", "Sing a song", named),
    ]:
        ends[key] = chat(url, text, tools=[WEATHER], tool_choice=choice).json()["choices"][0]
    assert ["tool_calls" in ends[k]["message"] for k in ends] == [False, False, True, True]
    assert [ends[k]["finish_reason"] for k in ends] == ["stop", "stop", "tool_calls", "stop"]


def test_a_prompt_is_echoed_and_its_likelihood_told(url: str) -> None:
    prompts = ["one two", "three"]
    asked = {"prompt": prompts, "max_tokens": 1, "logprobs": 0, "echo": True, "prompt_logprobs": 0}
    choices = HTTP.post(f"{url}/v1/completions", json=asked).json()["choices"]
    for choice, prompt in zip(choices, prompts, strict=True):
        told = choice["logprobs"]
        assert choice["text"].startswith(prompt)
        assert "".join(told["tokens"]) == choice["text"]
        assert told["token_logprobs"][0] is None
        assert all(value < 0 for value in told["token_logprobs"][1:])
        scored = [next(iter(one.values()))["logprob"] for one in choice["prompt_logprobs"][1:]]
        assert scored == told["token_logprobs"][1:-1]
    plain = HTTP.post(f"{url}/v1/completions", json={"prompt": "one two"}).json()["choices"][0]
    assert "prompt_logprobs" not in plain


def test_the_tool_that_the_user_speaks_of_is_called_and_its_result_is_told(url: str) -> None:
    stocks = {"type": "function", "function": {"name": "get_stock_price", "parameters": {"type": "object"}}}
    asked = [{"role": "user", "content": "What does the stock of ACME cost?"}]
    called = chat(url, messages=asked, tools=[WEATHER, stocks]).json()["choices"][0]["message"]
    assert [one["function"]["name"] for one in called["tool_calls"]] == ["get_stock_price"]
    answered = [*asked, called, {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "12.50 EUR"}]
    told = chat(url, messages=answered, tools=[WEATHER, stocks]).json()["choices"][0]["message"]
    assert "12.50 EUR" in told["content"]
    assert "tool_calls" not in told


def test_tools_are_read_whatever_the_tool_choice(url: str) -> None:
    prompts = [
        chat(url, "hi", tools=tools, tool_choice=choice).json()["usage"]["prompt_tokens"]
        for tools, choice in (([WEATHER], "auto"), ([WEATHER], "none"), (None, None))
    ]
    assert prompts[0] == prompts[1] > prompts[2]


def test_text_completions_answer_each_prompt(url: str) -> None:
    body = {"prompt": ["one", "two"], "max_tokens": 5, "logprobs": 2}
    reply = HTTP.post(f"{url}/v1/completions", json=body).json()
    assert (reply["object"], len(reply["choices"])) == ("text_completion", 2)
    assert "".join(reply["choices"][0]["logprobs"]["tokens"]) == reply["choices"][0]["text"]
    assert HTTP.post(f"{url}/v1/completions", json={"prompt": []}).status_code == 400
    assert HTTP.post(f"{url}/v1/completions", json={"prompt": [1, 2, 3]}).json()["usage"]["prompt_tokens"] == 3


def test_tokenize_agrees_with_usage(url: str) -> None:
    messages = [{"role": "user", "content": "Count me, please: 1234 你好"}]
    body = {"messages": messages, "chat_template_kwargs": OFF, "return_token_strs": True}
    counted = HTTP.post(f"{url}/tokenize", json=body).json()
    used = chat(url, "Count me, please: 1234 你好").json()["usage"]
    assert counted["count"] == len(counted["tokens"]) == used["prompt_tokens"]
    assert "你好" in "".join(counted["token_strs"])


@pytest.mark.parametrize("body", BAD_BODIES)
def test_a_bad_body_is_a_400_error_object(url: str, body: bytes) -> None:
    reply = HTTP.post(f"{url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (400, 400, "BadRequestError")


@pytest.mark.parametrize("fields", BAD_FIELDS)
def test_a_bad_field_is_blamed(url: str, fields: JSON) -> None:
    reply = chat(url, **fields)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] in fields


def mutate(node: Any, rng: random.Random) -> Any:
    """`node` with one random value somewhere inside it replaced."""
    if not node or not isinstance(node, dict | list) or rng.random() < 0.1:
        return rng.choice(json.loads(ODD))
    if isinstance(node, list):
        return [mutate(node[0], rng), *node[1:]]
    key = rng.choice(sorted(node))
    return {**node, key: mutate(node[key], rng)}


def test_no_mutation_of_a_body_makes_a_5xx(url: str) -> None:
    rng = random.Random(7)
    fields = sorted(ChatRequest.__struct_fields__)
    schema = {"type": "json_schema", "json_schema": {"schema": WEATHER["function"]["parameters"]}}
    base: JSON = {"messages": [{"role": "user", "content": [{"type": "text", "text": "weather"}]}], "max_tokens": 4}
    base |= {"tools": [WEATHER], "chat_template_kwargs": OFF, "stop": ["x"], "response_format": schema}
    for _ in range(400):
        extra = {rng.choice(fields): mutate(None, rng)} if rng.random() < 0.3 else {}
        mutated = mutate(base, rng)
        body = {**base, **(mutated if isinstance(mutated, dict) else {}), **extra, "stream": False}
        reply = HTTP.post(f"{url}/v1/chat/completions", json=body)
        assert reply.status_code < 500, (body, reply.text)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("messages", {"max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 1.5}}, "thinking"),
        ("messages", {"max_tokens": 9, "output_config": {"format": True}}, "output_config"),
        ("responses", {"text": {"format": True}}, "text"),
        ("embeddings", {"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_what_another_endpoint_cannot_read_is_a_400_that_names_the_field(
    url: str, path: str, body: JSON, param: str
) -> None:
    said = {"messages": [{"role": "user", "content": "hi"}]} if path == "messages" else {"input": "hi"}
    reply = HTTP.post(f"{url}/v1/{path}", json=said | body)
    assert reply.status_code == 400
    assert f"$.{param}" in reply.text


def test_embeddings_are_of_each_text_or_of_one_list_of_tokens(url: str) -> None:
    for given, count in (("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2), (["a", 1], 1)):
        assert len(HTTP.post(f"{url}/v1/embeddings", json={"input": given}).json()["data"]) == count


def test_a_deep_body_is_a_400(url: str) -> None:
    deep = b'{"messages": [{"role": "user", "content": "x"}], "tools": ' + b"[" * 900 + b"]" * 900 + b"}"
    schema = b'{"messages": [{"role": "user", "content": "x"}], "guided_json": "' + b"[" * 90000 + b'"}'
    for body in (deep, schema):
        reply = HTTP.post(f"{url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400


def test_unknown_model_path_and_method_are_refused_as_vllm_does(url: str) -> None:
    unknown = chat(url, model="gpt-9")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "NotFoundError")
    assert unknown.json()["error"]["message"] == "The model `gpt-9` does not exist."
    nowhere = HTTP.get(f"{url}/nowhere")
    assert (nowhere.status_code, nowhere.json()) == (404, {"detail": "Not Found"})
    assert HTTP.get(f"{url}/v1/chat/completions").status_code == 405


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with served("--speed", "0", "--max-model-len", "100", "--api-key", "k") as base:
        key = {"authorization": "Bearer k"}
        assert chat(base).json() == {"error": "Unauthorized"}
        assert chat(base, "hi", key).status_code == 200
        error = chat(base, "word " * 100, key).json()["error"]
        assert error["param"] == "input_tokens"
        assert "maximum context length is 100 tokens" in error["message"]
        assert chat(base, "hi", key, max_tokens=96).status_code == 400


def test_request_ids_are_kept(url: str) -> None:
    assert chat(url, headers={"X-Request-Id": "abc"}, request_id="other").json()["id"] == "chatcmpl-abc"
    assert chat(url, request_id="other").json()["id"] == "chatcmpl-other"


def test_metrics_carry_vllms_current_names(url: str) -> None:
    chat(url)
    text = HTTP.get(f"{url}/metrics").text
    labels = '{engine="0",model_name="deepseek-ai/DeepSeek-V4-Flash"}'
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total"):
        assert f"vllm:{name}{labels}" in text
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "request_queue_time_seconds"):
        assert f"vllm:{name}_bucket" in text
    assert "gpu_cache_usage_perc" not in text
    assert float(re.findall(r"vllm:generation_tokens_total\{\S* (\S+)", text)[0]) > 0


def test_the_openai_client_streams_and_raises_its_own_errors(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="deepseek-v4-flash", messages=[{"role": "user", "content": "hi"}], stream=True, reasoning_effort="none"
    )
    assert "Hello" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(
            model="deepseek-v4-flash",
            messages=[{"role": "user", "content": "hi"}],
            extra_headers={"X-Return-Error": "429"},
        )


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "backends.sim", "--tier", "flash", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, f"cannot listen on 127.0.0.1:{port}\n")


COUNTS = ("--max-model-len", "--max-num-seqs", "--kv-cache-size", "--block-size")


@pytest.mark.parametrize(
    ("flag", "value"), [("--port", "65536"), ("--port", "-1"), ("--port", "http"), *((flag, "0") for flag in COUNTS)]
)
def test_what_is_no_port_and_a_size_of_nothing_are_refused(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "port" if flag == "--port" else "count"
    with pytest.raises(SystemExit):
        parser().parse_args(["--tier", "flash", "--port", "1", flag, value])
    assert capsys.readouterr().err.endswith(f"argument {flag}: invalid {kind} value: '{value}'\n")


async def cost(path: str, body: JSON) -> float:
    """Seconds of CPU for a request."""
    asked = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Message:
        return asked.pop() if asked else await asyncio.Future()

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200

    headers = [(b"content-type", b"application/json")]
    simulator = Simulator(settings(parser().parse_args(["--tier", "flash", "--port", "0", "--speed", "0"])))
    started = time.process_time()
    await simulator({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return time.process_time() - started


def response(size: int) -> JSON:
    return {"input": f"Write {size} words", "stream": True, "reasoning": {"effort": "none"}}


def echo(size: int) -> JSON:
    return {"prompt": "word " * size, "echo": True, "logprobs": 1, "max_tokens": 1}


@pytest.mark.parametrize(
    ("path", "body", "size"), [("/v1/responses", response, 3200), ("/v1/completions", echo, 12800)]
)
async def test_an_answer_costs_in_proportion_to_its_length(path: str, body: Callable[[int], JSON], size: int) -> None:
    """Some 13 times as much for these, and from 200 times on where each token looks at all before it."""
    await cost(path, body(200))
    assert await cost(path, body(size)) < 60 * await cost(path, body(200))
