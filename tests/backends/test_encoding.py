"""V4's prompt format, held to the public test vectors' facts and to its own round trip.

The conversations of the first and third vector are DeepSeek's (MIT, encoding/tests beside DeepSeek-V4-Flash); of their
outputs the length and the telling parts are compared. While this was written, 120,000 random conversations gave the
same text as the encoder that vLLM 0.32 ships.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.encoding import (
    ASSISTANT,
    BOS,
    DSML,
    EFFORTS,
    END_THINK,
    EOS,
    TASKS,
    THINK,
    USER,
    EncodingError,
    Message,
    encode_messages,
    parse_message_from_completion_text,
    with_tools,
)

ASKED = {"role": "user", "content": "Where is Rome?"}
SYSTEM = {"role": "system", "content": "Be brief."}
CITY = {"type": "string", "description": "The city name"}
UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "Temperature unit"}
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather for a specific location",
    "parameters": {"type": "object", "properties": {"location": CITY, "unit": UNIT}, "required": ["location"]},
}
WANTED = {
    "query": {"type": "string", "description": "Search query"},
    "num_results": {"type": "integer", "description": "Number of results to return"},
}
SEARCH = {
    "name": "search",
    "description": "Search the web for information",
    "parameters": {"type": "object", "properties": WANTED, "required": ["query"]},
}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": SEARCH}]


def call(name: str, arguments: str, call_id: str = "call_001") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content: str, call_id: str = "call_001") -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


VECTOR_1: list[Message] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What's the weather in Beijing?"},
    {
        "role": "assistant",
        "reasoning": "The user wants to know the weather in Beijing. I should use the get_weather tool.",
        "tool_calls": [call("get_weather", '{"location": "Beijing", "unit": "celsius"}')],
    },
    result('{"temperature": 22, "condition": "sunny", "humidity": 45}'),
    {
        "role": "assistant",
        "reasoning": "Got the weather data. Let me format a nice response.",
        "content": "The weather in Beijing is currently sunny with a temperature of 22°C and 45% humidity.",
    },
]
VECTOR_1_CALL = f"""

<{DSML}tool_calls>
<{DSML}invoke name="get_weather">
<{DSML}parameter name="location" string="true">Beijing</{DSML}parameter>
<{DSML}parameter name="unit" string="true">celsius</{DSML}parameter>
</{DSML}invoke>
</{DSML}tool_calls>{EOS}"""
VECTOR_2: list[Message] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "reasoning": "Greet back.", "content": "Hi there! How can I help you?"},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "reasoning": "It is Paris.", "content": "The capital of France is Paris."},
]


def test_the_first_public_vector_tools_and_a_result() -> None:
    written = encode_messages(with_tools(VECTOR_1, TOOLS), "thinking")
    assert len(written) == 2281
    assert written.startswith(f"{BOS}You are a helpful assistant.\n\n## Tools\n\nYou have access to a set of tools")
    assert f"\n\n{json.dumps(WEATHER)}\n{json.dumps(SEARCH)}\n\nYou MUST strictly follow" in written
    reasoned = "The user wants to know the weather in Beijing. I should use the get_weather tool."
    asked = f"invoke tool calls.\n{USER}What's the weather in Beijing?{ASSISTANT}{THINK}{reasoned}{END_THINK}"
    told = f'{USER}<tool_result>{{"temperature": 22, "condition": "sunny", "humidity": 45}}</tool_result>{ASSISTANT}'
    answered = f"{THINK}Got the weather data. Let me format a nice response.{END_THINK}The weather in Beijing is"
    assert asked + VECTOR_1_CALL + told + answered in written
    assert written.endswith(f"45% humidity.{EOS}")


def test_the_second_public_vector_reasoning_before_the_last_question_is_dropped() -> None:
    hello = f"{BOS}You are a helpful assistant.{USER}Hello{ASSISTANT}{END_THINK}Hi there! How can I help you?{EOS}"
    france = f"{USER}What is the capital of France?{ASSISTANT}{THINK}It is Paris.{END_THINK}"
    assert encode_messages(VECTOR_2, "thinking") == hello + france + f"The capital of France is Paris.{EOS}"
    kept = encode_messages(VECTOR_2, "thinking", drop_thinking=False)
    assert f"{ASSISTANT}{THINK}Greet back.{END_THINK}Hi there!" in kept
    assert THINK not in encode_messages(VECTOR_2, "chat", drop_thinking=False)


def test_the_third_public_vector_a_developer_asks_after_a_reminder() -> None:
    asked = "小柴胡冲剂和布洛芬能一起吃吗？\n\nCITATION FORMAT: 【{cursor_id}†L{start_line_id}(-L{end_line_id})?】"
    messages: list[Message] = [
        {"role": "system", "content": "该助手为DeepSeek，由深度求索公司创造。"},
        {"role": "latest_reminder", "content": "2026-02-21,星期六,广州,App,中文"},
        {"role": "developer", "content": asked, "tools": TOOLS[:1]},
        {"role": "assistant", "content": "", "reasoning": "r", "tool_calls": [call("search", '{"queries": "布洛芬"}')]},
        {"role": "tool", "content": "[0]"},
        {"role": "assistant", "content": "请及时就医。", "reasoning": "s", "tool_calls": []},
    ]
    written = encode_messages(messages, "thinking")
    system = f"{BOS}该助手为DeepSeek，由深度求索公司创造。"
    head = f"{system}<｜latest_reminder｜>2026-02-21,星期六,广州,App,中文{USER}{asked}\n\n## Tools"
    assert written.startswith(head)
    assert f"invoke tool calls.\n{ASSISTANT}{THINK}r{END_THINK}\n\n<{DSML}tool_calls>" in written
    assert written.endswith(f"{USER}<tool_result>[0]</tool_result>{ASSISTANT}{THINK}s{END_THINK}请及时就医。{EOS}")


def test_the_fourth_public_vector_an_action_follows_the_assistants_marker() -> None:
    messages: list[Message] = [*VECTOR_2[1:3], {**ASKED, "task": "action"}, {"role": "assistant", "content": "Search"}]
    end = f"{USER}Where is Rome?{ASSISTANT}{END_THINK}<｜action｜>Search{EOS}"
    assert encode_messages(messages, "chat").endswith(end)
    assert encode_messages(messages, "thinking").endswith(end.replace(END_THINK, THINK))


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"action"}))
def test_other_tasks_follow_the_question_itself(task: str) -> None:
    assert encode_messages([{**ASKED, "task": task}], "chat") == f"{BOS}{USER}Where is Rome?<｜{task}｜>"


def test_the_generations_have_different_words_for_an_effort() -> None:
    def head(generation: Any, effort: str | None) -> str:
        written = encode_messages([ASKED], "thinking", reasoning_effort=effort, generation=generation)
        return written.removeprefix(BOS).removesuffix(f"{USER}Where is Rome?{ASSISTANT}{THINK}")

    assert head("preview", "high") == head("preview", None) == head("0731", "low") == head("0731", None) == ""
    assert head("preview", "max") == head("0731", "high")
    assert head("0731", "high").startswith("Reasoning Effort: Absolute maximum with no shortcuts permitted.\n")
    assert head("0731", "max").startswith("Reasoning Effort: Beyond maximum — exhaustive, relentless")
    assert all(words.endswith(".\n\n") for words in EFFORTS["0731"].values() if words)
    assert (
        encode_messages([ASKED], "chat", reasoning_effort="max") == f"{BOS}{USER}Where is Rome?{ASSISTANT}{END_THINK}"
    )


def test_results_stand_in_the_order_of_their_calls_and_join_what_the_user_says_next() -> None:
    calls = [call("f", "{}", "a"), call("f", "{}", "b")]
    messages: list[Message] = [
        ASKED,
        {"role": "assistant", "tool_calls": calls},
        result("2", "b"),
        result("1", "a"),
        ASKED,
    ]
    joined = "<tool_result>1</tool_result>\n\n<tool_result>2</tool_result>\n\nWhere is Rome?"
    assert encode_messages(messages, "chat").endswith(f"{EOS}{USER}{joined}{ASSISTANT}{END_THINK}")


def test_tools_go_to_the_first_system_message_and_keep_all_reasoning() -> None:
    assert with_tools([ASKED], TOOLS)[0] == {"role": "system", "tools": TOOLS}
    assert with_tools([ASKED, SYSTEM], TOOLS)[1] == {**SYSTEM, "tools": TOOLS}
    assert with_tools([ASKED], []) == [ASKED]
    assert "Greet back." in encode_messages(with_tools(VECTOR_2, TOOLS), "thinking")


def test_a_response_format_is_told_after_the_tools() -> None:
    told = {**SYSTEM, "tools": TOOLS, "response_format": {"type": "object"}}
    form = '## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{"type": "object"}'
    assert encode_messages([told, ASKED], "chat").split(USER)[0].endswith(f"tool calls.\n\n\n{form}")


def test_a_turn_that_goes_on_has_no_end_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    begun: list[Message] = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "It is", "wo_eos": True},
    ]
    assert encode_messages(begun, "chat") == f"{BOS}{USER}one\n\ntwo{ASSISTANT}{END_THINK}It is"


@pytest.mark.parametrize(
    ("messages", "options", "said"),
    [
        ([{"role": "critic", "content": "x"}], {}, "unknown role 'critic'"),
        ([{"role": "developer"}], {}, "developer message has no content"),
        ([{**ASKED, "task": "poem"}], {}, "unknown task 'poem'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], {}, "not text, but {'type': 'image"),
        ([{"role": "user", "content": 3}], {}, "not text, but 3"),
        ([{**SYSTEM, "tools": [{"type": "function"}]}], {}, "no function with a name"),
        ([ASKED], {"reasoning_effort": "low", "generation": "preview"}, "preview with None, high, max; 0731 with"),
        ([ASKED], {"generation": "v5"}, "generation 'v5'"),
        ([ASKED], {"thinking_mode": "loud"}, "'chat' or 'thinking', not 'loud'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(messages: list[Message], options: dict[str, Any], said: str) -> None:
    with pytest.raises(EncodingError, match=said.replace("{", r"\{")):
        encode_messages(messages, **{"thinking_mode": "chat", **options})


CLOSED = f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="f">\n%s</{DSML}invoke>\n</{DSML}tool_calls>{EOS}'
ONE = f'<{DSML}parameter name="a" string="%s">%s</{DSML}parameter>\n'


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("no end", "chat", "does not end with"),
        (f"never closed{EOS}", "thinking", "not closed by </think>"),
        (f"a{THINK}b{EOS}", "chat", "<think> where text was expected"),
        (f"one{EOS}two{EOS}", "chat", "where text was expected"),
        (CLOSED % "", "chat", None),
        (CLOSED % (ONE % ("true", "x")), "chat", None),
        (CLOSED % (ONE % ("false", "x")), "chat", "parameter 'a' of f is not JSON"),
        (CLOSED % (ONE % ("true", "x") * 2), "chat", "parameter 'a' of f is there twice"),
        (CLOSED % "prose\n", "chat", "not a tool call at 'prose"),
        (CLOSED.removesuffix(EOS) % "" + f"more{EOS}", "chat", "text follows them"),
    ],
)
def test_a_completion_that_is_not_in_the_format_is_refused(text: str, mode: Any, said: str | None) -> None:
    if said is None:
        assert parse_message_from_completion_text(text, mode)["tool_calls"][0]["function"]["name"] == "f"
        return
    with pytest.raises(EncodingError, match=said):
        parse_message_from_completion_text(text, mode)


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<｜"), max_size=40)
name = st.text("abcdefghij_", min_size=1, max_size=8)
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=6,
)
calls = st.lists(st.tuples(name, st.dictionaries(name, value, max_size=3)), max_size=3)


@given(plain, plain, calls, st.sampled_from(["chat", "thinking"]))
def test_what_is_written_for_an_answer_is_read_as_that_answer(
    content: str, reasoning: str, asked: list[tuple[str, dict[str, Any]]], mode: Any
) -> None:
    answer = {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": [call(function, json.dumps(arguments)) for function, arguments in asked],
    }
    prompt = encode_messages([ASKED], mode)
    read = parse_message_from_completion_text(encode_messages([ASKED, answer], mode).removeprefix(prompt), mode)
    assert read["content"] == content
    assert read["reasoning_content"] == (reasoning if mode == "thinking" else "")
    found = [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in read["tool_calls"]]
    assert found == asked


turn = st.fixed_dictionaries({"role": st.just("user"), "content": plain}) | st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": plain, "reasoning": plain}
)


@given(st.lists(turn, max_size=4), st.lists(turn, max_size=4), st.sampled_from(["chat", "thinking"]))
def test_a_conversation_is_a_prefix_of_its_continuation(before: list[Message], after: list[Message], mode: Any) -> None:
    begun: list[Message] = [*before, ASKED, {"role": "assistant", "content": "In Italy.", "reasoning": "Easy."}]
    then: list[Message] = [ASKED, *after]
    head = encode_messages(begun, mode, drop_thinking=False)
    whole = encode_messages([*begun, *then], mode, drop_thinking=False)
    assert whole == head + encode_messages(then, mode, context=begun, drop_thinking=False)


@given(st.lists(turn, max_size=5))
def test_reasoning_that_is_dropped_changes_nothing(turns: list[Message]) -> None:
    bare = [{key: said for key, said in one.items() if key != "reasoning"} for one in turns]
    assert encode_messages([*turns, ASKED], "thinking") == encode_messages([*bare, ASKED], "thinking")


fragments = st.sampled_from(
    [BOS, EOS, THINK, END_THINK, DSML, "\n\n", "<", "</", ">\n", "invoke", "tool_calls", 'name="a"', "x"]
)


@given(
    st.lists(fragments | st.just(CLOSED % (ONE % ("true", "x"))), max_size=12), st.sampled_from(["chat", "thinking"])
)
def test_any_text_is_a_message_or_refused(parts: list[str], mode: Any) -> None:
    text = "".join(parts)
    try:
        read = parse_message_from_completion_text(text, mode)
    except EncodingError:
        return
    thought = f"{read['reasoning_content']}{END_THINK}" if mode == "thinking" else ""
    assert text.startswith(thought + read["content"])
    assert text.endswith(EOS)
