"""What a request may use at most, and what it used: bounds that hold, prices that are right."""

import json
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from gateway.fields import MAX_TOKENS, read
from gateway.policy import Budget, Price, load_policy
from gateway.pricing import DEFAULT_ANSWER, TEMPLATE, TRIAGE_ASKED, bound, charged, cost, lease, lines, sizes, terms
from gateway.store import NANO, Money
from gateway.types import Bill, Caller, ChatRequest, Own, Usage
from tests.tiers import JSON

POLICY = load_policy(
    """\
schema: 1
tiers:
  flash: {model: f, replicas: ["http://h"], price: {input_per_m: 0.14, cached_input_per_m: 0.028, output_per_m: 0.28}}
  pro: {model: p, replicas: ["http://h"], price: {input_per_m: 0.435, cached_input_per_m: 0.0036, output_per_m: 0.87}}
rules: [{id: all, route: pro}]
""",
    {},
)
BOTH = ("flash", "pro")


def request(*bills: Bill, **fields: Any) -> ChatRequest:
    path = "/v1/completions" if "prompt" in fields else "/v1/chat/completions"
    body, known = read(json.dumps({"messages": [{"role": "user", "content": "word " * 50}], **fields}).encode())
    return ChatRequest("r", Caller("a", "a", "default", "s"), path, body, known, {}, 0.0, list(bills))


def size(asked: ChatRequest) -> tuple[int, int]:
    return sizes(asked, BOTH, POLICY)


def test_a_price_is_rounded_up_to_a_nano_dollar_and_cached_tokens_have_their_own() -> None:
    assert cost(Price(0.435, 0.0036, 0.87), 1000, 400, 10) == 600 * 435 + 2 * 720 + 8700
    assert cost(Price(1.0, 0.5, 2.0), 10, 4, 3) == 6000 + 2000 + 6000
    assert cost(Price(0.0001, 0.0, 0.0), 1, 0, 0) == 1


def test_a_bound_is_the_bytes_of_the_prompt_and_the_longest_answer_at_the_dearest_price() -> None:
    found = bound(request(max_tokens=100, n=3), BOTH, POLICY)
    assert (found.tier, found.first, found.completion) == ("pro", "flash", 300)
    assert found.prompt >= 250
    assert found.money == cost(POLICY.tiers["pro"].price, found.prompt, 0, 300)
    assert found.cheap == cost(POLICY.tiers["flash"].price, found.prompt, 0, 300)
    assert size(request(metadata={"note": "x" * 1000}, user="x" * 1000)) == size(request())
    two, one = (size(request(messages=None, prompt=[""] * many))[0] for many in (2, 1))
    assert two - one == TEMPLATE + len(', ""')


def test_a_caller_pays_for_the_answer_that_it_gets_and_for_nothing_else() -> None:
    counted = Usage(10, 0, 5, complete=True)
    answer, more = Bill("pro", "answer", counted), [Bill("flash", "triage", counted), Bill("flash", "draft", counted)]
    lost, void = Bill("pro", "answer", counted, lost=True), Bill("pro", "answer", counted, void=True)
    asked = request(*more, lost, void, answer)
    assert charged(asked, POLICY) == cost(POLICY.tiers["pro"].price, 10, 0, 5)
    assert charged(request(*more, lost, void), POLICY) == 0
    assert lines(asked, POLICY) == lines(request(*more, lost, structs.replace(answer, line=None)), POLICY)
    assert lines(asked, POLICY)[0] is lines(asked, POLICY)[0], "what was counted is worked out once"
    begun = Bill("pro", "answer", Usage(events=3), stream=True)
    early = charged(request(begun), POLICY)
    begun.usage = counted
    assert charged(request(begun), POLICY) == charged(asked, POLICY) < early, "an estimate is not kept"


def test_without_max_tokens_a_stated_default_is_held() -> None:
    assert bound(request(), BOTH, POLICY).completion == DEFAULT_ANSWER


@pytest.mark.parametrize(
    "given",
    [
        {"messages": None, "prompt": "a", "suffix": "x" * 1000},  # DeepSeek's own API and SGLang fill the middle
        {"chat_template_kwargs": {"reasoning_effort": "x" * 1000}},
    ],
)
def test_what_servers_put_into_a_prompt_beside_the_conversation_is_in_its_bound(given: dict[str, Any]) -> None:
    assert bound(request(**given), BOTH, POLICY).prompt > 1000


def test_without_max_tokens_what_a_tier_sets_for_it_is_held_and_is_the_estimate() -> None:
    own: list[dict[str, Any]] = [{"max_completion_tokens": 20_000}, {"max_tokens": 9, "max_completion_tokens": "x"}]
    tiers = {name: replace(tier, set=given) for (name, tier), given in zip(POLICY.tiers.items(), own, strict=True)}
    policy = replace(POLICY, tiers=tiers)
    assert [bound(request(n=2), reach, policy).completion for reach in (BOTH, ("pro",))] == [40_000, 18]
    assert bound(request(max_tokens=50), BOTH, policy).completion == 50, "the caller's own value wins"
    assert [line.completion for line in lines(request(*(Bill(name, "answer") for name in BOTH)), policy)] == [20_000, 9]
    for nothing in (0, -1, True):
        tiers["flash"] = replace(tiers["flash"], set={"max_tokens": nothing})
        assert bound(request(), ("flash",), replace(POLICY, tiers=tiers)).completion == DEFAULT_ANSWER


@pytest.mark.parametrize("given", [{"max_tokens": 7}, {"max_completion_tokens": 7}])
def test_both_names_of_the_longest_answer_count(given: dict[str, int]) -> None:
    assert bound(request(**given), BOTH, POLICY).completion == 7


def test_of_two_longest_answers_the_larger_counts_as_servers_differ_in_which_they_obey() -> None:
    assert bound(request(max_completion_tokens=1, max_tokens=5000), BOTH, POLICY).completion == 5000
    assert bound(request(max_completion_tokens=5000, max_tokens=1), BOTH, POLICY).completion == 5000


def test_each_prompt_of_a_completion_has_its_answers() -> None:
    body = {"messages": None, "max_tokens": 5}
    assert bound(request(**body, prompt=["a", "b", "c"], n=2), BOTH, POLICY).completion == 30
    assert bound(request(**body, prompt=[1, 2, 3]), BOTH, POLICY).completion == 5
    assert bound(request(**body, prompt=[]), BOTH, POLICY).completion == 5


def test_no_request_holds_more_than_a_store_can_add_up() -> None:
    most = MAX_TOKENS
    for fields in ({"n": 16}, {"messages": None, "prompt": ["a"] * 100_000, "n": 16}):
        assert bound(request(max_tokens=most, **fields), BOTH, POLICY).completion == most
        (left,) = lines(request(Bill("pro", "answer"), max_tokens=most, **fields), POLICY)
        assert left.money < 1 << 53


def test_a_complete_answer_costs_what_the_server_counted_at_its_tiers_price() -> None:
    (line,) = lines(request(Bill("pro", "answer", Usage(100, 40, 20, complete=True))), POLICY)
    assert (line.prompt, line.cached, line.completion, line.estimated) == (100, 40, 20, False)
    assert line.money == cost(POLICY.tiers["pro"].price, 100, 40, 20)


def test_an_answer_that_was_cut_is_estimated_and_never_above_its_bound() -> None:
    running = Usage(100, 40, 2, events=3)
    asked = request(Bill("pro", "answer", running, stream=True), max_tokens=5000)
    (line,) = lines(asked, POLICY)
    assert (line.estimated, line.completion) == (True, 3 * 16 + 256)
    whole = request(Bill("pro", "answer"), max_tokens=5000)
    most = bound(whole, BOTH, POLICY)
    (line,) = lines(whole, POLICY)
    assert (line.prompt, line.completion, line.money) == (most.prompt, most.completion, most.money)


def test_a_question_of_triage_that_was_not_counted_costs_its_own_size_and_not_the_answers() -> None:
    asked = request(Bill("flash", "triage"), max_tokens=5000)
    (line,) = lines(asked, POLICY)
    verdict = POLICY.triage.prompts[POLICY.triage.prompt].tokens
    assert (line.prompt, line.completion) == (size(asked)[0] + TRIAGE_ASKED, verdict)
    assert (line.kind, line.estimated, verdict < 100) == ("triage", True, True)


@pytest.mark.parametrize(("usage", "made"), [(Usage(), 7), (Usage(events=7), 0), (Usage(None, None, 7, events=1), 9)])
def test_a_dropped_draft_costs_the_answers_prompt_and_what_it_made(usage: Usage, made: int) -> None:
    answer = Bill("pro", "answer", Usage(60, 0, 20, complete=True))
    for most, completion in ((5000, 7), (3, 3)):
        draft, _ = lines(request(Bill("flash", "draft", usage, made=made), answer, max_tokens=most), POLICY)
        assert (draft.estimated, draft.prompt, draft.completion) == (True, 60, completion)


def test_of_a_draft_that_nobody_counted_the_prompts_bound_is_booked() -> None:
    asked = request(Bill("flash", "draft", made=7), Bill("pro", "answer", made=7))
    draft, taken = lines(asked, POLICY)
    assert draft.prompt == size(asked)[0], "where nobody counted"
    assert taken.completion == DEFAULT_ANSWER, "a draft that was taken is its caller's, who left"


def test_what_a_killed_process_held_returns_within_a_minute_or_after_the_longest_exchange() -> None:
    short = {name: replace(tier, timeouts=replace(tier.timeouts, total=2.0)) for name, tier in POLICY.tiers.items()}
    assert lease(POLICY) == 60.0
    assert lease(replace(POLICY, tiers=short)) == POLICY.triage.timeout + 2.0 + 2.0 + 2.0


@pytest.mark.parametrize("usage", [Usage(None, None, 20, complete=True), Usage(100, None, None, complete=True)])
def test_an_answer_of_which_the_server_counted_one_side_only_is_estimated(usage: Usage) -> None:
    asked = request(Bill("pro", "answer", usage), max_tokens=50)
    (line,) = lines(asked, POLICY)
    assert (line.prompt, line.completion, line.estimated) == (*size(asked), True)


def test_a_stream_without_a_bound_that_is_cut_costs_a_token_for_each_event_that_came() -> None:
    running = Usage(events=50_000)
    (line,) = lines(request(Bill("pro", "answer", running, stream=True)), POLICY)
    assert (line.estimated, line.completion) == (True, 50_000)
    (line,) = lines(request(Bill("pro", "answer", running, stream=True), max_tokens=100), POLICY)
    assert line.completion == 100


@pytest.mark.parametrize(("given", "completion"), [({"max_tokens": 200_000}, 80_000 + 304), ({}, 20_003)])
def test_a_cut_stream_that_brought_much_in_few_events_costs_what_was_in_them(given: JSON, completion: int) -> None:
    """As vLLM sends the arguments of a tool that DeepSeek-V4 calls (its issue 52846)."""
    running = Usage(events=3, bulk=80_000)
    (line,) = lines(request(Bill("pro", "answer", running, stream=True), **given), POLICY)
    assert (line.estimated, line.completion) == (True, completion)


def test_what_used_nothing_is_no_line_and_what_a_failed_tier_used_is_overhead() -> None:
    bills = (Bill("flash", "answer", void=True), Bill("flash", "answer", lost=True), Bill("pro", "answer"))
    assert [(line.tier, line.kind) for line in lines(request(*bills), POLICY)] == [
        ("flash", "draft"),
        ("pro", "answer"),
    ]


def test_terms_are_worked_out_once_for_a_policy_and_by_plan_and_key() -> None:
    ann, bob = Caller("ann", "ann", "default", "s"), Caller("bob", "bob", "default", "t")
    assert terms(ann, POLICY) is terms(bob, POLICY)
    own = terms(structs.replace(ann, own=Own(requests_per_minute=7)), POLICY)
    assert (own.plan.requests_per_minute, own.limits.requests_per_minute) == (7, 7)
    assert terms(ann, POLICY).limits.requests_per_minute != 7


def test_a_key_may_bring_a_budget_and_have_a_window_of_its_own_in_its_plans() -> None:
    daily = replace(POLICY.callers.plans["default"], budget=Budget(5.0, then="refuse"))
    daily_too = replace(POLICY, callers=replace(POLICY.callers, plans={"default": daily}))
    found = []
    for own in (Own(usd=100.0), Own(usd=100.0, window="month"), Own(window="7d")):
        ann = Caller("ann", "ann", "default", "s", own)
        found.append([terms(ann, policy).limits.money for policy in (POLICY, daily_too)])
    day, week, hundred = 86_400.0, 7 * 86_400.0, 100 * NANO
    assert found == [
        [Money(hundred, day, degrade=True), Money(hundred, day, degrade=False)],
        [Money(hundred, "month", degrade=True), Money(hundred, "month", degrade=False)],
        [None, Money(5 * NANO, week, degrade=False)],
    ]
