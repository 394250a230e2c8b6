"""Which tiers answer: wishes, rules, caps, needs, failover and verdicts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest, Forbidden, QuotaUsed, Refusal
from gateway.explain import explain as explained
from gateway.policy import Policy, load_policy
from gateway.routing import permitted_route, route
from gateway.routing.reach import cached
from gateway.types import Ask, Facts, Route, Verdict

TEXT = """\
schema: 1
tiers:
  flash: {model: m/flash, replicas: ["http://h"], limits: {max_inflight: 16}, can: {context: 1000}}
  think: {extends: flash, can: {vision: true}}
  pro: {model: m/pro, replicas: ["http://h"], can: {tools: false, context: 5000}}
  max: {extends: pro, can: {tools: true}}
triage: {otherwise: {parse: pro, error: max}}
signals: {sql: select}
rules:
  - {id: sql, when: {signals: [sql]}, route: pro}
  - {id: top, when: {model: top}, route: max}
  - {id: bands, when: {model: bands}, route: {p_complex: {"<0.3": flash, "<0.7": think, else: pro}}}
  - {id: same, when: {model: same}, route: {simple: flash, complex: flash}}
  - {id: steep, when: {model: steep}, route: {simple: pro, complex: max}}
  - {id: triaged, route: {simple: flash, complex: pro}}
failover: {tiers: {flash: [pro, think, flash, pro], pro: [flash]}}
callers:
  default: {plan: gold}
  plans:
    gold: {may: [max]}
    silver: {may: [pro]}
    bronze: {may: [think]}
    batch: {}
    floored: {may: [pro], min_tier: think}
"""
POLICY = load_policy(TEXT, {})
TIERS = list(POLICY.tiers)


def explain(*given: Any) -> Any:
    """The explanation, of which a test knows what is there."""
    return explained(*given)


def facts(**given: Any) -> Facts:
    values: dict[str, Any] = {"model": "auto", "caller": "c", "plan": "gold"} | given
    return Facts(**values)


def routed(found: Facts, verdict: Verdict | None = None, policy: Policy = POLICY) -> Route:
    chosen = route(found, verdict, policy)
    assert isinstance(chosen, Route)
    return chosen


def asked(found: Facts, policy: Policy = POLICY) -> Ask:
    chosen = route(found, None, policy)
    assert isinstance(chosen, Ask)
    return chosen


def speculating(when: str) -> Policy:
    return load_policy(TEXT.replace("triage: {", f"triage: {{speculate: {when}, "), {})


def test_the_first_rule_that_matches_decides() -> None:
    assert routed(facts(signals=frozenset({"sql"}))) == Route(("pro", "flash"), "sql", "rule")


def test_a_rule_that_wants_a_verdict_asks() -> None:
    assert asked(facts()) == Ask("triaged", "flash")


@pytest.mark.parametrize(("p_complex", "tier"), [(0.0, "flash"), (0.49, "flash"), (0.5, "pro"), (1.0, "pro")])
def test_complex_begins_at_the_threshold(p_complex: float, tier: str) -> None:
    assert routed(facts(), Verdict("simple", p_complex)).tiers[0] == tier


@pytest.mark.parametrize(("label", "tier"), [("simple", "flash"), ("complex", "pro")])
def test_a_label_without_a_probability_decides(label: Any, tier: str) -> None:
    assert routed(facts(), Verdict(label, None)) == Route(routed(facts(), Verdict(label, None)).tiers, "triaged", label)
    assert routed(facts(), Verdict(label, None)).tiers[0] == tier


@pytest.mark.parametrize(
    ("p_complex", "tier"), [(0.29, "flash"), (0.3, "think"), (0.69, "think"), (0.7, "pro"), (1.0, "pro")]
)
def test_bands_begin_at_their_lower_end(p_complex: float, tier: str) -> None:
    assert routed(facts(model="bands"), Verdict("simple", p_complex)).tiers[0] == tier


@pytest.mark.parametrize(("label", "tier"), [("simple", "flash"), ("complex", "pro")])
def test_a_label_alone_means_the_outer_bands(label: Any, tier: str) -> None:
    assert routed(facts(model="bands"), Verdict(label, None)).tiers[0] == tier


@pytest.mark.parametrize(
    ("reason", "tier"), [("parse", "pro"), ("timeout", "flash"), ("error", "max"), ("odd", "flash")]
)
def test_a_failed_verdict_goes_where_otherwise_says(reason: str, tier: str) -> None:
    found = routed(facts(), Verdict(None, None, reason))
    assert (found.tiers[0], found.rule, found.reason) == (tier, "triaged", reason)


def test_otherwise_is_capped_too() -> None:
    assert routed(facts(plan="silver"), Verdict(None, None, "error")).tiers[0] == "pro"


def test_nobody_is_asked_when_both_ways_lead_to_one_tier() -> None:
    assert routed(facts(model="same")) == Route(("flash", "pro", "think"), "same", "both ways flash")
    assert routed(facts(plan="batch")) == Route(("flash",), "triaged", "both ways flash")
    assert routed(facts(plan="silver", model="steep")).reason == "both ways pro"
    assert routed(facts(model="same", capped="share")).reason == "both ways flash"
    assert routed(facts(capped="share")).reason == "share"


@pytest.mark.parametrize(
    ("plan", "tier"), [("gold", "max"), ("silver", "pro"), ("bronze", "think"), ("batch", "flash"), ("gone", "flash")]
)
def test_a_rule_above_the_cap_comes_down_to_the_cap(plan: str, tier: str) -> None:
    found = routed(facts(plan=plan, model="top"))
    assert (found.tiers[0], found.reason) == (tier, "rule" if plan == "gold" else "capped")


def test_a_wish_goes_before_all_rules() -> None:
    found = routed(facts(wish="think", wished_by="header", signals=frozenset({"sql"})))
    assert found == Route(("think",), "caller", "asked for by header")


@pytest.mark.parametrize(("plan", "tier"), [("gold", "max"), ("silver", "pro"), ("batch", "flash")])
def test_best_is_the_highest_permitted_tier_and_fast_the_first(plan: str, tier: str) -> None:
    assert routed(facts(plan=plan, wish="best", wished_by="name")).tiers[0] == tier
    assert routed(facts(plan=plan, wish="fast", wished_by="name")).tiers[0] == "flash"


def test_a_wish_above_the_cap_is_forbidden() -> None:
    with pytest.raises(Forbidden, match="silver may not use tier max; the highest it may use is pro") as caught:
        route(facts(plan="silver", wish="max", wished_by="name"), None, POLICY)
    assert caught.value.param == "model"


def test_going_down_is_always_allowed() -> None:
    assert routed(facts(plan="silver", wish="think", wished_by="name")).tiers[0] == "think"


def test_failover_names_each_permitted_and_able_tier_once() -> None:
    assert routed(facts(wish="fast")).tiers == ("flash", "pro", "think")
    assert routed(facts(wish="fast", plan="bronze")).tiers == ("flash", "think")
    assert routed(facts(wish="fast", tools=True)).tiers == ("flash", "think")


@pytest.mark.parametrize(
    ("needs", "tier"),
    [({"vision": True}, "think"), ({"context": 2000}, "pro"), ({"context": 2000, "tools": True}, "max")],
)
def test_a_tier_that_lacks_something_gives_way_to_the_next_one_up(needs: dict[str, Any], tier: str) -> None:
    found = routed(facts(wish="fast", **needs))
    assert (found.tiers[0], found.reason) == (tier, f"needs {next(iter(needs))}")


def test_token_ids_are_not_for_sglang_unless_its_tier_says_so() -> None:
    found = facts(wish="fast", plan="silver", token_ids=True)
    mixed = load_policy(TEXT.replace("m/flash,", "m/flash, engine: sglang,"), {})
    assert routed(found, policy=mixed) == Route(("pro",), "caller", "needs token_ids")
    whole = load_policy(TEXT.replace("replicas", "engine: sglang, replicas"), {})
    with pytest.raises(BadRequest, match="token_ids") as refusal:
        route(found, None, whole)
    assert refusal.value.param == "prompt"
    lets = load_policy(
        TEXT.replace("m/flash,", "m/flash, engine: sglang,").replace("{context", "{token_ids: true, context"), {}
    )
    assert routed(found, policy=lets) == routed(found)


def test_when_no_higher_tier_is_able_the_next_one_down_takes_over() -> None:
    assert routed(facts(plan="silver", model="top", tools=True)) == Route(("think",), "top", "needs tools")


def test_a_need_that_no_permitted_tier_has_is_a_bad_request_that_names_it() -> None:
    with pytest.raises(BadRequest, match=r"plan batch .* vision"):
        route(facts(plan="batch", vision=True), None, POLICY)


@pytest.mark.parametrize(("needs", "most"), [({}, 5000), ({"tools": True}, 5000), ({"vision": True}, 1000)])
def test_a_prompt_too_long_for_all_is_refused_in_the_words_by_which_clients_shorten_it(
    needs: dict[str, Any], most: int
) -> None:
    with pytest.raises(BadRequest, match="too long") as found:
        route(facts(context=9000, wish="think", **needs), None, POLICY)
    assert found.value.code == "context_length_exceeded"
    # As Claude Code 2.1 and LiteLLM look for it.
    told = re.findall(r"prompt is too long[^0-9]*(\d+) tokens > (\d+)", found.value.message)
    assert told == [("9000", str(most))]


@pytest.mark.parametrize("why", ["budget", "share"])
def test_a_need_that_only_a_tier_above_the_budget_or_share_has_is_a_quota_that_is_used_up(why: str) -> None:
    with pytest.raises(QuotaUsed, match=f"The {why} that is left does not reach a tier that has context"):
        route(facts(capped=why, context=2000), None, POLICY)
    with pytest.raises(BadRequest, match="too long"):
        route(facts(capped=why, context=9000), None, POLICY)


def test_a_draft_starts_where_a_simple_prompt_goes() -> None:
    assert asked(facts(model="bands"), speculating("always")).draft == "flash"
    assert asked(facts(tools=True), speculating("always")).draft == "flash"
    assert asked(facts(model="steep", load={"pro": 0})).draft == "pro"


@pytest.mark.parametrize(("inflight", "draft"), [(0, "flash"), (10, "flash"), (11, None), (16, None)])
def test_when_idle_leaves_a_quarter_of_the_places_free(inflight: int, draft: str | None) -> None:
    assert asked(facts(load={"flash": inflight})).draft == draft


@pytest.mark.parametrize(("score", "draft"), [(None, "flash"), (0.94, "flash"), (0.95, None), (1.0, None)])
def test_when_idle_starts_no_draft_for_what_looks_complex(score: float | None, draft: str | None) -> None:
    assert asked(facts(score=score)).draft == draft


def test_a_queue_that_nobody_knows_is_neither_short_nor_long() -> None:
    short = "  - {id: short, when: {load: {pro: {waiting: {max: 3}}}}, route: pro}\n  - {id: sql"
    made = load_policy(TEXT.replace("  - {id: sql", short), {})
    assert routed(facts(waiting={"pro": 3}), policy=made).rule == "short"
    for waiting in ({}, {"flash": 0}, {"pro": 4}):
        assert asked(facts(waiting=waiting), made).rule == "triaged"


def test_always_and_never_look_at_neither_load_nor_score() -> None:
    assert asked(facts(load={"flash": 999}, score=0.9), speculating("always")).draft == "flash"
    assert asked(facts(), speculating("never")).draft is None


@pytest.mark.parametrize(
    ("score", "inflight", "early"),
    [(None, 0, None), (0.89, 0, None), (0.9, 0, "pro"), (1.0, 191, "pro"), (1.0, 192, None)],
)
def test_what_looks_hard_beyond_doubt_may_start_early_where_the_dear_tier_has_room(
    score: float | None, inflight: int, early: str | None
) -> None:
    made = load_policy(TEXT.replace("triage: {", "triage: {early: {score: 0.9}, "), {})
    assert asked(facts(score=score, load={"pro": inflight}), made).early == early
    assert asked(facts(score=1.0)).early is None, "off unless the policy says so"


some_facts = st.builds(
    Facts,
    model=st.sampled_from(["auto", "top", "bands", "same", "steep"]),
    caller=st.just("c"),
    plan=st.sampled_from(["gold", "silver", "bronze", "batch", "floored", "gone"]),
    wish=st.sampled_from([None, None, "fast", "best", *TIERS]),
    wished_by=st.just("name"),
    context=st.sampled_from([0, 1000, 1001, 5000, 5001]),
    tools=st.booleans(),
    vision=st.booleans(),
    token_ids=st.booleans(),
    signals=st.sampled_from([frozenset(), frozenset({"sql"})]),
    load=st.dictionaries(st.sampled_from(TIERS), st.integers(0, 300)),
    capped=st.sampled_from([None, None, "budget", "share"]),
    may=st.sampled_from([None, None, (), ("think",), ("max",)]),
)
some_verdicts = st.builds(
    Verdict,
    label=st.sampled_from([None, "simple", "complex"]),
    p_complex=st.none() | st.floats(0, 1),
    reason=st.sampled_from(["ok", "timeout", "parse", "error"]),
)


def within(found: Facts) -> list[str]:
    """The tiers between a caller's floor and ceiling; a ceiling below the floor goes before it."""
    plans = {"gold": (0, 3), "silver": (0, 2), "bronze": (0, 1), "batch": (0, 0), "floored": (1, 2), "gone": (0, 0)}
    low, high = plans[found.plan]
    high = high if found.may is None else max((TIERS.index(tier) for tier in found.may), default=0)
    return TIERS[min(low, high) : high + 1]


@given(some_facts, some_verdicts)
def test_a_route_is_never_out_of_its_callers_range_nor_unable_nor_twice(found: Facts, verdict: Verdict) -> None:
    try:
        chosen = route(found, verdict, POLICY)
    except Refusal:
        return
    assert isinstance(chosen, Route)
    allowed = within(found)
    assert set(chosen.tiers) <= set(allowed[:1] if found.capped else allowed)
    assert len(set(chosen.tiers)) == len(chosen.tiers)
    for name in chosen.tiers:
        can = POLICY.tiers[name].can
        assert can.tools >= found.tools
        assert can.vision >= found.vision
        assert not found.token_ids or POLICY.tiers[name].engine != "sglang"
        assert can.context >= found.context


@given(some_facts, some_verdicts)
def test_an_ask_is_settled_by_any_verdict_and_its_draft_is_permitted(found: Facts, verdict: Verdict) -> None:
    try:
        first = route(found, None, POLICY)
    except Refusal:
        return
    if isinstance(first, Ask):
        assert first.draft is None or first.draft in within(found)
        assert routed(found, verdict).rule == first.rule
    else:
        assert route(found, verdict, POLICY) == first


@given(some_facts, st.sampled_from(TIERS))
def test_what_was_placed_once_is_where_each_request_alone_would_go(found: Facts, tier: str) -> None:
    try:
        alone = permitted_route(found, POLICY, tier, ("rule", "why"))
    except Refusal as refusal:
        with pytest.raises(type(refusal), match=re.escape(refusal.message)):
            cached(permitted_route, found, POLICY, tier, ("rule", "why"))
    else:
        assert cached(permitted_route, found, POLICY, tier, ("rule", "why")) == alone


@given(some_facts)
def test_permission_for_more_never_refuses_what_less_allowed(found: Facts) -> None:
    ranks = {"batch": 0, "bronze": 1, "silver": 2, "gold": 3}
    if found.plan not in ranks:
        return
    try:
        route(found, None, POLICY)
    except Refusal:
        return
    gold = Facts(**{name: getattr(found, name) for name in Facts.__struct_fields__} | {"plan": "gold", "may": None})
    route(gold, None, POLICY)


@pytest.mark.parametrize("wish", [None, "flash", "fast", "think"])
def test_a_plans_lowest_tier_answers_what_would_go_lower(wish: str | None) -> None:
    found = routed(facts(plan="floored", wish=wish, wished_by="name"), Verdict("simple", 0.1))
    assert found.tiers[0] == "think"
    if wish is None:
        assert found.reason == "floor"
        assert routed(facts(plan="floored"), Verdict(None, None, "timeout")).tiers[0] == "think"
        assert routed(facts(plan="floored", may=()), Verdict("simple", 0.1)).tiers == ("flash",), "its key may no more"


FRUGAL = load_policy(
    """\
schema: 1
tiers: {flash: {model: f, replicas: ["http://h"]}, pro: {model: p, replicas: ["http://h"]}}
failover: {tiers: {flash: [pro]}}
rules:
  - {id: budget-low, when: {budget_used: {min: 0.8}}, route: flash}
  - {id: triaged, route: {simple: flash, complex: pro}}
""",
    {},
)


@pytest.mark.parametrize(("used", "rule"), [(0.79, "triaged"), (0.8, "budget-low"), (1.0, "budget-low")])
def test_a_rule_may_look_at_how_much_of_the_budget_is_used(used: float, rule: str) -> None:
    found = route(Facts(model="auto", caller="a", plan="default", budget_used=used), None, FRUGAL)
    assert found.rule == rule


@pytest.mark.parametrize("why", ["budget", "share"])
def test_who_is_kept_on_the_first_tier_is_not_triaged_and_neither_wish_nor_failover_leads_up(why: str) -> None:
    for wish in (None, "pro", "best"):
        facts = Facts(model="auto", caller="a", plan="default", wish=wish, wished_by=wish and "name", capped=why)
        found = route(facts, None, FRUGAL)
        assert isinstance(found, Route)
        assert (found.tiers, found.reason) == (("flash",), why)


def test_a_key_that_names_its_own_tiers_reaches_those() -> None:
    facts = Facts(model="auto", caller="a", plan="default", wish="pro", wished_by="name", may=())
    with pytest.raises(Forbidden):
        route(facts, None, FRUGAL)


EXPLORING = load_policy(
    """\
schema: 1
tiers:
  flash: {model: f, replicas: ["http://h"]}
  think: {extends: flash}
  pro: {model: p, replicas: ["http://h"]}
failover: {tiers: {pro: [think]}}
rules:
  - {id: bands, when: {model: bands}, route: {p_complex: {"<0.3": flash, "<0.7": think, else: pro}}, explore: 0.2}
  - {id: triaged, route: {simple: flash, complex: pro}, explore: 0.2}
callers: {default: {plan: gold}, plans: {gold: {may: [pro]}, low: {may: [think]}, batch: {}}}
""",
    {},
)
SURE = Verdict("simple", 0.1)


def explored(chance: float, verdict: Verdict = SURE, **given: Any) -> Route:
    return routed(facts(chance=chance, **given), verdict, EXPLORING)


def test_a_part_of_the_judged_requests_takes_another_side_by_chance() -> None:
    taken = [explored(at / 1000) for at in range(1000)]
    other = [one for one in taken if one.reason == "explored"]
    assert (len(other), {one.tiers for one in other}, {one.rule for one in other}) == (
        200,
        {("pro", "think")},
        {"triaged"},
    )
    assert all(one.chances == {"flash": 0.8, "pro": 0.2} for one in taken)


def test_the_other_bands_share_what_is_explored() -> None:
    taken = [explored(at / 1000, model="bands").tiers[0] for at in range(1000)]
    assert {tier: taken.count(tier) for tier in ("flash", "think", "pro")} == {"flash": 800, "think": 100, "pro": 100}
    assert explored(0.5, model="bands").chances == pytest.approx({"flash": 0.8, "think": 0.1, "pro": 0.1})


@pytest.mark.parametrize("chance", [0.0, 0.05, 0.15, 0.199, 0.5, 1.0])
@pytest.mark.parametrize("verdict", [SURE, Verdict("complex", 0.9), Verdict(None, None, "timeout")])
@pytest.mark.parametrize("model", ["auto", "bands"])
def test_what_is_explored_is_never_above_permission_budget_or_share(
    chance: float, verdict: Verdict, model: str
) -> None:
    allowed = {"gold": {"flash", "think", "pro"}, "low": {"flash", "think"}, "batch": {"flash"}}
    for plan, tiers in allowed.items():
        assert {*explored(chance, verdict, plan=plan, model=model).tiers} <= tiers
        for capped in ("budget", "share"):
            assert explored(chance, verdict, plan=plan, model=model, capped=capped).tiers == ("flash",)


def test_without_a_verdict_or_for_a_wish_nothing_is_explored() -> None:
    failed = explored(0.0, Verdict(None, None, "timeout"))
    assert (failed.tiers[0], failed.reason, failed.chances) == ("flash", "timeout", {})
    assert explored(0.0, wish="flash", wished_by="name").chances == {}


def local(**triage: str) -> Policy:
    said = ", ".join(f"{key}: {value}" for key, value in triage.items())
    return load_policy(TEXT.replace("error: max}", f"error: max, timeout: local}}, {said}"), {})


@pytest.mark.parametrize(
    ("model", "score", "tier", "reason"),
    [
        ("auto", 0.59, "flash", "timeout, local simple"),
        ("auto", 0.6, "pro", "timeout, local complex"),
        ("bands", 0.5, "think", "timeout, local p_complex <0.7"),
        ("auto", None, "flash", "timeout"),
    ],
)
def test_the_local_score_stands_in_for_a_missing_verdict(
    model: str, score: float | None, tier: str, reason: str
) -> None:
    found = routed(facts(model=model, score=score), Verdict(None, None, "timeout"), local(threshold="0.6"))
    assert (found.tiers[0], found.reason) == (tier, reason)


def test_the_local_score_has_no_say_where_there_is_a_verdict_or_another_fallback() -> None:
    policy = local(threshold="0.6")
    assert routed(facts(score=0.9), Verdict("simple", 0.1), policy).tiers[0] == "flash"
    assert routed(facts(score=0.1), Verdict(None, None, "error"), policy).reason == "error"
    assert routed(facts(score=0.9, plan="bronze"), Verdict(None, None, "timeout"), policy).tiers[0] == "think"


CALIBRATION = {
    "schema": 1,
    "layer": {
        "intercept": -1.0,
        "weights": {"score": 1.0, "p_complex": 1.0},
        "means": {"score": 0.0, "p_complex": 0.0},
        "scales": {"score": 1.0, "p_complex": 1.0},
    },
    "edges": [0.4],
}


@pytest.fixture
def calibrated(tmp_path: Path) -> Policy:
    """Odds are those of score and verdict multiplied, by e less."""
    (tmp_path / "found.json").write_text(json.dumps(CALIBRATION))
    (tmp_path / "policy.yaml").write_text(TEXT.replace("triage: {", "triage: {calibration: found.json, "))
    return load_policy(tmp_path / "policy.yaml", {})


@pytest.mark.parametrize(
    ("model", "score", "p_complex", "tier"),
    [
        ("auto", 0.5, 0.6, "flash"),  # 1.5 / e: 0.356
        ("auto", 0.5, 0.7, "pro"),  # 2.33 / e: 0.462
        ("auto", 0.2, 0.8, "flash"),  # 1 / e: 0.269
        ("bands", 0.5, 0.45, "flash"),  # 0.81 / e: 0.231
        ("bands", 0.5, 0.8, "think"),  # 4 / e: 0.595
        ("bands", 0.8, 0.8, "pro"),  # 16 / e: 0.855
    ],
)
def test_threshold_and_bands_look_at_the_calibrated_p_complex(
    calibrated: Policy, model: str, score: float, p_complex: float, tier: str
) -> None:
    verdict = Verdict("complex" if p_complex >= 0.5 else "simple", p_complex)
    assert routed(facts(model=model, score=score), verdict, calibrated).tiers[0] == tier


def test_a_label_without_a_probability_is_not_calibrated(calibrated: Policy) -> None:
    assert routed(facts(score=0.01), Verdict("complex", None), calibrated).tiers[0] == "pro"
    assert routed(facts(score=0.99), Verdict(None, None, "timeout"), calibrated).reason == "timeout"


def test_explain_tells_the_calibrated_p_complex_beside_the_raw_one(calibrated: Policy) -> None:
    found = explain(facts(score=0.5), Verdict("complex", 0.7), calibrated)
    assert found["verdict"]["raw"] == 0.7
    assert found["verdict"]["p_complex"] == pytest.approx(0.462, abs=0.001)
    assert (found["verdict"]["threshold"], found["verdict"]["margin"]) == (0.4, pytest.approx(0.062, abs=0.001))
    assert {key: way["tier"] for key, way in found["sides"].items() if key != "otherwise"} == {
        "simple": "flash",
        "complex": "pro",
    }
    bands = explain(facts(model="bands", score=0.5), None, calibrated)["sides"]
    assert [way["tier"] for key, way in bands.items() if key != "otherwise"] == ["flash", "think", "pro"]
