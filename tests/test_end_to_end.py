"""Does the official OpenAI client get what it expects, from real processes over sockets?"""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from backends.evals.routing import Asking, run
from loadtest.servers import DEFAULT, Sim, free_port, gateway, sim, until

SIMPLE = "What is the capital of Australia, if I may ask?"
COMPLEX = (
    "Prove step by step that there are infinitely many primes of the form 4k+3, and analyse where it fails for 4k+1."
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Place(NamedTuple):
    flash: Sim
    pro: Sim
    url: str


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    slow = ("--speed", "4", "--record-bodies")
    with sim("flash", *slow) as flash, sim("pro", *slow) as pro, gateway(DEFAULT, flash, pro) as url:
        yield Place(flash, pro, url)


@pytest.fixture
def client(place: Place) -> Iterator[openai.OpenAI]:
    place.flash.reset()
    place.pro.reset()
    with openai.OpenAI(base_url=place.url + "/v1", api_key="anything", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, text: str, **more: Any) -> Any:
    more.setdefault("model", "auto")
    return client.chat.completions.with_raw_response.create(messages=[{"role": "user", "content": text}], **more)


def test_a_simple_prompt_is_answered_by_flash_and_says_why(client: openai.OpenAI) -> None:
    answer = ask(client, SIMPLE, max_tokens=20)
    assert answer.headers["x-route-tier"] == "flash"
    assert (answer.headers["x-route-rule"], answer.headers["x-route-reason"]) == ("triaged", "simple")
    assert answer.parse().model == "deepseek-ai/DeepSeek-V4-Flash"
    assert float(answer.headers["x-gateway-overhead-ms"]) >= 0


def test_a_complex_prompt_is_answered_by_pro(client: openai.OpenAI) -> None:
    answer = ask(client, COMPLEX, max_tokens=20)
    assert (answer.headers["x-route-tier"], answer.headers["x-route-reason"]) == ("pro", "complex")
    assert answer.parse().model == "deepseek-ai/DeepSeek-V4-Pro"


def test_the_draft_of_a_complex_prompt_is_aborted_on_flash(client: openai.OpenAI, place: Place) -> None:
    ask(client, COMPLEX + " Who knew?", max_tokens=2000)  # a verdict that nobody remembers
    drafts = place.flash.seen()
    assert [draft["state"] for draft in drafts] == ["aborted"]


def test_streams_arrive_piece_by_piece_and_end_properly(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": SIMPLE}], stream=True, max_tokens=30
    )
    chunks = list(stream)
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks), "nobody asked for usage"


def test_usage_comes_in_a_stream_when_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="flash",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    *_, last = stream
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens > 0


def test_a_thinking_tier_streams_its_reasoning(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="pro", messages=[{"role": "user", "content": COMPLEX}], stream=True, max_tokens=40
    )
    thought = [chunk.choices[0].delta.to_dict().get("reasoning") for chunk in stream]
    assert any(thought)


def test_tools_are_called_in_json_and_in_streams(client: openai.OpenAI) -> None:
    text = "Use the tool: what is the weather in Lisbon?"
    answer = ask(client, text, tools=[WEATHER], tool_choice="required").parse()
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"
    with client.chat.completions.stream(
        model="auto", messages=[{"role": "user", "content": text}], tools=[WEATHER], tool_choice="required"
    ) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    assert "city" in json.loads(calls[0].function.arguments)


def test_structured_output_fits_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "green"]}, "count": {"type": "integer"}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "paint", "strict": True, "schema": schema}}
    answer = ask(client, "Pick a colour and a number.", model="flash", response_format=form).parse()
    told = json.loads(answer.choices[0].message.content)
    assert told["colour"] in ("red", "green")
    assert isinstance(told["count"], int)


def test_logprobs_and_n_pass(client: openai.OpenAI) -> None:
    answer = ask(client, SIMPLE, logprobs=True, top_logprobs=2, n=2, max_tokens=5).parse()
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_text_completions_take_the_same_path(client: openai.OpenAI) -> None:
    answer = client.completions.with_raw_response.create(model="auto", prompt=COMPLEX, max_tokens=5)
    assert answer.headers["x-route-tier"] == "pro"
    assert answer.parse().choices[0].text


def test_unknown_fields_and_the_callers_own_bytes_reach_the_server(client: openai.OpenAI, place: Place) -> None:
    ask(client, "hi", model="flash", extra_body={"top_k": 7, "made_up": {"a": [1.0, 1e3]}, "priority": -9})
    sent = json.loads(place.flash.seen()[-1]["body"])
    assert sent["top_k"] == 7
    assert sent["made_up"] == {"a": [1.0, 1000.0]}
    assert "priority" not in sent
    assert sent["cache_salt"]


def test_privileged_fields_that_were_taken_out_are_named(client: openai.OpenAI) -> None:
    answer = ask(client, "hi", model="flash", extra_body={"priority": -9, "kv_transfer_params": {"a": 1}})
    assert answer.headers["x-route-stripped"] == "priority, kv_transfer_params"


def test_a_caller_who_leaves_a_stream_frees_the_server(client: openai.OpenAI, place: Place) -> None:
    stream = client.chat.completions.create(
        model="flash", messages=[{"role": "user", "content": SIMPLE}], stream=True, max_tokens=5000,
        extra_body={"ignore": 1}, extra_headers={"x-request-id": "leaver"},
    )  # fmt: skip
    next(iter(stream))
    left = time.time()
    stream.close()
    until(lambda: place.flash.seen()[-1]["state"] != "running")
    seen = place.flash.seen()[-1]
    assert seen["state"] in ("aborted", "finished")
    assert seen["ended_at"] - left < 0.5


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"model": "gpt-17"}, 404, openai.NotFoundError),
        ({"n": 1000}, 400, openai.BadRequestError),
        ({"extra_body": {"stream": "yes"}}, 400, openai.BadRequestError),
        ({"extra_body": {"messages": []}}, 400, openai.BadRequestError),
    ],
)
def test_wrong_requests_raise_the_clients_own_error_classes(
    client: openai.OpenAI, changes: dict[str, Any], status: int, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        ask(client, "hi", **changes)
    assert caught.value.status_code == status
    assert caught.value.body
    assert set(caught.value.body) == {"message", "type", "param", "code"}  # type: ignore[call-overload]


def test_a_failing_tier_fails_over_and_the_client_does_not_retry_on_top(client: openai.OpenAI, place: Place) -> None:
    place.pro.config(status=500)
    try:
        answer = ask(client.with_options(max_retries=3), COMPLEX, model="pro", max_tokens=5)
        assert answer.headers["x-route-tier"] == "flash_think"
        assert len(place.pro.seen()) == 1
    finally:
        place.pro.config(status=None)


def test_a_cut_stream_raises_and_is_never_a_finish(client: openai.OpenAI, place: Place) -> None:
    place.flash.config(cut_after=3, only="answer")
    try:
        seen: list[Any] = []
        with pytest.raises(openai.APIError):
            seen.extend(
                client.chat.completions.create(
                    model="flash", messages=[{"role": "user", "content": SIMPLE}], stream=True, max_tokens=50
                )
            )
        assert all(chunk.choices[0].finish_reason is None for chunk in seen)
    finally:
        place.flash.config(cut_after=None, only="all")


def test_identical_questions_at_temperature_0_are_answered_once(client: openai.OpenAI, place: Place) -> None:
    first = ask(client, "Name three colours of the rainbow, please.", temperature=0)
    again = ask(client, "Name three colours of the rainbow, please.", temperature=0)
    assert (first.headers["x-route-cache"], again.headers["x-route-cache"]) == ("miss", "hit")
    assert again.content == first.content
    assert len(place.flash.seen()) == 1


def test_explain_gives_the_whole_decision(client: openai.OpenAI) -> None:
    told = json.loads(ask(client, COMPLEX + " Say it.", max_tokens=5, extra_headers={"x-route-explain": "1"}).content)[
        "route"
    ]
    assert told["verdict"]["label"] == "complex"
    assert told["verdict"]["p_complex"] > 0.5
    assert [rule["id"] for rule in told["rules"] if rule["decides"]] == ["triaged"]
    assert told["draft"] == "wasted"


def test_labelled_prompts_are_scored_by_the_decision_alone(place: Place, tmp_path: Path) -> None:
    place.flash.reset()
    place.pro.reset()
    rows = [{"id": str(at), "prompt": text, "label": at % 2} for at, text in enumerate([SIMPLE, COMPLEX] * 2)]
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for by in ("p_complex", "score"):
        _, line = run([tmp_path], Asking(place.url, None, by, "flash"), None, 2)
        cells = [cell.strip() for cell in line.split("|")]
        assert (cells[1:3], cells[4], cells[6][:5]) == (["tiny", "4 of 4"], "0.500", "1.000"), by
    assert place.flash.seen() == place.pro.seen() == []


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["auto", "flash"]
    assert client.models.retrieve("pro").id == "pro"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")


def test_the_demo_shows_where_a_dozen_prompts_went() -> None:
    command = [sys.executable, "-m", "gateway", "demo", "--once", "--speed", "50", "--port", str(free_port())]
    env = os.environ | {"GATEWAY_API_KEY": secrets.token_hex(16)}  # of the shell: the demo has settings of its own
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env).stdout
    rows = [line for line in shown.splitlines() if " flash " in line or " pro " in line]
    assert len(rows) == 12
    assert any("complex" in row and " pro " in row for row in rows)
    assert any("simple" in row and " flash " in row for row in rows)
    assert any("cached" in row for row in rows)
    assert re.search(r"http://127\.0\.0\.1:\d+/ui .*sk-tg-admin-", shown), "where the page is, and its key"
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    head, *examples = readme.partition("```text\n")[2].partition("```")[0].splitlines()
    assert head in shown.splitlines()
    assert {decided(row) for row in examples} <= {decided(row) for row in rows}


def decided(row: str) -> str:
    """A row of the table without its figures."""
    return row[:39] + row[45:66]
