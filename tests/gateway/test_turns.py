"""Which conversation a request belongs to, which turn of it, and what of it is judged."""

import json
from typing import Any

import pytest

from gateway.dialects import read
from gateway.policy import Policy, load_policy
from gateway.turns import MOST, SessionKeys, continues, conversation, judged_part, session_keys
from gateway.types import Caller, ChatRequest
from tests.gateway.serving import ANN, asked, body
from tests.tiers import JSON

TEXT = """\
schema: 1
tiers: {flash: {model: m/flash, replicas: ["http://h"]}}
sessions: {}
rules: [{id: all, route: flash}]
"""
SESSIONS = load_policy(TEXT, {})
CALL = {"id": "a", "type": "function", "function": {"name": "run", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "ok"}


def names(policy: Policy, headers: JSON | None = None, caller: Caller = ANN, **fields: Any) -> SessionKeys | None:
    return session_keys(asked(body(**fields), headers=headers or {}, caller=caller), policy)


def test_a_conversation_is_named_by_header_then_metadata_then_prefix_and_per_caller() -> None:
    header, told = {"x-session-id": "7"}, {"session_id": "7"}
    assert len({names(SESSIONS), names(SESSIONS, header), names(SESSIONS, metadata=told)}) == 3
    assert names(SESSIONS, header, metadata=told) == names(SESSIONS, header, text="Something else entirely?")
    assert names(SESSIONS, header) != names(SESSIONS, header, caller=Caller("ann", "ann", "usual", "another salt"))
    assert names(SESSIONS, metadata={"session_id": 7}) == names(SESSIONS, metadata=told)
    assert names(SESSIONS, metadata={"session_id": ["7"]}) == names(SESSIONS)


SYSTEM: JSON = {"role": "system", "content": "You are careful. " * 1000}
USER: JSON = {"role": "user", "content": "Fix it."}
DONE: JSON = {"role": "assistant", "content": "Done."}
NOTE = {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>\n"}


def keys(*messages: JSON) -> SessionKeys:
    found = names(SESSIONS, messages=list(messages))
    assert found
    return found


def test_without_an_id_a_conversation_is_found_by_all_that_its_user_said_before_the_turn() -> None:
    begin = (SYSTEM, USER)
    first, other = keys(*begin), keys(SYSTEM, {"role": "user", "content": "Fix it!"})
    assert first.known is None
    assert first.kept != other.kept
    step = keys(*begin, {"role": "assistant", "tool_calls": [CALL]}, RESULT, {"role": "user", "content": [NOTE]})
    assert step == SessionKeys(first.kept, first.kept)
    second = keys(*begin, DONE, {"role": "user", "content": "yes, commit it"})
    assert second.known == first.kept != second.kept
    third = keys(*begin, DONE, {"role": "user", "content": "yes, commit it"}, DONE, USER)
    assert third.known == second.kept
    assert keys({**SYSTEM, "content": "Be brief."}, USER).kept != first.kept


@pytest.mark.parametrize(
    "begin",
    [
        [SYSTEM, {"role": "assistant", "content": "Hello! How can I help?"}],
        [SYSTEM, {"role": "user", "content": "Here are the files."}, {"role": "assistant", "content": "Got it."}],
        [{"role": "user", "content": "2 + 2"}, DONE, {"role": "user", "content": "3 + 3"}, DONE],
    ],
    ids=["a greeting", "an agent's own words", "examples"],
)
def test_conversations_that_begin_alike_part_with_their_users_first_word(begin: list[JSON]) -> None:
    one, other = (keys(*begin, {"role": "user", "content": text}) for text in ("Prove it.", "Say hi."))
    assert one.known == other.known
    assert (one.known is None) == all(message["role"] != "user" for message in begin)
    assert len({one.known, one.kept, other.kept}) == 3
    assert keys(*begin, {"role": "user", "content": "Prove it."}, DONE, USER).known == one.kept


def test_a_greeting_is_not_all_that_names_a_conversation_in_records() -> None:
    greeting: JSON = {"role": "assistant", "content": "Hello! How can I help?"}
    told = [[SYSTEM, greeting, *more] for more in ([USER], [USER, DONE, USER], [{"role": "user", "content": "Hi."}])]
    first, later, other = (conversation(asked(body(messages=messages)), SESSIONS) for messages in told)
    assert first == later != other != ""


def marked(text: str, **more: Any) -> JSON:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral", **more}}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["close", "spaced"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
def test_a_marker_that_moves_leaves_the_question_as_it_was(path: str, separators: tuple[str, str]) -> None:
    """As Claude Code has them: on the last text, which it later sends as a string, and then on the tool's result."""
    text = 'Say "cache_control": {"a": 1}, \\ and "content":[{"type":"text","text":"x"}].'
    system = {"system": [marked("Be brief.")]} if path == "/v1/messages" else {}
    start = [SYSTEM] if not system else []
    told = {"role": "user", "content": [{**TOLD, "cache_control": None}]} if system else RESULT
    begin = [{"role": "user", "content": [NOTE, marked("Look.", ttl="1h")]}, DONE]
    later = [{"role": "user", "content": [NOTE, {"type": "text", "text": "Look.", "cache_control": None}]}, DONE]
    turn = [*start, *begin, {"role": "user", "content": [marked(text)]}]
    step = [*start, *later, {"role": "user", "content": text}, USED if system else DONE, told]
    parts = []
    for messages in (turn, [*step, {"role": "user", "content": [marked(NOTE["text"])]}]):
        data = json.dumps({**system, "messages": messages, "max_tokens": 9}, separators=separators).encode()
        parts.append(judged_part(ChatRequest("t", ANN, path, *read(path, data), {}, 0.0), SESSIONS))
    assert parts[0] == parts[1]
    assert json.dumps(text).encode() in parts[0]
    assert (b"Be brief." if system else b"You are careful.") in parts[0]
    assert json.loads(parts[0][parts[0].index(b'[{"role') :])[-1] == {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ({"role": "user", "content": "Fix it.", "cache_control": {}}, USER),
        ({"role": "user", "content": [{**NOTE, "cache_control": {}}, NOTE]}, {"role": "user", "content": [NOTE, NOTE]}),
        *(
            ({"role": "user", "content": [{**alone, "cache_control": {}}]}, {"role": "user", "content": [alone]})
            for alone in ({**NOTE, "citations": []}, {"type": "image_url", "image_url": {"url": "data:,"}})
        ),
        ({"role": "tool", "content": None, "cache_control": {}}, {"role": "tool", "content": None}),
    ],
)
def test_without_its_markers_a_message_is_as_it_was(marked: JSON, plain: JSON) -> None:
    noted: JSON = {"role": "user", "content": [NOTE, NOTE]}
    assert json.loads(judged_part(asked({"messages": [marked, noted, USER]}), SESSIONS)) == [plain, noted, USER]


def test_a_conversation_of_very_many_pieces_keeps_its_markers() -> None:
    many: JSON = {"role": "user", "content": [{"type": "text"}] * MOST}
    assert b"cache_control" not in judged_part(asked({"messages": [{**many, "cache_control": None}]}), SESSIONS)
    more: JSON = {"role": "user", "content": [NOTE], "cache_control": None}
    assert b"cache_control" in judged_part(asked({"messages": [many, more]}), SESSIONS)
    one = {"role": "user", "content": [marked("Fix it.")]}
    assert b"cache_control" not in judged_part(asked({"messages": [one]}), SESSIONS)


def test_who_asks_about_markers_is_asked_about_in_its_own_bytes() -> None:
    text = "What is cache_control?"
    assert judged_part(on("/v1/responses", {"input": text}), SESSIONS) == json.dumps(text).encode()


def test_a_request_may_stand_outside_of_any_conversation() -> None:
    assert names(SESSIONS, {"x-session-id": "7"}, metadata={"session": "none"}) is None
    headers_only = load_policy(TEXT.replace("{}", "{key: [header:X-Session-Id]}"), {})
    assert names(headers_only) is None
    assert names(headers_only, {"x-session-id": "7"})
    text = asked({"prompt": "x"}, "/v1/completions")
    assert (session_keys(text, SESSIONS), continues(text.fields)) == (None, False)
    assert session_keys(asked({"input": "x"}, "/v1/embeddings", headers={"x-session-id": "7"}), SESSIONS) is None


@pytest.mark.parametrize(
    "after", [[], [{"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT], [{"role": "assistant"}]]
)
def test_what_is_judged_ends_with_the_users_turn(after: list[JSON]) -> None:
    turn = [{"role": "system", "content": "é"}, {"role": "user", "content": "Fix it.", "odd": 1.5}]
    request = asked({"messages": [*turn, *after]})
    assert judged_part(request, SESSIONS) == json.dumps(turn).encode()
    by_request = load_policy(TEXT + "triage: {tier: flash, unit: request}\n", {})
    assert judged_part(request, by_request) == request.body.raw("messages")


def test_a_user_who_repeats_a_message_is_judged_with_its_last_one_and_what_stands_behind_it() -> None:
    again = {"role": "user", "content": "Go on."}
    talk: list[JSON] = [again, {"role": "assistant", "content": "Done."}, again]
    assert judged_part(asked({"messages": [*talk, RESULT]}), SESSIONS) == json.dumps(talk).encode()
    told: list[JSON] = [*talk, {"role": "system", "content": "Be brief."}]
    assert judged_part(asked({"messages": told}), SESSIONS) == json.dumps(told).encode()


def test_an_instruction_behind_a_tools_result_is_no_turn_of_the_users() -> None:
    talk: list[JSON] = [{"role": "user", "content": "Fix it."}, RESULT]
    for role, goes_on in (("system", True), ("developer", True), ("user", False)):
        request = asked(body(messages=[*talk, {"role": role, "content": "Be brief."}]))
        assert continues(request.fields) == goes_on


ASKED: JSON = {"role": "user", "content": [{"type": "text", "text": "Fix it."}]}
REMIND: JSON = {"role": "system", "content": "These agents can be asked: ..."}
USED: JSON = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "run", "input": {}}]}
TOLD: JSON = {"type": "tool_result", "tool_use_id": "a", "content": "ok"}
CALLED: JSON = {"type": "function_call", "call_id": "a", "name": "run", "arguments": "{}"}
CAME: JSON = {"type": "function_call_output", "call_id": "a", "output": "ok"}
# As Claude Code and Codex go on: what opens the request, the user's turn, and what came of it.
LOOP: JSON = {
    "/v1/messages": (
        {"system": [{"type": "text", "text": "Be brief.", "odd": [ASKED, REMIND]}]},
        [ASKED, REMIND],
        [USED, {"role": "user", "content": [TOLD, TOLD]}, REMIND],
    ),
    "/v1/responses": (
        {"instructions": "Be brief."},
        [{"role": "user", "content": "<environment>"}, {"type": "message", "role": "user", "content": "Fix it."}],
        [{"type": "reasoning", "summary": []}, CALLED, CAME],
    ),
}


@pytest.mark.parametrize("path", LOOP)
def test_a_turn_of_other_dialects_is_judged_once_not_each_of_its_tool_results(path: str) -> None:
    start, turn, rest = LOOP[path]
    name = "messages" if path == "/v1/messages" else "input"
    said = (turn, turn + rest, turn + rest * 2)
    first, *later = (on(path, {**start, name: turns}) for turns in said)
    new = session_keys(first, SESSIONS)
    assert new
    assert {session_keys(one, SESSIONS) for one in later} == {SessionKeys(new.kept, new.kept)}
    assert (continues(first.fields), [continues(one.fields) for one in later]) == (False, [True, True])
    assert [judged_part(one, SESSIONS) for one in later] == [judged_part(first, SESSIONS)] * 2
    assert judged_part(first, SESSIONS) == "\n".join(map(json.dumps, (*start.values(), turn))).encode()
    by_request = load_policy(TEXT + "triage: {tier: flash, unit: request}\n", {})
    assert json.dumps(turn + rest)[1:-1].encode() in judged_part(later[0], by_request)


def test_a_word_of_the_users_beside_a_tools_result_begins_a_turn() -> None:
    turns = [
        {"role": "user", "content": "Fix it."},
        USED,
        {"role": "user", "content": [TOLD, {"type": "text", "text": "No, stop."}]},
    ]
    first, last = (on("/v1/messages", {"messages": said}) for said in (turns, [*turns, *LOOP["/v1/messages"][2]]))
    assert (continues(first.fields), continues(last.fields)) == (False, True)
    assert judged_part(last, SESSIONS) == judged_part(first, SESSIONS) == json.dumps(turns).encode()


def test_where_no_user_speaks_the_whole_is_judged() -> None:
    assert judged_part(on("/v1/messages", {"messages": [USED]}), SESSIONS) == json.dumps([USED]).encode()


def on(path: str, fields: JSON) -> ChatRequest:
    return ChatRequest("t", ANN, path, *read(path, json.dumps({**fields, "temperature": 0}).encode()), {}, 0.0)
