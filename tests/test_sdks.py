"""Do the official clients of the other dialects get what they expect, from real processes over sockets?"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import anthropic
import openai
import pydantic
import pytest

from loadtest.servers import Sim, gateway
from tests.gateway import serving
from tests.tiers import policy_for

SIMPLE = "What is the capital of Australia, if I may ask?"
COMPLEX = (
    "Prove step by step that there are infinitely many primes of the form 4k+3, and analyse where it fails for 4k+1."
)
POLICY = """\
schema: 1
tiers:
  flash:
    model: flash-model
    replicas: ["${FLASH_URL}"]
    set: {chat_template_kwargs: {thinking: false, enable_thinking: false}}
  pro: {extends: flash, model: pro-model, replicas: ["${PRO_URL}"], can: {embeddings: true}}
triage: {tier: flash, timeout: 5s}
rules: [{id: triaged, route: {simple: flash, complex: pro}}]
callers: {default: {plan: free}, plans: {free: {requests_per_minute: 1000, concurrency: 100, may: [pro]}}}
"""
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Clients(NamedTuple):
    claude: anthropic.Anthropic
    openai: openai.OpenAI


@pytest.fixture(scope="module")
def url(flash_server: Sim, pro_server: Sim) -> Iterator[str]:
    with gateway(POLICY, flash_server, pro_server, store="") as found:
        yield found


@pytest.fixture
def clients(url: str, flash: Sim, pro: Sim) -> Iterator[Clients]:
    claude = anthropic.Anthropic(base_url=url, api_key="anything", max_retries=0)
    with claude, openai.OpenAI(base_url=url + "/v1", api_key="anything", max_retries=0) as other:
        yield Clients(claude, other)


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_a_message_is_triaged_and_answered_as_a_message(clients: Clients, flash: Sim, pro: Sim) -> None:
    simple = clients.claude.messages.create(model="auto", max_tokens=30, messages=said(SIMPLE + " Triage."))
    hard = clients.claude.messages.create(model="auto", max_tokens=30, system="Be exact.", messages=said(COMPLEX))
    assert (simple.model, hard.model) == ("flash-model", "pro-model")
    assert (simple.type, simple.role, simple.content[0].type) == ("message", "assistant", "text")
    assert simple.usage.output_tokens > 0
    assert [entry["path"] for entry in pro.seen()] == ["/v1/messages"]
    assert simple._request_id
    assert simple._request_id != hard._request_id
    assert len(flash.seen("triage")) == 2


def test_a_streamed_message_comes_whole(clients: Clients) -> None:
    with clients.claude.messages.stream(model="auto", max_tokens=40, messages=said(SIMPLE)) as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_message()
    once = clients.claude.messages.create(model="auto", max_tokens=40, messages=said(SIMPLE))
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert stream.request_id
    assert whole.content[0].type == once.content[0].type == "text"
    assert whole.content[0].text == once.content[0].text
    assert whole.usage.output_tokens == once.usage.output_tokens


def test_a_tool_is_called_and_its_result_taken(clients: Clients) -> None:
    asked = said("What is the weather in Paris? Use get_weather.")
    call = clients.claude.messages.create(model="flash", max_tokens=200, tools=[WEATHER], messages=asked)
    assert call.stop_reason == "tool_use"
    used = call.content[-1]
    assert used.type == "tool_use"
    assert used.name == "get_weather"
    result = {"type": "tool_result", "tool_use_id": used.id, "content": "21 degrees and sunny"}
    turns: Any = [*asked, {"role": "assistant", "content": call.content}, {"role": "user", "content": [result]}]
    told = clients.claude.messages.create(model="flash", max_tokens=200, tools=[WEATHER], messages=turns)
    assert told.content[0].type == "text"
    assert "21 degrees" in told.content[0].text


def test_an_agents_turn_is_judged_once_not_each_of_its_tool_results(clients: Clients, flash: Sim) -> None:
    used: Any = {"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Paris"}}
    result: Any = {"type": "tool_result", "tool_use_id": "t", "content": "21 degrees and sunny"}
    step = [{"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    for steps in range(2):
        turns: Any = [*said(COMPLEX + " Agent."), *step * steps]
        told = clients.claude.messages.create(model="auto", max_tokens=30, tools=[WEATHER], messages=turns)
        assert told.model == "pro-model"
    assert len(flash.seen("triage")) == 1
    shell: Any = {"type": "function", "name": "exec_command", "parameters": {"type": "object"}}
    group: Any = {"type": "namespace", "name": "multi_agent_v1", "description": "Agents", "tools": [shell]}
    tools: Any = [shell, group, {"type": "web_search", "external_web_access": False}]
    called: Any = {"type": "function_call", "call_id": "t", "name": "exec_command", "arguments": "{}"}
    came: Any = {"type": "function_call_output", "call_id": "t", "output": "21 degrees and sunny"}
    for steps in range(2):
        items: Any = [*said(SIMPLE + " Agent."), *[called, came] * steps]
        made = clients.openai.responses.create(model="auto", input=items, tools=tools, store=False)
        assert made.model == "flash-model"
    assert len(flash.seen("triage")) == 2


def test_a_caller_may_have_a_tier_think_that_answers_at_once(clients: Clients) -> None:
    asked: Any = {"model": "flash", "max_tokens": 2000, "messages": said(SIMPLE)}
    aloud = clients.claude.messages.create(**asked, thinking={"type": "enabled", "budget_tokens": 1024})
    with clients.claude.messages.stream(**asked, thinking={"type": "enabled", "budget_tokens": 1024}) as stream:
        streamed = stream.get_final_message()
    at_once = clients.claude.messages.create(**asked, thinking={"type": "disabled"})
    kinds = [[block.type for block in answer.content] for answer in (aloud, streamed, at_once)]
    assert kinds == [["thinking", "text"], ["thinking", "text"], ["text"]]


def test_a_forced_tool_is_called_in_each_dialect(clients: Clients) -> None:
    forced: Any = {"type": "tool", "name": "get_weather"}
    message = clients.claude.messages.create(
        model="flash", max_tokens=99, tools=[WEATHER], tool_choice=forced, messages=said("Good morning!")
    )
    tool: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER["input_schema"]}
    response = clients.openai.responses.create(
        model="flash", input="Good morning!", tools=[tool], tool_choice={"type": "function", "name": "get_weather"}
    )
    assert [block.type for block in message.content] == ["tool_use"]
    assert [item.type for item in response.output] == ["function_call"]


def test_tokens_are_counted_without_a_verdict_or_a_charge(clients: Clients, flash: Sim) -> None:
    short = clients.claude.messages.count_tokens(model="auto", messages=said(SIMPLE)).input_tokens
    long = clients.claude.messages.count_tokens(model="auto", messages=said(COMPLEX), system="Be exact.").input_tokens
    assert 0 < short < long
    assert flash.state()["requests"] == []


def test_a_refusal_is_the_error_that_the_client_knows(clients: Clients) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        clients.claude.messages.create(model="claude-unheard-of", max_tokens=5, messages=said("hi"))
    assert unknown.value.body["type"] == "error"  # type: ignore[index]
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert unknown.value.request_id == unknown.value.response.headers["x-request-id"]
    with pytest.raises(openai.BadRequestError, match="whole conversation"):
        clients.openai.responses.create(model="auto", input="go on", previous_response_id="resp_1")


def test_a_message_that_breaks_off_ends_in_an_error(clients: Clients, flash: Sim) -> None:
    flash.config(cut_after=5)
    with pytest.raises(anthropic.APIStatusError, match="broke off"):
        list(clients.claude.messages.create(model="flash", max_tokens=40, messages=said(SIMPLE), stream=True))
    flash.config(cut_after=None, no_done=True)
    with pytest.raises(anthropic.APIStatusError, match="before the answer was complete"):
        list(clients.claude.messages.create(model="flash", max_tokens=40, messages=said(SIMPLE), stream=True))


def test_a_response_is_triaged_and_answered_as_a_response(clients: Clients, pro: Sim) -> None:
    simple = clients.openai.responses.create(model="auto", input=SIMPLE, max_output_tokens=100)
    hard = clients.openai.responses.create(model="auto", instructions="Be exact.", input=said(COMPLEX))
    assert (simple.model, hard.model) == ("flash-model", "pro-model")
    assert simple.status == hard.status == "completed"
    assert simple.output_text
    assert simple.usage
    assert simple.usage.output_tokens > 0
    assert [entry["path"] for entry in pro.seen()] == ["/v1/responses"]
    assert simple._request_id


def test_a_schema_binds_in_each_dialect(clients: Clients) -> None:
    class Place(pydantic.BaseModel):
        city: str

    message = clients.claude.messages.parse(model="flash", max_tokens=90, messages=said(SIMPLE), output_format=Place)
    response = clients.openai.responses.parse(model="flash", input=SIMPLE, text_format=Place)
    assert isinstance(message.parsed_output, Place)
    assert isinstance(response.output_parsed, Place)


def test_a_streamed_response_comes_whole(clients: Clients) -> None:
    events = list(clients.openai.responses.create(model="auto", input=SIMPLE, stream=True))
    last = events[-1]
    assert (events[0].type, last.type) == ("response.created", "response.completed")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert last.type == "response.completed"
    assert "".join(deltas) == last.response.output_text != ""


def test_a_response_that_breaks_off_ends_in_an_error(clients: Clients, flash: Sim) -> None:
    flash.config(cut_after=5)
    with pytest.raises(openai.APIError, match="broke off"):
        list(clients.openai.responses.create(model="flash", input=SIMPLE, stream=True))
    flash.config(cut_after=None, no_done=True)
    with pytest.raises(openai.APIError, match="before the answer was complete"):
        list(clients.openai.responses.create(model="flash", input=SIMPLE, stream=True))


def test_embeddings_come_from_the_tier_that_makes_them(clients: Clients, flash: Sim) -> None:
    answer = clients.openai.embeddings.with_raw_response.create(model="auto", input=["one", "two"])
    made = answer.parse()
    assert (answer.headers["x-route-tier"], len(made.data), made.model) == ("pro", 2, "pro-model")
    assert made.usage.total_tokens > 0
    assert flash.seen("triage") == []
    spelled = clients.openai.embeddings.create(model="auto", input=["one", "two"], encoding_format="float")
    assert [one.embedding for one in made.data] == [pytest.approx(one.embedding) for one in spelled.data]


@pytest.mark.parametrize("first", ["stream", "json"])
async def test_the_official_client_reads_both_forms_of_one_entry(flash: Sim, pro: Sim, first: str) -> None:
    policy = policy_for(flash, pro, caching={"ttl": "1m"})
    async with serving.gateway(policy) as gate:
        url = f"http://127.0.0.1:{gate.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            for streamed in (True, False) if first == "stream" else (False, True):
                texts = await read(client, streamed)
                assert texts[0] == texts[1]
        assert len(flash.seen()) == 1


async def read(client: openai.AsyncOpenAI, streamed: bool) -> list[Any]:
    """The answer's words and counts, twice."""
    found = []
    for _ in range(2):
        asked: Any = {"model": "flash", "temperature": 0, "messages": said("Hi")}
        if not streamed:
            whole = await client.chat.completions.create(**asked)
            assert whole.usage
            found.append((whole.id, whole.choices[0].message.content, whole.usage.completion_tokens))
            continue
        events = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [one async for one in events]
        words = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        assert chunks[-1].usage
        assert chunks[-2].choices[0].finish_reason
        found.append((chunks[0].id, words, chunks[-1].usage.completion_tokens))
    return found
