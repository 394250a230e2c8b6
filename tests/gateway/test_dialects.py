"""Messages, responses and embeddings: read, routed, relayed, remembered, booked and refused as chat is."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.attached import explained_events
from gateway.cache import cache_key
from gateway.dialects import DIALECTS, read
from gateway.errors import BadRequest, Overloaded, Refusal, TooSlow, Unauthorized, UpstreamTimeout, WrongMethod
from gateway.facts import observe
from gateway.fields import MAX_PROMPTS, Message
from gateway.policy import Policy
from gateway.pricing import bound
from gateway.routing import route
from gateway.splice import changes, refuse_links, stripped
from gateway.store import MemoryStore
from gateway.triage import question
from gateway.types import Ask, ChatRequest, Facts
from loadtest.servers import Sim
from tests.gateway.serving import ANN, CHAT, COMPLEX, SIMPLE, body, gateway
from tests.gateway.test_answer_costs import PRICES, booked
from tests.tiers import JSON, policy_for

each_front = pytest.mark.usefixtures("each_front")
COMPLETIONS, MESSAGES, COUNT = "/v1/completions", "/v1/messages", "/v1/messages/count_tokens"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
FLASH, PRO = Sim("http://127.0.0.1:1", "flash-model"), Sim("http://127.0.0.1:2", "pro-model")
POLICY = policy_for(FLASH, PRO, caching={"ttl": "1m"})
URL = {"type": "url", "url": "http://10.0.0.1/x.png"}


def message(said: Any = SIMPLE, **fields: Any) -> JSON:
    return {"model": "auto", "max_tokens": 50, "messages": [{"role": "user", "content": said}], **fields}


def response(said: Any = SIMPLE, **fields: Any) -> JSON:
    return {"model": "auto", "max_output_tokens": 50, "input": said, **fields}


ANSWERED = [(MESSAGES, message), (RESPONSES, response)]
each_dialect = pytest.mark.parametrize(("path", "made"), ANSWERED, ids=["messages", "responses"])


def asked(path: str, fields: JSON, headers: Mapping[str, str] | None = None) -> ChatRequest:
    whole, known = read(path, json.dumps(fields).encode())
    return ChatRequest("t", ANN, path, whole, known, headers or {}, time.perf_counter())


def facts(path: str, fields: JSON, policy: Policy) -> Facts:
    return observe(asked(path, fields), policy, {})


def sent(request: ChatRequest, policy: Policy, tier: str = "flash") -> JSON:
    """What the tier's server gets."""
    edits = changes(request, policy.tiers[tier], policy.callers.plans["usual"])
    found: JSON = json.loads(request.body.edit(edits))
    return found


# -- what is asked

RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "21 degrees"}]}


def test_a_messages_request_tells_the_rules_what_the_same_chat_would() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "aGk="}}
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {"type": "tool_use", "id": "t"}]},
        {"role": "user", "content": [RESULT]},
        {"role": "user", "content": [RESULT, {"type": "text", "text": "and now?"}, image]},
    ]
    form = {"format": {"type": "json_schema", "schema": {}}, "effort": "high"}
    request = asked(
        MESSAGES, message(system="Be brief.", tools=[{"name": "f"}], output_config=form) | {"messages": turns}
    )
    fields = request.fields
    roles = [said.role for said in fields.messages or ()]
    assert roles == ["system", "user", "assistant", "tool", "tool", "user"]
    assert (fields.max_tokens, fields.reasoning_effort) == (50, "high")
    found = observe(request, policy_for(FLASH, PRO), {})
    assert (found.api, found.turns, found.characters, found.max_tokens) == ("messages", 2, len("and now?"), 50)
    assert (found.tools, found.json_schema, found.vision) == (True, True, True)


def test_a_responses_request_tells_the_rules_what_the_same_chat_would() -> None:
    items = [
        {"role": "user", "content": "one"},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "call_id": "t", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t", "output": "21 degrees"},
        {"type": "custom_tool_call", "call_id": "u", "name": "g", "input": "*** Begin"},
        {"type": "tool_search_call", "call_id": "v", "execution": "client", "arguments": {"query": "issues"}},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and now?"}]},
    ]
    form: JSON = {"format": {"type": "json_schema", "name": "x", "schema": {}}}
    fields = response(items, instructions="Be brief.", tools=[{"type": "function", "name": "f"}], text=form)
    request = asked(RESPONSES, fields | {"reasoning": {"effort": "low"}, "background": False})
    roles = [said.role for said in request.fields.messages or ()]
    assert roles == ["system", "user", "assistant", "assistant", "tool", "assistant", "assistant", "user"]
    assert [said.text() for said in request.fields.messages or ()][-3:-1] == ["*** Begin", '{"query":"issues"}']
    found = observe(request, policy_for(FLASH, PRO), {})
    assert (found.api, found.turns, found.characters, found.max_tokens) == ("responses", 2, len("and now?"), 50)
    assert (found.tools, found.json_schema, request.fields.reasoning_effort) == (True, True, "low")
    shown = response(
        [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGk="}]}]
    )
    assert facts(RESPONSES, shown, policy_for(FLASH, PRO)).vision


@each_dialect
def test_what_a_caller_may_ask_of_us_in_a_chat_it_may_in_other_dialects(path: str, made: Any) -> None:
    given: JSON = {"model": "flash", "stream": True, "temperature": 0.5, "cache_salt": "s", "metadata": {"tier": "pro"}}
    given |= {"chat_template_kwargs": {"thinking": False}}
    fields = asked(path, made(**given)).fields
    assert {name: getattr(fields, name) for name in given} == given
    assert fields.messages == [Message("user", SIMPLE)]


def test_a_prompt_of_another_dialect_that_is_null_is_none() -> None:
    assert asked(MESSAGES, message(prompt=None, input=None)).fields.prompt is None


def test_a_count_is_never_a_stream() -> None:
    assert asked(COUNT, message(stream=True)).fields.stream is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (MESSAGES, message([{"type": "image", "source": URL}])),
        (MESSAGES, message([{"type": "document", "source": URL}])),
        (MESSAGES, message([{"type": "tool_result", "content": [{"type": "image", "source": URL}]}])),
        (MESSAGES, message(system=[{"type": "image", "source": URL}])),
        (RESPONSES, response([{"role": "user", "content": [{"type": "input_image", "image_url": URL["url"]}]}])),
        (RESPONSES, response([{"role": "user", "content": [{"type": "input_file", "file_url": URL["url"]}]}])),
        (RESPONSES, response([{"content": "x", "output": [{"type": "y", "image_url": URL["url"]}]}])),
        (RESPONSES, response([{"type": "x_call_output", "output": [{"type": "y", "image_url": URL["url"]}]}])),
        (RESPONSES, response([{"type": "computer_call_output", "output": {"type": "y", "image_url": URL["url"]}}])),
    ],
)
def test_media_by_link_are_refused_wherever_a_server_would_look(path: str, fields: JSON) -> None:
    with pytest.raises(BadRequest, match="inline") as found:
        refuse_links(asked(path, fields))
    assert found.value.param == ("messages" if path == MESSAGES else "input")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (RESPONSES, response(previous_response_id="resp_1"), "previous_response_id"),
        (RESPONSES, response(previous_input_messages=[]), "previous_input_messages"),
        (RESPONSES, response(conversation="c"), "conversation"),
        (RESPONSES, response(prompt={"id": "p"}), "prompt"),
        (RESPONSES, response([{"type": "item_reference", "id": "m"}]), "input"),
        (RESPONSES, response(background=True), "background"),
        (RESPONSES, response(tools=[{"type": "mcp", "server_url": "http://10.0.0.1"}]), "tools"),
        (RESPONSES, response(tools=[{"type": "web_search"}, {"type": "code_interpreter"}]), "tools"),
        (RESPONSES, response(tools=[{"type": "web_search"}], tool_choice={"type": "web_search"}), "tool_choice"),
        (RESPONSES, response(messages=[]), "messages"),
        (RESPONSES, response(max_tokens=400), "max_tokens"),
        (RESPONSES, response(max_completion_tokens=400), "max_completion_tokens"),
        (RESPONSES, response(n=2), "n"),
        (COMPLETIONS, {"prompt": "x", "max_tokens": 1, "max_completion_tokens": 400}, "max_completion_tokens"),
        (RESPONSES, response([]), "input"),
        (RESPONSES, {"model": "auto"}, "input"),
        (MESSAGES, message(prompt="x"), "prompt"),
        (MESSAGES, message(input="x"), "input"),
        (MESSAGES, message() | {"messages": []}, "messages"),
        (MESSAGES, message() | {"messages": "x"}, "messages"),
        (MESSAGES, message(max_tokens=-1), "max_tokens"),
        (MESSAGES, message() | {"max_tokens": 0}, "max_tokens"),  # for no bound, by some servers
        (RESPONSES, response() | {"max_output_tokens": 0}, "max_output_tokens"),
        (CHAT, body(max_tokens=0), "max_tokens"),
        (CHAT, body(max_tokens=5, max_completion_tokens=0), "max_completion_tokens"),
        (COUNT, {"model": "auto", "system": "x"}, "messages"),
        (EMBEDDINGS, {"input": []}, "input"),
        (EMBEDDINGS, {"input": {"x": 1}}, "input"),
        (EMBEDDINGS, {"input": "x", "messages": [1]}, "messages"),
    ],
)
def test_what_no_server_may_do_or_two_readers_could_read_is_refused(path: str, fields: JSON, param: str) -> None:
    with pytest.raises(BadRequest) as found:
        asked(path, fields)
    assert found.value.param == param


def test_no_server_keeps_a_conversation_and_that_is_told_once() -> None:
    plan = POLICY.callers.plans["usual"]
    request = asked(RESPONSES, response(store=True))
    assert (sent(request, POLICY)["store"], stripped(request, plan)) == (False, ["store"])
    assert stripped(asked(RESPONSES, response(store=False)), plan) == []
    kept = asked(CHAT, body(store=True))
    assert ("store" in sent(kept, POLICY), stripped(kept, plan)) == (False, ["store"])
    assert asked(COMPLETIONS, {"prompt": "x", "max_tokens": 0}).fields.max_tokens == 0, "which scores the prompt"


def test_a_coding_agents_tools_reach_the_server_save_for_the_search_that_it_offers_unasked() -> None:
    shell: JSON = {"type": "function", "name": "exec_command", "strict": False, "parameters": {"type": "object"}}
    agents: JSON = {"type": "namespace", "name": "multi_agent_v1", "description": "é", "tools": [shell]}
    found: JSON = {"type": "tool_search", "execution": "client"}
    search: JSON = {"type": "web_search", "external_web_access": False}
    policy, rest = policy_for(FLASH, PRO), {"tool_choice": "auto", "include": ["reasoning.encrypted_content"]}
    request = asked(RESPONSES, response(tools=[shell, agents, search, found], **rest))
    assert {name: sent(request, policy)[name] for name in rest} == rest
    assert sent(request, policy)["tools"] == [shell, agents, found]
    own: JSON = {"type": "function", "name": "web_search"}
    assert sent(asked(RESPONSES, response(tools=[search, own], tool_choice=own)), policy)["tools"] == [own]
    alone = asked(RESPONSES, response(tools=[search]))
    assert "tools" not in sent(alone, policy)
    assert [observe(one, policy, {}).tools for one in (request, alone)] == [True, False]


@pytest.mark.parametrize(
    ("path", "name", "prompt", "n"),
    [
        (COMPLETIONS, "prompt", "x", 1),
        (COMPLETIONS, "prompt", [1], 2),
        (EMBEDDINGS, "input", "x", 1),
        (EMBEDDINGS, "input", [1], 1),
    ],
)
def test_a_request_holds_no_more_prompts_than_fit_into_a_servers_queue(
    path: str, name: str, prompt: Any, n: int
) -> None:
    most: JSON = {name: [prompt] * (MAX_PROMPTS // n), "n": n}
    assert asked(path, most).fields.prompts() * n == MAX_PROMPTS
    assert asked(path, {name: [7] * 2 * MAX_PROMPTS, "n": n}).fields.prompts() == 1, "numbers are tokens"
    with pytest.raises(BadRequest) as found:
        asked(path, {name: [*most[name], prompt], "n": n})
    assert found.value.param == name


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, RESPONSES])
def test_no_answer_is_asked_for_by_a_number_that_ends_a_server(path: str) -> None:
    prompt = DIALECTS[path].prompt[-1]
    said: JSON = {prompt: [{"role": "user", "content": "x"}] if prompt == "messages" else "x"}
    for name, most in (("top_k", 2**31 - 1), ("top_logprobs", 128)):
        assert asked(path, said | {name: most}).body.raw(name) == b"%d" % most
        with pytest.raises(BadRequest) as found:
            asked(path, said | {name: most + 1})
        assert found.value.param == name


ODD = st.recursive(
    st.sampled_from([None, True, -1, 1 << 60, 0.5, "", "x", "item_reference", "data:x", "http://x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "source"]), inner),
    max_leaves=5,
)
PIECE = st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "tool_result"])}, optional={"text": ODD})
TURN = st.fixed_dictionaries({"role": st.just("user"), "content": st.just("x") | st.lists(PIECE, max_size=3) | ODD})
OTHERS = st.dictionaries(
    st.sampled_from(["system", "tools", "text", "metadata", "reasoning", "stream"]), ODD, max_size=2
)


@settings(max_examples=120)
@given(st.sampled_from(list(DIALECTS)), st.just("x") | st.lists(TURN, max_size=3), OTHERS)
def test_no_body_does_worse_than_a_bad_request(path: str, said: Any, others: JSON) -> None:
    with suppress(BadRequest):
        request = asked(path, {DIALECTS[path].prompt[-1]: said, **others})
        refuse_links(request)
        observe(request, POLICY, {})
        sent(request, POLICY)
        bound(request, ("flash", "pro"), POLICY)
        question(request, POLICY)
        cache_key(request, POLICY)


# -- what is sent


@each_dialect
def test_only_what_must_change_is_changed(path: str, made: Any) -> None:
    policy = policy_for(
        FLASH, PRO, tiers={"flash": {"set": {"max_tokens": 7, "max_completion_tokens": 7, "top_p": 0.5}}}
    )
    fields = made(metadata={"user_id": "u"}, top_k=3, stream=True, priority=-5)
    found = sent(asked(path, fields), policy)
    thinking = {"thinking": False, "enable_thinking": False}
    ours = {"model": "flash-model", "cache_salt": ANN.salt, "chat_template_kwargs": thinking, "top_p": 0.5}
    kept = {"store": False} if path == RESPONSES else {}
    assert found == {name: value for name, value in fields.items() if name != "priority"} | ours | kept
    unbounded = {name: value for name, value in fields.items() if not name.startswith("max_")}
    name = "max_tokens" if path == MESSAGES else "max_output_tokens"
    assert sent(asked(path, unbounded), policy)[name] == 7, "a tier's default by the dialect's name"


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "disabled"}}, True),
        ({"thinking": {"type": "adaptive"}}, False),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True),
        ({"thinking": None}, False),
    ],
)
def test_a_caller_who_says_whether_to_think_is_not_overruled_by_the_tier(wish: JSON, chosen: bool) -> None:
    found = sent(asked(MESSAGES, message(**wish)), POLICY)
    assert ("chat_template_kwargs" not in found) is chosen
    assert {name: found[name] for name in wish} == wish, "the wish itself passes"


def test_no_server_is_asked_to_keep_a_response_and_the_caller_is_told() -> None:
    policy = policy_for(FLASH, PRO)
    request = asked(RESPONSES, response(store=True))
    assert sent(request, policy)["store"] is False
    assert stripped(request, policy.callers.plans["usual"]) == ["store"]
    assert stripped(asked(RESPONSES, response(store=False)), policy.callers.plans["usual"]) == []


@each_dialect
@pytest.mark.parametrize("layout", ["suffix", "system"])
def test_the_verdict_is_asked_for_as_a_chat_that_quotes_the_turns(path: str, made: Any, layout: str) -> None:
    policy = policy_for(FLASH, PRO, triage={"layout": layout})
    system = {"system" if path == MESSAGES else "instructions": "Be exact."}
    asking = json.loads(question(asked(path, made(COMPLEX, **system)), policy).body)
    first, last = asking["messages"]
    assert (first["role"], last["role"]) == ("system", "user")
    assert COMPLEX in json.loads(last["content"])
    assert "Be exact." in json.loads(last["content"])
    assert asking["cache_salt"] == ANN.salt
    assert not {"input", "system", "instructions"} & asking.keys()


# -- who answers


@each_dialect
def test_a_tier_that_does_not_serve_the_path_gives_way_or_the_caller_is_told(path: str, made: Any) -> None:
    api = DIALECTS[path].api
    policy = policy_for(FLASH, PRO, tiers={"flash": {"engine": "openai"}})
    found = route(facts(path, made(), policy), None, policy)
    assert not isinstance(found, Ask), "there is nothing to ask: both ways lead to the same tier"
    assert found.tiers == ("pro",)
    wished = route(facts(path, made(model="flash"), policy), None, policy)
    assert not isinstance(wished, Ask)
    assert (wished.tiers, wished.reason) == (("pro",), f"needs the {api} API")
    nobody = policy_for(FLASH, PRO, tiers={"flash": {"can": {api: False}}, "pro": {"can": {api: False}}})
    with pytest.raises(BadRequest, match=f"the {api} API"):
        route(facts(path, made(), nobody), None, nobody)
    told = policy_for(FLASH, PRO, tiers={"flash": {"engine": "openai", "can": {api: True}}})
    assert isinstance(route(facts(path, made(), told), None, told), Ask)


def test_a_tier_says_of_each_path_whether_its_servers_have_it() -> None:
    assert {type(POLICY.tiers["flash"].serves(one.api)) for one in DIALECTS.values()} == {bool}


def test_embeddings_go_to_the_tier_that_makes_them_and_chats_do_not() -> None:
    can = {"chat": False, "messages": False, "responses": False, "embeddings": True}
    policy = policy_for(FLASH, PRO, tiers={"pro": {"can": can}})
    found = route(facts(EMBEDDINGS, {"input": ["x"]}, policy), None, policy)
    assert not isinstance(found, Ask)
    assert (found.tiers, found.reason) == (("pro",), "needs the embeddings API")
    best = route(facts("/v1/chat/completions", message(model="auto:best"), policy), None, policy)
    assert not isinstance(best, Ask)
    assert best.tiers == ("flash",)


@pytest.mark.parametrize(("path", "fields"), [(COUNT, message(COMPLEX)), (EMBEDDINGS, {"input": COMPLEX})])
def test_nobody_judges_what_no_model_answers(path: str, fields: JSON) -> None:
    policy = policy_for(FLASH, PRO, tiers={"flash": {"can": {"embeddings": True}}})
    found = route(facts(path, fields, policy), None, policy)
    assert not isinstance(found, Ask)
    assert (found.tiers[0], found.reason) == ("flash", "nothing to judge")
    assert bound(asked(path, fields), ("flash",), policy).completion == 0


# -- what comes back


@each_front
@each_dialect
@pytest.mark.parametrize("stream", [False, True])
async def test_the_servers_bytes_pass_and_are_remembered_in_their_form_only(
    flash: Sim, pro: Sim, path: str, made: Any, stream: bool
) -> None:
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        fields = made(temperature=0)
        answers = [await gate.ask(fields | {"stream": stream}, path) for _ in range(2)]
        other = await gate.ask(fields | {"stream": not stream}, path)
        again = await gate.ask(fields | {"stream": stream}, path)
        found = [answer.headers["x-route-cache"] for answer in (*answers, other, again)]
        assert found == ["miss", "hit", "miss", "hit"], "the two forms do not displace each other"
        assert answers[0].data == answers[1].data
        assert answers[0].headers["content-type"] == answers[1].headers["content-type"]
        assert answers[0].headers["x-route-reason"] == "simple"
        assert len(flash.seen()) == 2


@each_front
@each_dialect
@pytest.mark.parametrize("stream", [False, True])
async def test_the_ledger_is_what_the_server_counted(flash: Sim, pro: Sim, path: str, made: Any, stream: bool) -> None:
    store = MemoryStore()
    async with gateway(policy_for(flash, pro, tiers=PRICES, triage={"speculate": "never"}), store) as gate:
        long = SIMPLE * 60  # more than one block of the KV cache
        for _ in range(2):
            assert (await gate.ask(made(long, model="flash", stream=stream), path)).status == 200
        counted = await gate.ask(message(), COUNT)
        assert counted.json()["input_tokens"] > 0
        found, seen = await booked(store, "answer"), flash.seen()
        assert found["requests"] == len(seen) == 2, "counting tokens is free"
        for name, key in (("prompt", "prompt_tokens"), ("cached", "cached_tokens"), ("completion", "tokens")):
            assert found[name] == sum(entry[key] for entry in seen) > 0


@each_front
@each_dialect
@pytest.mark.parametrize("fault", [{"cut_after": 3}, {"no_done": True}])
async def test_a_stream_that_breaks_off_says_so_and_is_not_remembered(
    flash: Sim, pro: Sim, path: str, made: Any, fault: JSON
) -> None:
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        flash.config(only="answer", **fault)
        for _ in range(2):
            cut = await gate.ask(made(stream=True, temperature=0), path)
            *before, last = [part for part in cut.data.split(b"\n\n") if part]
            name, data = last.split(b"\ndata: ")
            told = json.loads(data)
            assert (name, told["type"], cut.headers["x-route-cache"]) == (b"event: error", "error", "miss")
            assert told["error"]["type"] == ("api_error" if path == MESSAGES else "server_error")
            assert path == MESSAGES or (told["sequence_number"], told["code"]) == (len(before), "upstream_failed")
            assert b"event: message_stop" not in cut.data
            assert b"event: response.completed" not in cut.data


@each_front
@each_dialect
async def test_the_decision_is_told_in_the_answer_and_before_the_last_event(
    flash: Sim, pro: Sim, path: str, made: Any
) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        whole = await gate.ask(made(COMPLEX), path, x_route_explain="1")
        stream = await gate.ask(made(COMPLEX, stream=True), path, x_route_explain="1")
        *_, told, last = stream.data.removesuffix(b"\n\n").split(b"\n\n")
        assert told.startswith(b"event: route\ndata: ")
        event = json.loads(told.partition(b"data: ")[2])
        assert event["type"] == "route"
        for found in (whole.json()["route"], event["route"]):
            assert (found["tier"], found["facts"]["api"]) == ("pro", DIALECTS[path].api)
        assert last.startswith((b"event: message_stop", b"event: response."))


def test_an_event_is_never_torn_by_words_that_look_like_the_last_one() -> None:
    said = b'event: x\ndata: {"a":"\\n\\nevent: message_stop"}\n\nevent: message_stopped\ndata: {}\n\n'
    assert explained_events(said, asked(MESSAGES, message()), "m", {}) == said


# -- who may ask, and how it is refused


@each_front
async def test_a_key_may_come_as_anthropic_sends_it(flash: Sim, pro: Sim) -> None:
    key = "a-key-that-is-long-enough"
    async with gateway(policy_for(flash, pro), everyone=False, api_key=key) as gate:
        given: list[JSON] = [
            {"x_api_key": key},
            {"authorization": f"Bearer {key}"},
            {"x_api_key": "wrong"},
            {"authorization": "Bearer wrong", "x_api_key": key},
            {},
        ]
        found = [(await gate.ask(message(model="flash"), MESSAGES, **headers)).status for headers in given]
        assert found == [200, 200, 401, 401, 401], "one who shows two keys is known by the first"
        assert (await gate.get("/v1/models", x_api_key=key)).status == 200


@each_front
@pytest.mark.parametrize(
    ("path", "method", "fields", "status", "kind"),
    [
        (MESSAGES, "POST", b"no json", 400, "invalid_request_error"),
        (MESSAGES, "GET", None, 405, "invalid_request_error"),
        (MESSAGES, "POST", message(model="unheard-of"), 404, "not_found_error"),
        (COUNT, "POST", b"[]", 400, "invalid_request_error"),
        (MESSAGES, "POST", b" " * 2000, 413, "request_too_large"),
    ],
)
async def test_messages_are_refused_with_anthropics_error(
    flash: Sim, pro: Sim, path: str, method: str, fields: Any, status: int, kind: str
) -> None:
    async with gateway(policy_for(flash, pro), max_body=1500) as gate:
        answer = await gate.ask(fields, path, method)
        told = answer.json()
        assert (answer.status, told["type"], told["error"]["type"]) == (status, "error", kind)
        assert told["error"].keys() == {"type", "message"}


@each_front
async def test_a_connections_own_refusal_speaks_the_paths_dialect(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        twice = {"transfer_encoding": "chunked"}  # beside a content-length
        found = [(await gate.ask(message(), path, **twice)).json() for path in (MESSAGES, RESPONSES)]
        assert [told["error"]["type"] for told in found] == ["invalid_request_error"] * 2
        assert [told.get("type") for told in found] == ["error", None]


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Unauthorized("x"), "authentication_error"),
        (BadRequest("x"), "invalid_request_error"),
        (WrongMethod("x"), "invalid_request_error"),
        (TooSlow("x"), "invalid_request_error"),
        (Overloaded("x"), "overloaded_error"),
        (UpstreamTimeout("x"), "timeout_error"),
        (Refusal("x"), "api_error"),
    ],
)
def test_each_refusal_has_its_kind_in_anthropics_words(refusal: Refusal, kind: str) -> None:
    told = json.loads(DIALECTS[MESSAGES].answers.error(refusal))
    assert told == {"type": "error", "error": {"type": kind, "message": "x"}}


@each_front
async def test_a_servers_4xx_passes_in_its_own_words(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        answer = await gate.ask(message(model="flash", temperature=-5), MESSAGES)
        assert (answer.status, answer.json()["error"]["type"]) == (400, "BadRequestError")


@pytest.mark.parametrize(("path", "said"), [(CHAT, body()), (MESSAGES, message()), (RESPONSES, response())])
def test_no_number_takes_a_hundred_times_as_long_to_read_as_another(path: str, said: JSON) -> None:
    def seconds(number: str) -> float:
        numbers = f"[{','.join([number] * 2000)}]"
        text = json.dumps({**said, "metadata": {"x": 0}, "chat_template_kwargs": {"thinking": 0}})
        data = text.replace(": 0}", f": {numbers}}}").encode()
        started = time.thread_time()
        whole, known = read(path, data)
        question(ChatRequest("t", ANN, path, whole, known, {}, 0.0), POLICY)
        return time.thread_time() - started

    assert min(seconds("1e300") for _ in range(5)) < 10 * min(seconds("1.5") for _ in range(5))
