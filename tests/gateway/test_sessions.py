"""Where a conversation stays and when it moves: the arithmetic, and whole conversations over sockets."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.done import nothing
from gateway.errors import Refusal
from gateway.policy import Policy, Price, load_policy
from gateway.reply import Reply
from gateway.routing import reachable, route
from gateway.sessions import after, follow, recalling, saved
from gateway.store import MemoryStore
from gateway.turns import session_keys
from gateway.types import Ask, Decision, Facts, Held, Route, Session, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import ANN, COMPLEX, SIMPLE, Gateway, asked, body, callers, gateway
from tests.tiers import JSON, policy_for

TEXT = """\
schema: 1
tiers:
  flash: {model: m/flash, replicas: ["http://h"], price: {input_per_m: 0.14, cached_input_per_m: 0.028, output_per_m: 0.28}}
  think: {extends: flash, can: {vision: true}}
  pro: {model: m/pro, replicas: ["http://h"], price: {input_per_m: 0.435, cached_input_per_m: 0.0036, output_per_m: 0.87}}
sessions: {stay: STAY}
rules:
  - {id: sql, when: {model: sql}, route: flash}
  - {id: bands, when: {model: bands}, route: {p_complex: {"<0.3": flash, "<0.7": think, else: pro}}, explore: 0.2}
  - {id: triaged, route: {simple: flash, complex: pro}}
failover: {tiers: {flash: [pro], pro: [flash]}}
callers:
  default: {plan: gold}
  plans: {gold: {may: [pro]}, silver: {may: [think]}, batch: {}}
"""  # noqa: E501
STAY = {stay: load_policy(TEXT.replace("STAY", stay), {}) for stay in ("until_escalated", "turn", "always")}
UNTIL, TURN, ALWAYS = STAY.values()
HARD, EASY = Verdict("complex", 0.9), Verdict("simple", 0.1)
FLASH, THINK, PRO = Session("flash", "flash"), Session("think", "think"), Session("pro", "pro")
RESULT = {"role": "tool", "tool_call_id": "a", "content": "ok"}
CALL = {"id": "a", "type": "function", "function": {"name": "run", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {"type": "object"}}}]


def facts(session: Session | None, **given: Any) -> Facts:
    values: dict[str, Any] = {"model": "auto", "caller": "c", "plan": "gold", "context": 2000} | given
    return Facts(**values, session=session)


def tier(found: Facts, verdict: Verdict | None, policy: Policy) -> str:
    chosen = route(found, verdict, policy)
    assert isinstance(chosen, Route)
    return chosen.tiers[0]


def standing(session: Session | None, chosen: Route, answered: str, policy: Policy, verdict: Verdict | None) -> Session:
    return after(Decision(facts(session), verdict, chosen), answered, policy)


def test_an_escalated_conversation_stays_and_nobody_is_asked() -> None:
    chosen = route(facts(PRO), None, UNTIL)
    assert chosen == Route(("pro", "flash"), "triaged", "session")


def test_a_conversation_on_the_lower_tier_is_asked_at_each_user_turn_and_may_escalate() -> None:
    assert isinstance(route(facts(FLASH), None, UNTIL), Ask)
    assert (tier(facts(FLASH), EASY, UNTIL), tier(facts(FLASH), HARD, UNTIL)) == ("flash", "pro")


def test_a_middle_tier_is_a_floor_from_which_a_verdict_may_rise() -> None:
    found = facts(THINK, model="bands")
    assert route(found, None, UNTIL) == Ask("bands", "think")
    assert (tier(found, EASY, UNTIL), tier(found, HARD, UNTIL)) == ("think", "pro")
    assert tier(found, Verdict(None, None, "timeout"), UNTIL) == "think"


def test_always_neither_rises_nor_falls() -> None:
    assert (tier(facts(FLASH), None, ALWAYS), tier(facts(PRO), None, ALWAYS)) == ("flash", "pro")


@pytest.mark.parametrize("policy", STAY.values(), ids=STAY)
def test_a_tools_result_goes_where_its_turn_went(policy: Policy) -> None:
    for session in (Session("pro", "flash", continues=True), Session("flash", "pro", continues=True)):
        assert route(facts(session), None, policy) == route(facts(session), HARD, policy)
        assert tier(facts(session), None, policy) == session.tier


def test_where_each_request_has_its_verdict_a_tools_result_goes_where_that_says() -> None:
    by_request = load_policy(TEXT.replace("STAY", "turn") + "triage: {unit: request}\n", {})
    result = facts(Session("pro", "pro", continues=True), context=500)
    assert (tier(result, EASY, TURN), tier(result, EASY, by_request)) == ("pro", "flash")


def test_a_wish_and_a_rule_with_one_tier_go_before_the_session() -> None:
    assert route(facts(PRO, wish="flash", wished_by="name"), None, UNTIL).rule == "caller"
    assert tier(facts(PRO, wish="flash", wished_by="name"), None, UNTIL) == "flash"
    assert tier(facts(PRO, model="sql"), None, UNTIL) == "flash"


def test_without_sessions_or_with_tiers_that_are_gone_a_session_changes_nothing() -> None:
    without = load_policy(TEXT.replace("sessions: {stay: STAY}\n", ""), {})
    assert isinstance(route(facts(PRO), None, without), Ask)
    for gone in (Session("gone", "pro"), Session("pro", "gone")):
        assert isinstance(route(facts(gone), None, UNTIL), Ask)
        assert standing(gone, Route(("flash",), "triaged", "simple"), "flash", UNTIL, EASY).tier == "flash"


@given(
    plan=st.sampled_from(["gold", "silver", "batch", "unknown"]),
    may=st.none() | st.lists(st.sampled_from(["think", "pro", "gone"])).map(tuple),
    capped=st.sampled_from([None, "budget", "share"]),
    session=st.none() | st.builds(
        Session, *[st.sampled_from([*UNTIL.tiers, "gone"])] * 2, turns=st.integers(0, 9), continues=st.booleans()
    ),
    model=st.sampled_from(["auto", "bands", "sql"]),
    vision=st.booleans(),
    verdict=st.sampled_from([None, HARD, EASY, Verdict(None, None, "parse")]),
    chance=st.floats(0, 1, exclude_max=True),
    policy=st.sampled_from(list(STAY.values())),
)  # fmt: skip
def test_no_session_leads_above_what_a_caller_may_reach(
    verdict: Verdict | None, policy: Policy, session: Session | None, **given: Any
) -> None:
    found = facts(session, **given)
    with contextlib.suppress(Refusal):
        chosen = route(found, verdict, policy)
        named = {chosen.draft} - {None} if isinstance(chosen, Ask) else {*chosen.tiers, *chosen.chances}
        assert named <= set(reachable(found, policy))
        if isinstance(chosen, Route):
            kept = after(Decision(found, verdict, chosen), chosen.tiers[0], policy)
            again = route(facts(kept, **given), verdict, policy)
            assert isinstance(again, Ask) or set(again.tiers) <= set(reachable(found, policy))


def test_moving_down_pays_for_a_short_conversation_and_not_for_a_long_one() -> None:
    pro, flash = UNTIL.tiers["pro"].price, UNTIL.tiers["flash"].price
    # 3 more answers of 500 tokens save 3 * 500 * 0.59; each reads 1,000 tokens for 0.0244 more, and the first anew
    assert saved(pro, flash, (1000, None), 3) == pytest.approx((3 * (500 * 0.59 - 1000 * 0.0244) - 1000 * 0.112) / 1e6)
    assert saved(pro, flash, (100_000, None), 3) < 0 < saved(pro, flash, (1000, None), 3)
    assert saved(pro, flash, (5000, None), 1) < 0 < saved(pro, flash, (5000, None), 9)
    assert saved(pro, flash, (1000, 10), 3) < 0
    assert saved(Price(), Price(), (100_000, None), 3) == 0
    assert saved(pro, flash, (1000, None), 0) == saved(pro, flash, (1000, None), 1), "the request itself at least"
    assert saved(pro, flash, (1000, None), 1) == pytest.approx((500 * 0.59 - 1000 * 0.0244 - 1000 * 0.112) / 1e6)


def test_by_turn_a_conversation_goes_up_at_once_and_down_only_where_it_pays() -> None:
    assert tier(facts(FLASH, context=100_000), HARD, TURN) == "pro"
    assert tier(facts(PRO, context=500), EASY, TURN) == "flash"
    assert route(facts(PRO, context=100_000), EASY, TURN) == Route(("pro", "flash"), "triaged", "session")


def test_what_was_decided_is_remembered_beside_who_answered() -> None:
    up, down = Route(("pro", "flash"), "triaged", "complex"), Route(("flash", "pro"), "triaged", "simple")
    assert standing(None, up, "pro", UNTIL, HARD) == PRO
    failed_over = standing(FLASH, down, "pro", UNTIL, EASY)
    assert (failed_over.tier, failed_over.level) == ("pro", "flash")
    assert isinstance(route(facts(failed_over), None, UNTIL), Ask)
    back = standing(PRO, Route(("pro", "flash"), "triaged", "session"), "flash", UNTIL, None)
    assert tier(facts(back), None, UNTIL) == "pro"


def test_neither_chance_nor_a_failed_verdict_nor_a_cap_changes_what_was_decided() -> None:
    chance = Route(("pro", "flash"), "bands", "explored", {"flash": 0.8, "think": 0.1, "pro": 0.1})
    assert standing(None, chance, "pro", UNTIL, EASY).level == "flash"
    failed = Route(("pro", "flash"), "triaged", "timeout")
    assert standing(None, failed, "pro", UNTIL, Verdict(None, None, "timeout")).level == "flash"
    for policy in (UNTIL, ALWAYS):
        assert standing(PRO, Route(("flash",), "triaged", "share"), "flash", policy, None).level == "pro"
    assert standing(PRO, Route(("flash",), "triaged", "simple"), "flash", TURN, EASY).level == "flash"


def test_turns_are_the_users_in_a_row_on_one_tier() -> None:
    down = Route(("flash", "pro"), "triaged", "simple")
    assert standing(Session("flash", "flash", turns=3), down, "flash", UNTIL, EASY).turns == 4
    assert standing(Session("flash", "flash", turns=3, continues=True), down, "flash", UNTIL, None).turns == 3
    assert standing(Session("flash", "flash", turns=3), down, "pro", UNTIL, EASY).turns == 1


RULE = "  - {id: long, when: {session: WHEN}, route: think}\n  - {id: triaged"


@pytest.mark.parametrize(
    ("when", "matched"),
    [
        ("{tier: pro}", [PRO]),
        ("{tier: {not: pro}}", [None, FLASH, THINK]),
        ("{age: {max: 60}}", [PRO, THINK]),
        ("{turns: {max: 1}}", [None, PRO, FLASH]),
    ],
)
def test_a_rule_may_look_at_the_session(when: str, matched: list[Session | None]) -> None:
    text = TEXT.replace("STAY", "turn").replace("  - {id: triaged", RULE.replace("WHEN", when))
    rule = load_policy(text, {}).rules[2]
    flash, think = Session("flash", "flash", age=600.0), Session("think", "think", turns=2)
    for session in (None, PRO, flash, think):
        tiers = [one and one.tier for one in matched]
        assert rule.matches(facts(session)) == ((session and session.tier) in tiers)
        assert (rule.why_not(facts(session)) is None) == rule.matches(facts(session))


@pytest.mark.parametrize("kept", [b"\xff", b"\x94\xa3pro", b"\x94\xa1\xff\xa3pro\x01\x01"])
async def test_a_session_that_cannot_be_read_is_none(kept: bytes) -> None:
    request, store = asked(body(), headers={"x-session-id": "7"}), MemoryStore()
    keys = session_keys(request, UNTIL)
    assert keys
    await store.remember(ANN.id, keys.kept, kept, 60.0)
    remembered = recalling(request, keys, store)
    assert remembered
    assert await remembered is None


def sessions(flash: Sim, pro: Sim, **changes: Any) -> Policy:
    return policy_for(flash, pro, **({"sessions": {}} | changes))


async def told(gate: Gateway, text: str = SIMPLE, session: str = "a", **more: Any) -> tuple[str, str]:
    """Tier and reason of an answer in a session."""
    found = await gate.ask(body(text, **more), x_session_id=session)
    assert found.status == 200
    return found.headers["x-route-tier"], found.headers["x-route-reason"]


async def test_yes_commit_it_does_not_bring_an_escalated_conversation_back(flash: Sim, pro: Sim) -> None:
    async with gateway(sessions(flash, pro)) as gate:
        assert await told(gate) == ("flash", "simple")
        assert await told(gate, COMPLEX) == ("pro", "complex")
        asked_so_far = len(flash.seen("triage"))
        assert await told(gate, "yes, commit it") == ("pro", "session")
        assert len(flash.seen("triage")) == asked_so_far
        assert await told(gate, "yes, commit it", session="b") == ("flash", "simple")
        assert await told(gate, metadata={"session": "none"}) == ("flash", "simple")
        explained = await gate.ask(body(), x_session_id="a", x_route_explain="1")
        found = explained.json()["route"]["facts"]["session"]
        assert (found["tier"], found["turns"], found["continues"]) == ("pro", 2, False)
        line = json.loads(gate.front.doors.records.recent(1)[0])
        assert line["facts"]["session"] == found
        assert "commit it" not in json.dumps(line)


@pytest.mark.parametrize("stream", [False, True])
async def test_ten_tool_results_ask_for_one_verdict(flash: Sim, pro: Sim, stream: bool) -> None:
    async with gateway(sessions(flash, pro)) as gate:
        talk: list[JSON] = [{"role": "user", "content": COMPLEX}]
        for step in range(11):
            found = await gate.ask({"model": "auto", "messages": talk, "tools": TOOLS, "stream": stream})
            assert found.headers["x-route-tier"] == "pro"
            assert found.headers["x-route-reason"] == ("session" if step else "complex")
            talk += [{"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]
        assert (len(flash.seen("triage")), len(pro.seen())) == (1, 11)
        assert pro.seen()[-1]["cached_tokens"] > 0


async def test_without_a_session_a_tools_result_is_judged_as_its_turn_was(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        turn = [{"role": "user", "content": COMPLEX}]
        call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        for messages in (turn, [*turn, call, RESULT]):
            found = await gate.ask({"messages": messages, "tools": TOOLS})
            assert found.headers["x-route-tier"] == "pro"
        assert len(flash.seen("triage")) == 1  # the second one was remembered


async def test_a_failover_is_remembered_and_escalates_nothing(flash: Sim, pro: Sim) -> None:
    async with gateway(sessions(flash, pro, triage={"speculate": "never"})) as gate:
        flash.config(only="answer", status=503, count=1)
        assert (await told(gate))[0] == "pro"
        result = [{"role": "user", "content": SIMPLE}, {"role": "assistant", "tool_calls": [CALL]}, RESULT]
        assert await told(gate, messages=result) == ("pro", "session")
        assert await told(gate) == ("flash", "simple")


def test_a_weak_start_that_was_given_up_escalates_the_conversation_a_broken_one_does_not() -> None:
    for outcome, level in (("escalated", "pro"), ("broken", "flash")):
        made = Decision(facts(None), EASY, Route(("flash",), "triaged", "simple"), held=Held(outcome, "why", 0.1))  # type: ignore[arg-type]
        kept = after(made, "pro", STAY["until_escalated"])
        assert (kept.tier, kept.level) == ("pro", level)


async def test_a_conversation_that_begins_like_another_is_not_taken_for_it(flash: Sim, pro: Sim) -> None:
    async with gateway(sessions(flash, pro)) as gate:
        for _ in range(2):
            found = await gate.ask(body(COMPLEX))
            assert (found.headers["x-route-tier"], found.headers["x-route-reason"]) == ("pro", "complex")
        done, simple = {"role": "assistant", "content": "Done."}, {"role": "user", "content": SIMPLE}
        for turns in ([], [simple, done]):
            found = await gate.ask(body(messages=[{"role": "user", "content": COMPLEX}, done, *turns, simple]))
            assert (found.headers["x-route-tier"], found.headers["x-route-reason"]) == ("pro", "session")
        for text, wanted in ((COMPLEX, "pro"), (SIMPLE, "flash")):
            found = await gate.ask(body(messages=[done, {"role": "user", "content": text}]))
            assert found.headers["x-route-tier"] == wanted, "each has its greeting, and no word of the other"


async def test_a_conversation_is_kept_when_its_answer_is_closed_and_known_with_its_age() -> None:
    request, store = asked(body(metadata={"session_id": "a"})), MemoryStore()
    keys = session_keys(request, UNTIL)
    assert keys
    decision = Decision(facts(None), HARD, Route(("pro",), "triaged", "complex"))
    reply = Reply(200, [], b"{}", False, "pro", nothing, decision=decision)
    await follow(reply, keys, request, UNTIL, store).close()
    value = await store.recall(ANN.id, keys.kept)
    assert value
    tier, level, at, turns = msgspec.msgpack.decode(value)
    for known, age in ((at - 90, 90.0), (at + 90, 0.0)):
        await store.remember(ANN.id, keys.kept, msgspec.msgpack.encode((tier, level, known, turns)), 60.0)
        found = recalling(request, keys, store)
        assert found
        session = await found
        assert session
        assert (session.tier, session.level, session.turns, session.continues) == ("pro", "pro", 1, False)
        assert session.age == pytest.approx(age, abs=30)
    for strange in (b"?", msgspec.msgpack.encode((tier, level))):
        await store.remember(ANN.id, keys.kept, strange, 60.0)
        found = recalling(request, keys, store)
        assert found
        assert await found is None, "as of another version"


async def test_an_error_and_a_wish_leave_the_conversation_where_it_is(flash: Sim, pro: Sim) -> None:
    async with gateway(sessions(flash, pro, failover=None)) as gate:
        assert (await told(gate, model="pro"))[0] == "pro"
        assert await told(gate) == ("flash", "simple")
        pro.config(status=400)
        assert (await gate.ask(body(COMPLEX), x_session_id="a")).status == 400
        assert await told(gate) == ("flash", "simple")


async def test_a_session_is_its_callers_alone(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    ann, bob = await callers(store, "ann", "bob")
    async with gateway(sessions(flash, pro), store, everyone=False) as gate:
        found = []
        for who, text in ((ann, COMPLEX), (bob, SIMPLE), (ann, SIMPLE)):
            answer = await gate.ask(body(text), x_session_id="a", **who)
            found.append((answer.headers["x-route-tier"], answer.headers["x-route-reason"]))
        assert found == [("pro", "complex"), ("flash", "simple"), ("pro", "session")]


async def test_a_remembered_answer_of_another_conversation_is_not_given_to_an_escalated_one(
    flash: Sim, pro: Sim
) -> None:
    async with gateway(sessions(flash, pro, caching={})) as gate:
        cold: JSON = body(SIMPLE, temperature=0)
        first = await gate.ask(cold, x_session_id="b")
        assert (await gate.ask(cold, x_session_id="b")).headers["x-route-cache"] == "hit"
        assert await told(gate, COMPLEX) == ("pro", "complex")
        again = await gate.ask(cold, x_session_id="a")
        assert (first.headers["x-route-tier"], again.headers["x-route-tier"]) == ("flash", "pro")
        assert again.headers["x-route-cache"] == "miss"


async def test_a_caller_above_its_share_comes_down_and_goes_up_again_with_its_conversation(
    flash: Sim, pro: Sim
) -> None:
    plan = {"usual": {"pro_share": {"max": 0.5}}}
    async with gateway(sessions(flash, pro, callers={"plans": plan})) as gate:
        assert (await told(gate, COMPLEX))[0] == "pro"
        found = [await told(gate, session="a") for _ in range(5)]
        assert {("flash", "share"), ("pro", "session")} == set(found)


async def test_thoughts_of_earlier_turns_reach_either_tier_byte_by_byte(flash: Sim, pro: Sim) -> None:
    async with gateway(sessions(flash, pro)) as gate:
        thought = {
            "reasoning_content": "First, \u00e9\\n 1.50",
            "reasoning": "Or\tso",
            "reasoning_details": [{"n": 1.0}],
        }
        answer = {"role": "assistant", "content": None, "tool_calls": [CALL], **thought}
        for text, wanted in ((SIMPLE, flash), (COMPLEX, pro)):
            messages = [{"role": "user", "content": "Look."}, answer, RESULT, {"role": "user", "content": text}]
            spelled = json.dumps(messages, indent=1)
            data = f'{{"model": "auto", "messages": {spelled}, "tools": {json.dumps(TOOLS)}}}'.encode()
            found = await gate.ask(data, x_session_id="a")
            assert found.headers["x-route-tier"] == ("flash" if wanted is flash else "pro")
            sent = wanted.seen()[-1]["body"]
            assert spelled in sent
        assert json.loads(flash.seen("triage")[-1]["body"])["messages"][1] == answer
