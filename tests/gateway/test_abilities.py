"""What one server can do is found by asking it, and told in its own words where it fails."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.abilities import (
    PlainAnswer,
    common_strategies,
    failure_text,
    for_server,
    plain_answer,
    try_strategies,
)
from gateway.http1 import Client
from gateway.policy import Policy
from gateway.upstream import Upstream
from loadtest.servers import Sim, free_port
from tests.gateway.serving import plain, scripted
from tests.tiers import policy_for

PRO = Sim("http://127.0.0.1:2", "pro-model")
DEEP = '{"choices":[{"message":' + "[" * 100_000
BARE: dict[str, Any] = {"tiers": {"flash": {"set": None}}}


def one(server: Sim, **changes: Any) -> Policy:
    return for_server(policy_for(server, PRO, **changes), "flash", server.url)


@contextlib.asynccontextmanager
async def door() -> AsyncIterator[Upstream]:
    client = Client()
    upstream = Upstream(client)
    yield upstream
    await upstream.close()
    client.close()


def bodies(server: Sim) -> list[Any]:
    return [json.loads(entry["body"]) for entry in server.state()["requests"]]


async def asked(policy: Policy) -> PlainAnswer:
    async with door() as upstream:
        return await plain_answer(policy, upstream)


async def said(policy: Policy, strategy: str, outcome: str = "error") -> str:
    async with door() as upstream:
        return await failure_text(policy, upstream, strategy, outcome)  # type: ignore[arg-type]


async def test_a_named_strategy_does_not_hide_the_others(flash: Sim) -> None:
    async with door() as upstream:
        found = await try_strategies(one(flash, triage={"strategy": "json"}), upstream)
    assert list(found) == ["choice", "decisions", "json_logprobs", "json"]


async def test_another_tier_than_triage_s_is_asked_at_its_own_server(flash: Sim, pro: Sim) -> None:
    async with door() as upstream:
        await try_strategies(for_server(policy_for(flash, pro), "pro", pro.url), upstream)
    assert flash.state()["requests"] == []
    assert {body["model"] for body in bodies(pro)} == {"pro-model"}


def test_a_tier_can_do_what_each_useful_server_can_the_better_ones_first() -> None:
    both = {"json": "ok", "json_logprobs": "ok", "choice": "ok"}
    assert common_strategies([both, {"json": "ok", "choice": "unbound"}]) == ("json",)  # type: ignore[list-item]
    assert common_strategies([both, {"choice": "timeout"}]) == ("choice", "json_logprobs", "json")  # type: ignore[list-item]
    assert common_strategies([]) == common_strategies([{"json": "parse"}]) == ()


async def test_a_server_that_thinks_by_itself_is_told_from_one_that_the_tier_keeps_from_it(flash: Sim) -> None:
    assert await asked(one(flash, **BARE)) == PlainAnswer(thinks=True, content=False, logprobs=True)
    assert await asked(one(flash)) == PlainAnswer(thinks=False, content=True, logprobs=True)


async def test_a_server_that_refuses_log_probabilities_still_answers_a_plain_question() -> None:
    answer = {"choices": [{"message": {"content": "Hello", "reasoning_content": "hm"}, "finish_reason": "stop"}]}
    refusal = plain(b'{"error":{"message":"no logprobs here"}}', "400 Bad Request")
    async with scripted(refusal, plain(json.dumps(answer).encode())) as (url, _):
        told = await asked(one(Sim(url, "flash-model")))
    assert told == PlainAnswer(thinks=True, content=True, logprobs=False)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("[]", PlainAnswer(refused="200 []")),
        ('{"choices":[]}', PlainAnswer(refused='200 {"choices":[]}')),
        ('{"choices":[{"message":[]}]}', PlainAnswer(refused='200 {"choices":[{"message":[]}]}')),
        ('{"choices":[{"message":{"content":"a"},"logprobs":[1],"finish_reason":"stop"}]}', PlainAnswer(content=True)),
    ],
)
async def test_an_answer_of_another_form_is_no_error(answer: str, told: PlainAnswer) -> None:
    one_each = plain(answer.encode())
    async with scripted(one_each, one_each) as (url, _):
        assert await asked(one(Sim(url, "flash-model"))) == told


async def test_what_a_server_says_in_place_of_an_answer_is_told(flash: Sim) -> None:
    flash.config(status=500)
    assert (await asked(one(flash))).refused.startswith('500 {"error":')
    gone = Sim(f"http://127.0.0.1:{free_port()}", "flash-model")
    assert "no connection" in (await asked(one(gone))).refused
    assert await said(one(gone), "json") == ""


async def test_words_are_those_of_the_very_question(flash: Sim) -> None:
    assert (await said(one(flash), "decisions")).startswith('501 {"error":')
    flash.config(only="triage", verdict="garbage")
    told = await said(one(flash), "json", "parse")
    assert told.startswith('200 {"role":"assistant","content":')
    assert len(told) <= 124
    last = bodies(flash)[-1]
    assert (last["stream"], last["response_format"]) == (False, {"type": "json_object"})
    await said(one(flash), "choice", "unbound")
    assert "Say hello." in json.dumps(bodies(flash)[-1]["messages"])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ('{"choices":[{"message":{"content":"a"},"index":0}],"created":1}', '200 {"content":"a"}'),
        ('{"choices":[],"created":1}', '200 {"choices":[],"created":1}'),
        (DEEP, f"200 {DEEP[:117]}..."),
    ],
)
async def test_of_an_answer_the_message_is_told_and_not_when_it_was_made(answer: str, told: str) -> None:
    async with scripted(plain(answer.encode())) as (url, _):
        assert await said(one(Sim(url, "flash-model")), "json") == told
