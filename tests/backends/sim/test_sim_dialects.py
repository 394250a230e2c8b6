"""Does the simulator read and answer the other dialects as vLLM does?"""

import base64
import json
import math
import struct
from typing import Any

import msgspec
import pytest

from backends.sim.dialects import as_chat, embedded
from backends.sim.protocol import ChatRequest, RequestError
from tests.backends.sim.servers import HTTP, JSON

USER: JSON = {"role": "user", "content": "hi"}
SCHEMA: JSON = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: JSON = {"name": "get_weather", "input_schema": SCHEMA}
FUNCTION: JSON = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
FORM: JSON = {"type": "json_schema", "name": "x", "schema": SCHEMA}
TOLD: JSON = {"type": "tool_result", "content": [{"type": "text", "text": "7"}, {"type": "text", "text": "°C"}]}
USED: JSON = {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Oslo"}}
CALL: JSON = {"id": "a", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
TURNS: list[JSON] = [
    {"role": "user", "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "I look."}, USED]},
    {"role": "assistant", "content": [USED]},
    {"role": "user", "content": [{"type": "text", "text": "Say it."}, TOLD]},
    {"role": "user", "content": [TOLD]},
]
CHATS: list[JSON] = [
    {"role": "user", "content": "How\nis it?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "7\n°C"},
    {"role": "user", "content": "Say it."},
    {"role": "tool", "content": "7\n°C"},
]
ITEMS: list[JSON] = [
    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "function_call", "name": "get_weather", "arguments": "{}"},
    {"type": "function_call_output", "output": "7"},
]
TOOL: JSON = {"type": "function", "name": "get_weather", "parameters": SCHEMA}
PLAIN: JSON = {"model": "m", "stream": True, "temperature": 0.5, "cache_salt": "s", "chat_template_kwargs": {"k": 1}}


def chosen(choice: Any, chat: Any) -> tuple[str, JSON, JSON]:
    """A choice of tools in a message, and in the chat that it becomes."""
    given = {"tools": [WEATHER], **({"tool_choice": choice} if choice else {})}
    return "messages", given, {"messages": [USER], "tools": [FUNCTION], "tool_choice": chat}


@pytest.mark.parametrize(
    ("path", "given", "chat"),
    [
        ("messages", PLAIN, {"messages": [USER], **PLAIN}),
        ("messages", {"messages": TURNS}, {"messages": CHATS}),
        ("messages", {"system": [{"type": "text", "text": "Be brief."}]},
         {"messages": [{"role": "system", "content": "Be brief."}, USER]}),
        ("messages", {"tool_choice": {"type": "any"}}, {"messages": [USER]}),
        chosen(None, "auto"),
        chosen({"type": "any"}, "required"),
        chosen({"type": "none"}, "none"),
        chosen({"type": "tool", "name": "get_weather"}, {"type": "function", "function": {"name": "get_weather"}}),
        ("messages", {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
         {"messages": [USER], "reasoning_effort": "none"}),
        ("messages", {"thinking": {"type": "enabled", "budget_tokens": 5}, "output_config": {"effort": "high"}},
         {"messages": [USER], "reasoning_effort": "high", "thinking_token_budget": 5}),
        ("messages", {"output_config": {"format": FORM}},
         {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": FORM}}),
        ("responses", {"input": "hi", "reasoning": {"effort": "low"}, "text": {"format": {"type": "json_object"}}},
         {"messages": [USER], "reasoning_effort": "low", "response_format": {"type": "json_object"}}),
        ("responses", {"input": ITEMS, "instructions": "Be brief.", "tools": [TOOL], "tool_choice": "required"},
         {"messages": [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": ""},
                       {"role": "tool", "content": "7"}],
          "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}),
    ],
)  # fmt: skip
def test_a_message_and_a_response_are_read_as_the_chat_that_vllm_makes_of_them(
    path: str, given: JSON, chat: JSON
) -> None:
    said: JSON = {"max_tokens": 9, "messages": [USER]} if path == "messages" else {"max_output_tokens": 9}
    whole: JSON = {"max_tokens": 9, **chat}
    assert as_chat(f"/v1/{path}", msgspec.json.encode(said | given)) == ChatRequest(**whole)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": [USER]}, "max_tokens"),
        ({"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
    ],
)
def test_what_a_message_may_not_be_is_blamed_on_its_field(given: JSON, param: str) -> None:
    with pytest.raises(RequestError) as error:
        as_chat("/v1/messages", msgspec.json.encode(given))
    assert error.value.param == param


def assembled(stream: str) -> JSON:
    """The message that a stream says, put together as Anthropic's SDKs do."""
    message: JSON = {}
    for event in stream.removesuffix("\n\n").split("\n\n"):
        kind, data = event.removeprefix("event: ").split("\ndata: ")
        told = json.loads(data)
        assert told.pop("type") == kind
        if kind == "message_start":
            message = told["message"]
        elif kind == "content_block_start":
            assert told["index"] == len(message["content"])
            assert told["content_block"].get("input", {}) == {}
            message["content"].append(told["content_block"] | {"json": ""})
        elif kind == "content_block_delta":
            grow(message["content"][told["index"]], told["delta"])
        elif kind == "content_block_stop":
            made = message["content"][told["index"]].pop("json")
            message["content"][-1] |= {"input": json.loads(made)} if made else {}
        elif kind == "message_delta":
            message |= told["delta"] | {"usage": told["usage"]}
    assert kind == "message_stop"
    return message


def grow(block: JSON, delta: JSON) -> None:
    kind = delta.pop("type")
    ((name, more),) = delta.items()
    assert kind == {"partial_json": "input_json"}.get(name, name) + "_delta"
    name = "json" if name == "partial_json" else name
    block[name] = block.get(name, "") + more


@pytest.mark.parametrize(
    ("asked", "fault", "stop", "kinds"),
    [
        ({"max_tokens": 900}, "", "end_turn", ["thinking", "text"]),
        ({"max_tokens": 9, "thinking": {"type": "disabled"}}, "", "max_tokens", ["text"]),
        ({"max_tokens": 900, "thinking": {"type": "disabled"}, "tools": [WEATHER], "tool_choice": {"type": "any"}},
         "", "tool_use", ["tool_use"]),
        ({"max_tokens": 90, "thinking": {"type": "disabled"}}, "weak=refusal", "end_turn", ["text"]),
        ({"max_tokens": 90, "thinking": {"type": "disabled"}}, "weak=filter", "refusal", ["text"]),
    ],
)  # fmt: skip
def test_a_streamed_message_says_what_the_whole_one_does(
    url: str, asked: JSON, fault: str, stop: str, kinds: list[str]
) -> None:
    said = f"{stop} {fault}: " + "What is the weather in Oslo? " * 9  # no row finds another's in the cache
    asked = {"messages": [{"role": "user", "content": said}], **asked}
    headers = {"x-sim-fault": fault} if fault else {}
    whole = HTTP.post(f"{url}/v1/messages", json=asked, headers=headers).json()
    streamed = assembled(HTTP.post(f"{url}/v1/messages", json={**asked, "stream": True}, headers=headers).text)
    used, again = whole.pop("usage"), streamed.pop("usage")
    assert whole.pop("id") != streamed.pop("id")
    assert streamed == whole
    told = whole["type"], whole["stop_reason"], [block["type"] for block in whole["content"]]
    assert told == ("message", stop, kinds)
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert tuple(used) == tuple(again) == names
    assert again["cache_read_input_tokens"] > used["cache_read_input_tokens"]
    assert sum(used.values()) == sum(again.values())
    assert used["cache_creation_input_tokens"] == 0


def test_an_embedding_is_a_unit_vector_of_its_text_in_either_encoding() -> None:
    whole = embedded(b'{"input": ["a b", "c", "a b"]}', "m")
    one, two, again = whole["data"]
    assert (whole["object"], one["object"]) == ("list", "embedding")
    assert [one["index"], two["index"], again["index"]] == [0, 1, 2]
    assert one["embedding"] == again["embedding"] != two["embedding"]
    assert math.hypot(*one["embedding"]) == pytest.approx(1)
    packed = embedded(b'{"input": "a b", "encoding_format": "base64"}', "m")
    assert struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"])) == pytest.approx(one["embedding"])
    counts = {"prompt_tokens": 2, "total_tokens": 2, "completion_tokens": 0}
    assert (packed["model"], packed["usage"]) == ("m", counts)
    assert embedded(b'{"input": [5, 6, 7]}', "m")["usage"] == counts | {"prompt_tokens": 3, "total_tokens": 3}
