import asyncio
import json
import tracemalloc

import msgspec
import pytest
from msgspec.structs import replace

from gateway.cache import cache_key, cached_reply
from gateway.cache.entry import Entry, packed, sealed, unpacked, unsealed
from gateway.policy import Policy
from gateway.store import MemoryStore
from gateway.types import Caller, Own
from loadtest.servers import Sim
from tests.gateway.serving import ANN, CHAT, asked, body, callers, gateway, plain, scripted
from tests.tiers import JSON, policy_for

FLASH, PRO = Sim("http://127.0.0.1:1", "flash-model"), Sim("http://127.0.0.1:2", "pro-model")
POLICY = policy_for(FLASH, PRO, caching={"ttl": "1m"})
BASE = body(temperature=0, seed=1, max_tokens=5, stop=["x"], metadata={"a": 1}, tools=[], stream=False)


def key(fields: JSON, policy: Policy = POLICY, path: str = CHAT, tier: str | None = None) -> bytes | None:
    return cache_key(asked(fields, path, headers={"x-route-tier": tier} if tier else None), policy)


def test_the_same_request_has_the_same_key_whatever_the_order_of_its_members() -> None:
    assert key(BASE) == key(dict(reversed(BASE.items())))
    assert key(BASE) == key(BASE | {"user": "u", "safety_identifier": "s", "priority": 3, "stop_token_ids": None})


# Every member of OpenAI's chat and text completions and of vLLM's extras, save those that are IGNORED or FORM.
MEMBERS = """
messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_options
prompt_cache_retention reasoning_effort response_format seed service_tier stop store temperature tool_choice tools
top_logprobs top_p verbosity web_search_options best_of echo prompt suffix
top_k min_p repetition_penalty length_penalty use_beam_search stop_token_ids include_stop_str_in_output ignore_eos
min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs
logprob_token_ids allowed_token_ids bad_words watermarking thinking_token_budget include_reasoning
add_generation_prompt continue_final_message add_special_tokens documents chat_template chat_template_kwargs
media_io_kwargs mm_processor_kwargs structured_outputs return_tokens_as_token_ids return_token_ids return_prompt_text
routed_experts_prompt_start stream_interval repetition_detection session_id cache_salt kv_transfer_params
ec_transfer_params vllm_xargs anything
"""
TYPED: JSON = {
    "temperature": -0.5,
    "messages": body("other")["messages"],
    "prompt": "other",
    "tools": None,
    "model": "other",
    "cache_salt": "other",
    "reasoning_effort": "other",
    "n": 2,
    "seed": 2,
    "logprobs": 2,
    "top_logprobs": 2,
    "top_k": 2,
    "max_tokens": 2,
    "max_completion_tokens": 2,
}


@pytest.mark.parametrize("name", MEMBERS.split())
def test_every_member_that_differs_misses(name: str) -> None:
    assert key(BASE | {name: TYPED.get(name, {"new": 1})}) not in (None, key(BASE))


def test_one_key_serves_all_forms_that_can_be_made_of_each_other() -> None:
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    assert key(BASE) == key(BASE | {"stream": True}) == key(BASE | usage)
    odd: list[JSON] = [{"continuous_usage_stats": True}, {"include_obfuscation": False}]
    assert len({key(BASE), *(key(BASE | usage | {"stream_options": options}) for options in odd)}) == 3
    assert key(BASE | {"stream_options": {}}) is None, "a server refuses it"
    ids = {"return_token_ids": True}
    assert key(BASE | ids) != key(BASE | ids | {"stream": True})
    text = {"prompt": "x", "temperature": 0, "logprobs": 1}
    assert key(text, path="/v1/completions") != key(text | {"stream": True}, path="/v1/completions")


def test_callers_plans_policies_paths_models_and_routing_headers_miss() -> None:
    bob, salted = Caller("bob", "bob", "usual", "salt-of-bob"), Caller("ann", "ann", "other", "salt-of-ann")
    renamed, again = (
        policy_for(FLASH, Sim(PRO.url, "${MODEL}"), caching={"ttl": "1m"}, env={"MODEL": name}) for name in "ab"
    )
    assert renamed.digest == again.digest
    keys = [
        key(BASE),
        cache_key(asked(BASE, caller=bob), POLICY),
        cache_key(asked(BASE, caller=salted), POLICY),
        key(BASE, renamed),
        key(BASE, again),
        key(BASE, policy_for(FLASH, PRO, caching={"ttl": "2m"})),
        key(BASE, tier="pro"),
        key({"prompt": "x", "temperature": 0}, path="/v1/completions"),
        key({"messages": [], "prompt": "x", "temperature": 0}, path="/v1/completions"),
    ]
    assert len(set(keys)) == len(keys)
    assert None not in keys


def test_a_key_that_may_use_other_tiers_misses() -> None:
    owners = [replace(ANN, own=Own(may=may)) for may in (None, (), ("pro",))]
    assert len({cache_key(asked(BASE, caller=one), POLICY) for one in owners}) == 3


def test_the_same_body_misses_on_another_path() -> None:
    fields: JSON = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "max_tokens": 5}
    paths = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages")
    keys = {key(fields | {"temperature": 0, "functions": ["f"]}, path=path) for path in paths}
    assert len(keys - {None}) == len(paths)


def test_tiers_that_skip_other_experts_miss_also_where_the_environment_says_so() -> None:
    skipping = [
        policy_for(FLASH, PRO, caching={"ttl": "1m"}, tiers={"flash": {"skips": "${SKIPS}"}}, env={"SKIPS": name})
        for name in ("top3", "top4")
    ]
    assert skipping[0].digest == skipping[1].digest
    assert len({key(BASE), *(key(BASE, policy) for policy in skipping)}) == 3


@pytest.mark.parametrize("fields", [body(), body(temperature=0.7), body(temperature=0, tools=[{"type": "function"}])])
def test_what_is_not_meant_to_repeat_is_not_remembered(fields: JSON) -> None:
    assert key(fields) is None
    assert key(BASE, policy_for(FLASH, PRO)) is None


def test_answers_are_remembered_between_both_ends_of_the_temperatures_that_the_policy_names() -> None:
    warm = policy_for(FLASH, PRO, caching={"when": {"temperature": {"min": 0.25, "max": 0.5}}})
    kept = [key(body(temperature=at), warm) is not None for at in (0, 0.24, 0.25, 0.5, 0.51)]
    assert kept == [False, False, True, True, False]


ENTRY = Entry(b"", b"application/json", b"null", "flash", "r", b'{"choices": []}' * 100)
NAME = b"k" * 32
BOB = Caller("bob", "bob", "usual", "salt-of-bob")


def test_an_entry_is_read_back_as_it_was_kept_and_small() -> None:
    value = packed(ENTRY, NAME, ANN)
    assert len(value) < len(ENTRY.data) / 5
    assert unpacked(value, NAME, ANN) == ENTRY
    small = Entry(b"", b"application/json", b"null", "flash", "r", b"{}")
    assert unpacked(packed(small, NAME, ANN), NAME, ANN) == small


def test_what_is_poisoned_cut_or_anothers_is_a_miss() -> None:
    value, request = packed(ENTRY, NAME, ANN), asked(BASE)
    assert cached_reply(value, NAME, request) is not None
    flipped = [value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :] for at in range(len(value))]
    cut = [value[:at] for at in range(len(value))]
    old = msgspec.msgpack.encode((200, [], False, "flash", "r", b"{}"))
    for data in (*flipped, *cut, value + b"x", None, b"garbage", old):
        assert cached_reply(data, NAME, request) is None
    assert cached_reply(value, b"j" * 32, request) is None, "it is kept under another key"
    assert cached_reply(packed(ENTRY, NAME, BOB), NAME, request) is None, "it is another caller's"
    assert cached_reply(sealed(b"no entry", NAME, ANN), NAME, request) is None


def test_an_entry_that_unpacks_without_end_is_a_miss() -> None:
    bomb = sealed(bytes(64 << 20), NAME, ANN)
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    try:
        assert unsealed(bomb, NAME, ANN) is None
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


async def test_one_callers_answers_are_never_anothers(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    known = await callers(store, "ann", "bob")
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"}), store, everyone=False) as gate:
        fields = body(temperature=0, model="flash")
        flash.config(stall_first=0.1)
        together = await asyncio.gather(*(gate.ask(fields, **who) for who in known))
        again = [await gate.ask(fields, **who) for who in known]
    assert [answer.headers["x-route-cache"] for answer in together] == ["miss", "miss"]
    assert [answer.headers["x-route-cache"] for answer in again] == ["hit", "hit"]
    assert len(flash.seen()) == 2
    salts = {json.loads(entry["body"])["cache_salt"] for entry in flash.seen()}
    assert len(salts) == 2


async def test_an_answer_whose_usage_is_no_text_is_given_again_as_it_came(pro: Sim) -> None:
    said = b'{"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "by": "\xff"}}'
    async with (
        scripted(plain(said)) as (url, _),
        gateway(policy_for(Sim(url, "m"), pro, caching={"ttl": "1m"})) as gate,
    ):
        for cache in ("miss", "hit"):
            answer = await gate.ask(body(model="flash", temperature=0))
            assert (answer.status, answer.headers["x-route-cache"], answer.data) == (200, cache, said)


def event(finish: str) -> bytes:
    return b'data: {"choices": [{"index": 0, "delta": {"content": "x"}%s}]}\n\n' % finish.encode()


UNENDED = (', "finish_reason": null', "")  # what stands in an answer that does not say why it ended


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_does_not_say_why_it_ended_passes_and_is_asked_again(pro: Sim, stream: bool) -> None:
    made = [b'{"choices": [{"message": {"content": "x"}%s}]}' % finish.encode() for finish in UNENDED]
    kind = {}
    if stream:
        made = [event(UNENDED[0]) + event(finish) + b"data: [DONE]\n\n" for finish in UNENDED]
        kind = {"content_type": "text/event-stream"}
    async with (
        scripted(*(plain(one, **kind) for one in made * 2)) as (url, _),
        gateway(policy_for(Sim(url, "m"), pro, caching={"ttl": "1m"})) as gate,
    ):
        for said in made * 2:
            answer = await gate.ask(body(model="flash", temperature=0, stream=stream))
            assert (answer.status, answer.headers["x-route-cache"], answer.data) == (200, "miss", said)


async def test_what_failover_or_a_missing_verdict_gave_is_asked_again(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        fields = body(temperature=0)
        flash.config(only="triage", verdict="garbage")
        assert (await gate.ask(fields)).headers["x-route-reason"] == "parse"
        flash.config(only="answer", verdict=None, status=500)
        assert (await gate.ask(fields)).headers["x-route-tier"] == "pro"
        flash.config(status=None)
        assert [(await gate.ask(fields)).headers["x-route-cache"] for _ in range(2)] == ["miss", "hit"]


@pytest.mark.parametrize("told", ["no-cache", "max-age=0, No-Store"])
async def test_a_caller_may_have_an_answer_made_afresh(flash: Sim, pro: Sim, told: str) -> None:
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        headers: list[JSON] = [{}, {"cache_control": told}, {"cache_control": "max-age=0"}]
        found = [(await gate.ask(body(temperature=0), **more)).headers["x-route-cache"] for more in headers]
        assert found == ["miss", "bypass", "hit"]
        assert len(flash.seen()) == 2
