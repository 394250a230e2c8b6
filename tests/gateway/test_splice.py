"""What a model server gets of a caller's body: declared changes, and every other byte as it was sent."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import splice
from gateway.body import Body
from gateway.dialects import CHAT, DIALECTS, LENGTHS, TEXT
from gateway.dialects import read as in_dialect
from gateway.errors import BadRequest
from gateway.fields import read
from gateway.policy import Plan, Tier, load_policy
from gateway.splice import PRIVILEGED, changes, plain, refuse_links, salt, stripped
from gateway.types import Caller, ChatRequest

FLASH = Tier(model="org/Flash", replicas=("http://h",))
HOSTED = Tier(model="flash", replicas=("http://h",), engine="openai")
PLAN = Plan()
ANN, BOB = Caller("1", "ann", "p", "salt-of-ann"), Caller("2", "bob", "p", "salt-of-bob")
TALK = '"messages": [ {"role":"user", "content":"\\u00e9 \\ud83d\\ude00",  "x": 1.0} ]'


def asked(text: str, path: str = CHAT, caller: Caller = ANN) -> ChatRequest:
    body, fields = read(text.encode())
    return ChatRequest("r", caller, path, body, fields, {}, 0.0)


def sent(text: str, tier: Tier = HOSTED, plan: Plan = PLAN, path: str = CHAT) -> dict[str, Any]:
    request = asked(text, path)
    found: dict[str, Any] = json.loads(request.body.edit(changes(request, tier, plan)))
    return found


def defaults(engine: str = "openai", **values: Any) -> Tier:
    return Tier(model="m", replicas=("http://h",), engine="vllm" if engine == "vllm" else "openai", set=values)


def test_nothing_but_the_declared_members_changes_a_byte() -> None:
    text = (
        f'{{ "model" : "auto", {TALK} ,\n"seed":1e3, "big":18446744073709551615, "top_p": -0.0,"u":{{"a":1,"a":2}} }}'
    )
    request = asked(text)
    assert request.body.edit(changes(request, HOSTED, PLAN)) == text.replace('"auto"', '"flash"').encode()
    edited = Body(request.body.edit(changes(request, FLASH, PLAN)))
    assert set(edited.members) - set(request.body.members) == {"cache_salt"}
    for name in request.body.members.keys() - {"model"}:
        assert edited.raw(name) == request.body.raw(name)


NAMES = st.sampled_from([*PRIVILEGED, "model", "stream_options", "store", "top_p", "max_tokens", "seed", "x", "é\n"])
OURS = {"model", "cache_salt", "chat_template_kwargs", "stream_options", "store"}
SPELLED = st.sampled_from(
    [" 1", "1.0", "-0.0 ", "1e3", '"\\u00e9"', "[ ]", '{"a":1,"a":2}', "null", "18446744073709551615"]
)


@given(st.sampled_from(list(DIALECTS)), st.dictionaries(NAMES, SPELLED), st.sets(NAMES), st.booleans())
def test_whatever_is_sent_in_any_dialect_only_declared_members_differ(
    path: str, members: dict[str, str], free: set[str], stream: bool
) -> None:
    prompt = DIALECTS[path].prompt[-1]
    turns = '[{"role" : "user","content":"x"}]' if prompt == "messages" else '"x"'
    shown = {**members, prompt: turns, "stream": str(stream).lower(), "metadata": "{}"}
    shown = {name: value for name, value in shown.items() if name not in DIALECTS[path].foreign}
    try:
        body, fields = in_dialect(
            path, ("{" + ",".join(f"{json.dumps(k)}:{v}" for k, v in shown.items()) + "}").encode()
        )
        request = ChatRequest("r", ANN, path, body, fields, {}, 0.0)
        plan, tier = Plan(fields=tuple(free)), defaults("vllm", top_p=0.5, max_tokens=7)
        after = Body(body.edit(changes(request, tier, plan)))
    except BadRequest:
        return
    assert after.raw("model") == b'"m"'
    for name in shown.keys() - OURS:
        withheld = name in PRIVILEGED and name not in free
        set_by_tier = name in tier.set and body.raw(name) is None and DIALECTS[path].work == "answer"
        assert set_by_tier or after.raw(name) == (None if withheld else body.raw(name))
    added = set(after.members) - set(body.members) - OURS
    assert added <= {"top_p", "max_tokens", "max_output_tokens"}


POLICY = load_policy(
    """\
schema: 1
tiers:
  flash:
    model: m
    replicas: ["http://h"]
    set: {top_p: 0.5, max_tokens: 7, chat_template_kwargs: {thinking: false, x: 1}}
  hosted:
    model: h
    replicas: ["http://h"]
    engine: openai
    set: {logit_bias: {"1": 2}, cache_salt: "100 %"}
  bare: {model: b, replicas: ["http://h"]}
rules: [{id: all, route: flash}]
callers:
  default: {plan: p}
  plans: {p: {}, free: {fields: [priority, chat_template_kwargs, min_tokens]}}
""",
    {},
)
SAID = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just('"auto"'),
        "stream": st.sampled_from(["true", "false", "null"]),
        "stream_options": st.sampled_from(
            [
                '{"include_usage":true}',
                '{"include_usage": true}',
                '{"include_usage":false,"include_usage":true}',
                '{"include_usage":false,"x":1}',
                "{}",
                "null",
            ]
        ),
        "cache_salt": st.sampled_from(['"mine"', "null"]),
        "chat_template_kwargs": st.sampled_from(['{"thinking":true}', '{"x":2}', '{"x":2,"x":3}', "{}", "null"]),
        "reasoning_effort": st.just('"high"'),
        "priority": st.just("1"),
        "min_tokens": st.just("null"),
        "top_p": st.just("1"),
        "max_output_tokens": st.just("9"),
        "max_completion_tokens": st.sampled_from(["9", "null"]),
        "store": st.just("true"),
        "logit_bias": st.just('{"2":1}'),
        "seed": st.just("1e3"),
    },
)


@given(st.sampled_from(list(DIALECTS)), SAID, st.sampled_from(["p", "free"]))
def test_what_was_worked_out_once_is_what_each_request_alone_would_come_to(
    path: str, members: dict[str, str], plan: str
) -> None:
    prompt = DIALECTS[path].prompt[-1]
    turns = '[{"role" : "user","content":"x"}]' if prompt == "messages" else '"x"'
    said = {prompt: turns} | {name: value for name, value in members.items() if name not in DIALECTS[path].foreign}
    text = "{" + ",".join(f'"{name}":{value}' for name, value in said.items()) + "}"
    body, fields = in_dialect(path, text.encode())
    request = ChatRequest("r", Caller("1", "ann", plan, 'salt "of" ann'), path, body, fields, {}, 0.0)
    for name, tier in POLICY.tiers.items():
        try:
            alone = changes(request, tier, POLICY.callers.plans[plan])
        except BadRequest as refusal:
            with pytest.raises(BadRequest, match=re.escape(refusal.message)):
                splice.body_for(request, name, POLICY)
        else:
            assert splice.body_for(request, name, POLICY) == body.edit(alone)


def test_a_request_that_sets_nothing_of_ours_is_plain_and_so_is_a_stream_that_asks_for_its_usage() -> None:
    for more in ("", ',"stream":true', ',"stream":true,"stream_options":{"include_usage":true}', ',"seed":1'):
        request = asked(f'{{"model":"auto",{TALK}{more}}}')
        assert plain(request, "flash", POLICY) is not None
    theirs = (',"stream":true,"stream_options":{}', ',"cache_salt":"x"', ',"top_p":null', ',"priority":1')
    for more in (*theirs, ',"max_completion_tokens":9'):
        request = asked(f'{{"model":"auto",{TALK}{more}}}')
        assert plain(request, "flash", POLICY) is None
    request = asked(f'{{"model":"auto",{TALK},"chat_template_kwargs":{{"x":1}}}}')
    assert [plain(request, name, POLICY) for name in POLICY.tiers] == [None] * len(POLICY.tiers)


def test_the_model_is_the_tiers_even_when_none_was_named() -> None:
    assert sent("{" + TALK + "}")["model"] == "flash"
    assert sent('{"m\\u006fdel":"x"}') == {"model": "flash"}


@pytest.mark.parametrize("name", PRIVILEGED)
def test_a_privileged_field_goes_no_further_unless_the_plan_says_so(name: str) -> None:
    text = f'{{"{name}": -999, "x": 1}}'
    assert sent(text) == {"x": 1, "model": "flash"}
    assert sent(f'{{"\\u{ord(name[0]):04x}{name[1:]}": 1}}') == {"model": "flash"}
    assert stripped(asked(text), PLAN) == [name]
    free = Plan(fields=(name,))
    assert sent(text, plan=free)[name] == -999
    assert stripped(asked(text), free) == []


@pytest.mark.parametrize(
    "field",
    [
        '"n_predict": 400',  # beats max_tokens
        '"n_cmpl": 4',  # beats n
        '"generation_config": "{\\"num_return_sequences\\": 9}"',
        '"echo": true',  # prompt_logprobs by another name
        '"include_reasoning": false',  # tokens without events
        '"stream_reasoning": false',
        '"repetition_detection": {"min_pattern_size": 4000, "max_pattern_size": 1000000, "min_count": 2}',
        '"stop_regex": "(a+)+$"',
        '"repeat_last_n": 1000000000',
        '"grammar_triggers": [{"type": 99, "value": "x"}]',
        '"id_slot": 0',
        '"lora": [{"id": 0, "scale": 0}]',
        '"input_ids": [1, 2, 3]',  # read in place of the messages
        '"processor": "somebody/else"',
        '"service_tier": "priority"',
        '"web_search_options": {}',
        '"enable_search": true, "search_options": {"forced_search": true}',  # DashScope's
        '"search_parameters": {"mode": "on"}',  # xAI's
        '"store": true',  # in the operator's account
        '"fallbacks": ["dear/model"], "preset": "another"',
        '"models": ["dear/model"], "provider": {"only": ["nobody"]}, "plugins": [{"id": "web"}]',
    ],
)
def test_nothing_asks_a_server_for_more_than_is_held_counted_and_paid(field: str) -> None:
    said = '{"model": "auto", "n": 1, "max_tokens": 1, "stop": ["x"], "logprobs": true}'
    assert sent(said.replace("}", f", {field}}}")) == sent(said)


def test_a_callers_privileged_field_does_not_displace_the_tiers_own() -> None:
    tier = defaults(priority=5)
    assert sent('{"priority": -999}', tier)["priority"] == 5
    assert sent('{"priority": -999}', tier, Plan(fields=("priority",)))["priority"] == -999


def test_a_tiers_defaults_stand_under_the_callers_values() -> None:
    tier = defaults(temperature=0.6, thinking={"type": "disabled", "budget": 7}, stop=["x"])
    assert sent('{"temperature": null}', tier)["temperature"] == 0.6
    assert sent('{"temperature": 1.0}', tier)["temperature"] == 1.0
    assert sent("{}", tier)["thinking"] == {"type": "disabled", "budget": 7}
    assert sent('{"thinking": {"type": "enabled"}}', tier)["thinking"] == {"type": "enabled", "budget": 7}
    assert sent('{"thinking": true, "stop": []}', tier) | {"model": 0} == {
        "thinking": True, "stop": [], "temperature": 0.6, "model": 0,
    }  # fmt: skip
    for path in ("/v1/embeddings", "/v1/messages/count_tokens"):
        assert sent("{}", tier, path=path) == {"model": "m"}, "nothing is drawn there"
    request = asked('{"thinking": { "type" : 1.0,"x":1e2 } }')
    assert changes(request, tier, PLAN)["thinking"] == b'{"budget":7, "type" : 1.0,"x":1e2 }'


@pytest.mark.parametrize(("name", "other"), [LENGTHS, LENGTHS[::-1]])
def test_a_caller_who_says_how_long_an_answer_may_be_has_said_it_by_either_name(name: str, other: str) -> None:
    values: dict[str, Any] = {name: 20_000}
    tier = defaults(**values)
    assert sent(f'{{"{other}": 7}}', tier) == {other: 7, "model": "m"}, "of both some servers take the longer, or none"
    assert sent(f'{{"{other}": null}}', tier)[name] == 20_000
    assert sent("{}", tier, path=TEXT) == {"max_tokens": 20_000, "model": "m"}, "text has one name for it"


def test_a_stream_is_asked_to_count_and_nothing_else_is() -> None:
    assert sent('{"stream": true}')["stream_options"] == {"include_usage": True}
    assert sent('{"stream": true, "stream_options": null}')["stream_options"] == {"include_usage": True}
    for text in ("{}", '{"stream": false}', '{"stream": null}'):
        assert "stream_options" not in sent(text)
    request = asked('{"stream":true,"stream_options":{ "include_usage" : false, "x": 1.0 }}')
    assert changes(request, HOSTED, PLAN)["stream_options"] == b'{ "include_usage" : true, "x": 1.0 }'


def test_a_key_that_comes_twice_inside_an_edited_member_is_refused() -> None:
    texts = {
        "stream_options.a": '{"stream":true,"stream_options":{"a":1,"a":2}}',
        "chat_template_kwargs.thinking": '{"chat_template_kwargs":{"thinking":true,"thinking":false}}',
        "thinking.x": '{"thinking":{"x":1,"x":2}}',
    }
    for param, text in texts.items():
        with pytest.raises(BadRequest) as refusal:
            sent(text, defaults(thinking={"type": "disabled"}))
        assert refusal.value.param == param


def test_template_arguments_are_the_permitted_ones_over_the_tiers() -> None:
    tier = defaults(engine="vllm", chat_template_kwargs={"thinking": False, "enable_thinking": False})

    def kwargs(own: str, plan: Plan = PLAN, path: str = CHAT, more: str = "") -> Any:
        return sent(f'{{"chat_template_kwargs": {own}{more}}}', tier, plan, path).get("chat_template_kwargs")

    assert kwargs("null") == {"thinking": False, "enable_thinking": False}
    assert kwargs('{"thinking": true}') == {"thinking": True, "enable_thinking": False}
    assert kwargs('{"tokenize": true}') == {"thinking": False, "enable_thinking": False}
    assert kwargs('{"tokenize": true}', Plan(fields=("chat_template_kwargs",)))["tokenize"] is True
    assert kwargs('{"tokenize": true}', path="/v1/completions") is None
    assert kwargs('{"thinking": true}', path="/v1/completions") == {"thinking": True}
    assert kwargs("{}", more=', "reasoning_effort": "high"') == {}
    assert kwargs("null", more=', "reasoning_effort": "high"') is None
    assert kwargs('{"tokenize": 1}', more=', "reasoning_effort": "high"') is None
    assert kwargs('{"tokenize": 1, "thinking": true}', more=', "reasoning_effort": "high"') == {"thinking": True}
    assert sent('{"chat_template_kwargs": {"tokenize": true}}') == {"model": "flash"}
    own = defaults(chat_template_kwargs={"tokenize": False})
    assert sent('{"chat_template_kwargs": {"tokenize": true}}', own)["chat_template_kwargs"] == {"tokenize": False}
    assert stripped(asked('{"chat_template_kwargs": {"a\\r\\nb": 1}}'), PLAN) == ["chat_template_kwargs"]
    assert stripped(asked('{"chat_template_kwargs": {"thinking": true}}'), PLAN) == []


def test_the_cache_salt_is_the_callers_own_and_cannot_be_anothers() -> None:
    def salted(text: str, caller: Caller) -> str:
        found = json.loads(changes(asked(text, caller=caller), FLASH, PLAN)["cache_salt"] or b"")
        assert isinstance(found, str)
        return found

    assert salted("{}", ANN) == "salt-of-ann"
    salts = {
        salted(text, caller)
        for text in ("{}", '{"cache_salt":"salt-of-ann"}', '{"cache_salt":"x"}')
        for caller in (ANN, BOB)
    }
    assert len(salts) == 6
    assert salt(ANN, "x") == salt(ANN, "x")
    assert all(0 < len(one) <= 1024 for one in (salt(ANN, ""), salt(ANN, "\ud800"), salt(ANN, "x" * 9999)))
    assert "cache_salt" not in sent("{}")


def with_piece(piece: str) -> ChatRequest:
    pieces = f'[{{"type":"text"}},{piece}]'
    return asked(f'{{"messages":[{{"role":"user","content":"a"}},{{"role":"user","content":{pieces}}}]}}')


@pytest.mark.parametrize(
    "piece",
    [
        '{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}',
        '{"type":"image_url","image_url":null,"uuid":"another-callers"}',
        '{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"},"uuid":7}',
        '{"type":"image_url","image_url":{"url":"data:image/png;base64,AA","content_hash":"another-callers"}}',
        '{"type":"image_url","image_url":{"content_hash":"another-callers"}}',
        '{"type":"prompt_embeds","data":"AA"}',
        '{"type":"image_url","image_url":"file:///etc/passwd"}',
        '{"type":"video_url","image_url":"data:x","video_url":{"url":"https://h"}}',
        '{"type":"audio_url","image_url":null,"audio_url":{"url":"//h"}}',
        '{"type":"text","text":"x","image_url":{"url":" data:x"}}',
        '{"type":"input_image","image_url":"\\u0068ttp://h"}',
        '{"type":"image_url","image_url":{"url":"data:x","url":"http://h"}}',
        '{"type":"image_url","image_url":{"url":""}}',
    ],
)
def test_media_by_link_are_refused_wherever_the_link_stands(piece: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        refuse_links(with_piece(piece))
    assert refusal.value.param == "messages[1].content[1]"


def test_tools_of_a_message_are_refused_as_sglang_adds_them_to_the_request_s() -> None:
    said = '{"messages":[{"role":"user","content":"a"},{"role":"System","content":"b","tools":%s}]}'
    with pytest.raises(BadRequest) as refusal:
        refuse_links(asked(said % '[{"type":"function","function":{"name":"f"}}]'))
    assert refusal.value.param == "messages[1].tools"
    for none in ("[]", "null"):
        refuse_links(asked(said % none))


@pytest.mark.parametrize(
    "piece",
    [
        '{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}',
        '{"type":"image_url","image_url":"data:image/png;base64,AA","video_url":null}',
        '{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}}',
        '{"type":"text","text":"see http://h"}',
    ],
)
def test_media_that_come_along_pass(piece: str) -> None:
    refuse_links(with_piece(piece))
    refuse_links(asked('{"prompt":"http://h"}', path="/v1/completions"))
