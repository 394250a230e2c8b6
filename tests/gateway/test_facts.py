"""What rules may look at: names, wishes, sizes, needs and signals; never the words themselves."""

import json
import time
from typing import Any

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from gateway.errors import BadRequest, NotFound
from gateway.facts import SCAN, observe
from gateway.fields import read
from gateway.policy import load_policy
from gateway.types import Caller, ChatRequest, Facts, Own, Session, Standing

POLICY = load_policy(
    """\
schema: 1
tiers:
  flash: {model: deepseek-ai/DeepSeek-V4-Flash, replicas: ["http://h"]}
  think: {extends: flash}
  pro: {model: deepseek-ai/DeepSeek-V4-Pro, replicas: ["http://h"]}
signals: {sql: '(?i)\\bselect\\b', unused: x}
aliases: {gpt-4o: auto, gpt-4o-mini: "auto:fast", o3: pro, Claude-*: auto, claude-opus-*: pro, claude-opus-1: think}
rules:
  - {id: a, when: {signals: [sql], header: {X-Agent-Phase: plan}}, route: pro}
  - {id: b, route: flash}
""",
    {},
)
CALLER = Caller("id-1", "alice", "default", "salt")
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def asked(body: dict[str, Any], headers: dict[str, str] | None = None) -> ChatRequest:
    data, fields = read(json.dumps({"messages": [{"role": "user", "content": "hello"}]} | body).encode())
    return ChatRequest(
        id="r", caller=CALLER, path="/v1/chat/completions", body=data, fields=fields, headers=headers or {}, started=0.0
    )


def seen(body: dict[str, Any], headers: dict[str, str] | None = None) -> Facts:
    return observe(asked(body, headers), POLICY, {"flash": 3})


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("model", "wish"),
    [
        ("auto", None),
        ("AUTO", None),
        ("gpt-4o", None),
        ("flash", "flash"),
        ("think", "think"),
        ("deepseek-ai/DeepSeek-V4-Pro", "pro"),
        ("deepseek-v4-pro", "pro"),
        ("deepseek-v4-flash", "flash"),
        ("auto:fast", "fast"),
        ("auto:best", "best"),
        ("gpt-4o-mini", "fast"),
        ("o3", "pro"),
        ("claude-", None),
        ("Claude-haiku-4-5", None),
        ("claude-opus-4-5-20251101", "pro"),
        ("claude-opus-1", "think"),
    ],
)
def test_model_names_resolve_to_wishes(model: str, wish: str | None) -> None:
    found = seen({"model": model})
    assert (found.wish, found.wished_by) == (wish, "name" if wish else None)
    assert found.model == model


def test_a_request_without_a_model_is_auto() -> None:
    assert seen({}).model == "auto"


@pytest.mark.parametrize(
    "model",
    ["gpt-9", "gpt-4o-2024", "claude", "flash:best", "x" * 10_000, "a\x00b\r\n", "/", "auto:", "claude-" + "x" * 250],
)
def test_an_unknown_model_is_not_found(model: str) -> None:
    with pytest.raises(NotFound) as caught:
        seen({"model": model})
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert len(caught.value.message) < 300


def test_a_wish_in_the_name_goes_before_the_header_before_metadata() -> None:
    headers, metadata = {"x-route-tier": "think"}, {"metadata": {"tier": "flash"}}
    assert seen({"model": "pro", **metadata}, headers).wish == "pro"
    found = seen({"model": "auto", **metadata}, headers)
    assert (found.wish, found.wished_by) == ("think", "header")
    found = seen({"model": "auto", **metadata})
    assert (found.wish, found.wished_by) == ("flash", "metadata")


def test_a_bad_tier_in_header_or_metadata_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"x-route-tier\. Known tiers: flash, think, pro, fast, best"):
        seen({}, {"x-route-tier": "prp"})
    values: list[object] = ["prp", 3, ["pro"], {}]
    for value in values:
        with pytest.raises(BadRequest, match="flash, think, pro") as caught:
            seen({"metadata": {"tier": value}})
        assert caught.value.param == "metadata.tier"


def test_other_metadata_is_no_wish() -> None:
    assert seen({"metadata": {"user": "x"}}).wish is None


def test_characters_are_the_last_user_turn_and_turns_are_user_messages() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "a long answer"},
        {"role": "user", "content": [{"type": "text", "text": "four"}, PNG, {"type": "text", "text": "five!"}]},
        {"role": "tool", "content": "result"},
    ]
    found = seen({"messages": messages})
    assert (found.characters, found.turns) == (9, 2)


@pytest.mark.parametrize("content", [None, "", []])
def test_an_empty_turn_has_no_characters(content: Any) -> None:
    assert seen(user(content)).characters == 0


def test_context_counts_letters_and_chinese_characters_as_deepseek_does() -> None:
    assert seen(user("a" * 1000)).context == 300
    assert seen(user("\u6570" * 1000)).context == 600


def test_context_counts_tools() -> None:
    assert seen({"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 1000}}]}).context > 300


def test_needs_are_seen() -> None:
    assert seen({"tools": [{}]}).tools
    assert not seen({"tools": []}).tools
    assert seen({"response_format": {"type": "json_schema", "json_schema": {}}}).json_schema
    assert not seen({"response_format": {"type": "json_object"}}).json_schema
    assert seen(user([PNG])).vision
    assert not seen(user([{"type": "text", "text": "x"}])).vision


def test_signals_look_at_the_last_user_turn_only() -> None:
    assert seen(user("SELECT a FROM b")).signals == {"sql"}
    assert seen(user([{"type": "text", "text": "select"}])).signals == {"sql"}
    messages = [{"role": "user", "content": "select"}, {"role": "user", "content": "thanks"}]
    assert seen({"messages": messages}).signals == frozenset()


def test_signals_no_rule_names_are_not_looked_for() -> None:
    assert POLICY.watched_signals == ("sql",)


def test_signals_see_the_first_20000_characters() -> None:
    assert seen(user(" " * (SCAN - 6) + "select")).signals == {"sql"}
    assert seen(user(" " * SCAN + "select")).signals == frozenset()


def test_only_headers_that_a_rule_names_are_kept() -> None:
    headers = {"x-agent-phase": "plan", "authorization": "Bearer s", "x-other": "1"}
    assert seen({}, headers).headers == {"x-agent-phase": "plan"}


def test_the_caller_the_load_and_the_longest_answer_are_kept() -> None:
    found = seen({"max_tokens": 7})
    assert (found.caller, found.plan, found.load, found.max_tokens) == ("alice", "default", {"flash": 3}, 7)
    assert seen({"max_tokens": 7, "max_completion_tokens": 9}).max_tokens == 9


def test_each_fact_is_what_its_name_says() -> None:
    standing = Standing(0.25, "warn", "all", "share", Session("pro", "think"))
    caller = Caller("id-1", "alice", "gold", "salt", Own(may=("pro",)))
    fields = {"model": "o3", "tools": [{}], "response_format": {"type": "json_schema"}, "max_tokens": 7}
    request = replace(asked(fields | user("select")), caller=caller, chance=0.5)
    found = observe(request, POLICY, {"flash": 3}, standing, {"pro": 2})
    assert to_builtins(found) == {
        "model": "o3", "caller": "alice", "plan": "gold", "api": "chat", "wish": "pro", "wished_by": "name",
        "characters": 6, "turns": 1, "context": 2, "tools": True, "json_schema": True, "vision": False,
        "token_ids": False, "signals": ["sql"], "headers": {},
        "load": {"flash": 3}, "waiting": {"pro": 2}, "max_tokens": 7,
        "budget_used": 0.25, "budget": "warn", "budget_of": "all", "capped": "share", "may": ("pro",), "score": None,
        "measures": {}, "chance": 0.5,
        "session": {"tier": "pro", "level": "think", "age": 0.0, "turns": 1, "continues": False},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "characters", "context"),
    [("a" * 10, 10, 3), (["aaa", "bbb"], 6, 1), ([1, 2, 3], 0, 3), ([[1, 2], [3]], 0, 3)],
)
def test_a_completions_prompt_counts_like_a_turn(prompt: Any, characters: int, context: int) -> None:
    found = seen({"messages": None, "prompt": prompt})
    assert (found.characters, found.turns, found.context) == (characters, 1, context)
    assert found.token_ids == (characters == 0)


def test_a_signal_is_seen_in_a_completions_prompt_and_in_any_text_of_a_turn() -> None:
    for said in (
        {"messages": None, "prompt": "select 1"},
        user([{"type": "text", "text": t} for t in ("x", "select")]),
    ):
        assert seen(said).signals == {"sql"}


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "select"}]])
def test_a_conversation_in_which_no_user_speaks_has_no_turn(messages: Any) -> None:
    found = seen({"messages": messages})
    assert (found.characters, found.signals) == (0, frozenset())


def test_facts_hold_no_prompt_text() -> None:
    assert "xyzzy" not in repr(seen(user("xyzzy select")))


def test_observing_takes_microseconds_even_for_long_prompts() -> None:
    for text, most in (
        ("hello", 100e-6),
        ("a" * 100_000, 500e-6),
    ):  # several times the usual cost: other work runs, too
        request = asked(user(text))
        best = min(timed(request) for _ in range(50))
        assert best < most


def timed(request: ChatRequest) -> float:
    started = time.thread_time()
    observe(request, POLICY, {})
    return time.thread_time() - started


TRIAGED = "[{id: t, route: {simple: flash, complex: flash}}]"


@pytest.mark.parametrize(
    ("rules", "more", "scored"),
    [
        ("[{id: a, route: flash}]", "", False),
        ("[{id: a, when: {score: {min: 0.9}}, route: flash}, {id: b, route: flash}]", "", True),
        (TRIAGED, "", True),
        (TRIAGED, "record: {decisions: 0}", True),
        (TRIAGED, "record: {decisions: 0}\ntriage: {speculate: never}", False),
        (TRIAGED, "triage: {speculate: never}", True),
        (TRIAGED, "record: {decisions: 0}\ntriage: {speculate: never, otherwise: {error: local}}", True),
    ],
)
def test_a_request_is_scored_where_something_looks_at_its_score(rules: str, more: str, scored: bool) -> None:
    tiers = 'schema: 1\ntiers: {flash: {model: m, replicas: ["http://h"]}}'
    policy = load_policy(f"{tiers}\nrules: {rules}\n{more}", {})
    found = observe(asked({"model": "auto"}), policy, {})
    assert (found.score is not None, bool(found.measures)) == (scored, scored)
    assert found.score is None or 0 < found.score < 1
    assert observe(asked({"model": "flash"}), policy, {}).score is None
