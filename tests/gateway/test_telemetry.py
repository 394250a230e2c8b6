import asyncio
import json
import re
import time
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.policy import Policy
from gateway.recorded import PHASES, Record
from gateway.store import Line
from gateway.telemetry import TOGETHER, Telemetry
from gateway.telemetry.lines import line
from gateway.trace import Trace
from gateway.types import Caller, Decision, Facts, Route, TierState, Usage, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, body, gateway
from tests.tiers import JSON, policy_for

POLICY = policy_for(Sim("http://127.0.0.1:1", "flash-model"), Sim("http://127.0.0.1:2", "pro-model"))
ROUTE = Route(("pro",), "triaged", "complex")
DECISION = Decision(
    Facts("auto", "ann", "usual"),
    Verdict("complex", 0.9, seconds=0.2, strategy="choice", prompt="complexity.v1"),
    ROUTE,
    "wasted",
)
THIRD = {"model": "m", "replicas": ["http://h"]}
CANARY = "canary-7f3a"


def record(**fields: Any) -> Record:
    base: JSON = {
        "id": "i",
        "path": "/v1/chat/completions",
        "status": 200,
        "seconds": 1.0,
        "overhead": 0.001,
        "policy": "p",
    }
    return Record(**{**base, **fields})


STATES = {"flash": TierState(2, 1, (True,), 8), "pro": TierState(0, 0, (False,), 9)}


def telemetry(policy: Policy = POLICY, log: bool = False) -> Telemetry:
    made = Telemetry(log)
    made.use(policy, lambda: STATES, lambda: "ok")
    return made


def shown(made: Telemetry) -> str:
    return made.render().decode()


def value(made: Telemetry, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", shown(made), re.MULTILINE)
    assert found, f"{sample} is not among the metrics"
    return float(found[1])


def test_an_exchange_is_counted_by_status_tier_rule_verdict_draft_and_tokens() -> None:
    made = telemetry()
    answered = record(
        tier="pro", route=ROUTE, decision=DECISION, cache="miss", ttft=0.3, model="Auto", usage=Usage(7, 0, 9)
    )
    made.record(answered)
    assert value(made, 'gateway_requests_total{status="200",tier="pro"}') == 1
    assert value(made, 'gateway_decisions_total{reason="complex",rule="triaged",tier="pro"}') == 1
    assert value(made, 'gateway_verdicts_total{outcome="complex",source="triage"}') == 1
    assert value(made, 'gateway_drafts_total{outcome="wasted"}') == 1
    assert value(made, 'gateway_cache_requests_total{result="miss"}') == 1
    assert value(made, "gateway_triage_seconds_sum") == 0.2
    assert value(made, "gateway_overhead_seconds_count") == 1
    for tier, (inflight, queued, (up,), places) in STATES.items():
        assert value(made, f'gateway_inflight_requests{{tier="{tier}"}}') == inflight
        assert value(made, f'gateway_queued_requests{{tier="{tier}"}}') == queued
        assert value(made, f'gateway_places{{tier="{tier}"}}') == places
        assert value(made, f'gateway_replica_up{{replica="0",tier="{tier}"}}') == up
    labels = (
        'gen_ai_operation_name="chat",gen_ai_original_model="auto",gen_ai_provider_name="deepseek",'
        'gen_ai_response_model="pro-model"'
    )
    assert value(made, f"gen_ai_server_time_to_first_token_seconds_sum{{{labels}}}") == 0.3
    assert value(made, f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="output"}}') == 9


def test_the_time_that_speculation_won_is_that_of_kept_drafts() -> None:
    made = telemetry()
    for draft in ("kept", "wasted", "none"):
        decision = msgspec.structs.replace(DECISION, draft=draft, won=0.25)
        made.record(record(tier="pro", route=ROUTE, decision=decision))
    assert value(made, "gateway_draft_won_seconds_count") == 1
    assert value(made, "gateway_draft_won_seconds_sum") == 0.25


def test_who_shares_an_answer_does_not_count_its_tokens_verdict_and_draft_again() -> None:
    made = telemetry()
    for cache in ("miss", "coalesced", "coalesced"):
        made.record(record(tier="pro", route=ROUTE, decision=DECISION, cache=cache, usage=Usage(7, 0, 9)))
    assert value(made, 'gateway_verdicts_total{outcome="complex",source="triage"}') == 1
    assert value(made, 'gateway_drafts_total{outcome="wasted"}') == 1
    assert value(made, 'gateway_requests_total{status="200",tier="pro"}') == 3


def test_what_is_waited_for_is_0_before_it_comes_so_that_the_first_one_is_a_rise() -> None:
    made = telemetry()
    for result in ("accepted", "rejected"):
        assert value(made, f'gateway_policy_reloads_total{{result="{result}"}}') == 0
    for limit in ("requests", "concurrency", "tokens", "money"):
        assert value(made, f'gateway_limited_total{{limit="{limit}"}}') == 0
    for outcome in ("compared", "failed"):
        assert value(made, f'gateway_shadow_answers_total{{outcome="{outcome}"}}') == 0


def test_a_failed_answer_still_counts_its_verdict() -> None:
    made = telemetry()
    made.record(record(status=502, error="upstream_failed", route=ROUTE, decision=DECISION))
    assert value(made, 'gateway_verdicts_total{outcome="complex",source="triage"}') == 1
    assert value(made, 'gateway_refusals_total{code="upstream_failed"}') == 1
    assert value(made, 'gateway_requests_total{status="502",tier="none"}') == 1


def test_a_failed_classification_is_counted_by_its_reason_and_no_draft_as_none() -> None:
    made = telemetry()
    failed = Decision(Facts("auto", "ann", "usual"), Verdict(None, None, "timeout", "triage"), ROUTE, "none")
    made.record(record(tier="pro", route=ROUTE, decision=failed))
    assert value(made, 'gateway_verdicts_total{outcome="timeout",source="triage"}') == 1
    assert "gateway_drafts_total{" not in shown(made)


@pytest.mark.parametrize(("made", "ttft", "count"), [(1, 0.2, 0), (0, 0.2, 0), (2, None, 0), (2, 0.2, 1)])
def test_a_pace_needs_a_first_byte_and_two_tokens(made: int, ttft: float | None, count: int) -> None:
    seen = telemetry()
    seen.record(record(tier="pro", model="auto", usage=Usage(7, 0, made), stream=True, ttft=ttft))
    assert re.findall(r"gen_ai_server_time_per_output_token_seconds_count{.*} (.+)", shown(seen)) == [f"{count}.0"]


def test_who_left_before_the_first_byte_is_no_measure_of_overhead() -> None:
    made = telemetry()
    made.record(record(status=499, overhead=None))
    assert value(made, "gateway_overhead_seconds_count") == 0


def test_nothing_a_caller_writes_becomes_a_label_value_or_a_log_word(capfd: pytest.CaptureFixture[str]) -> None:
    made = telemetry(log=True)
    for turn in range(50):
        made.record(record(model=f"{CANARY}-{turn}", tier="flash", path=f"/{CANARY}{turn}", status=404))
    lines = shown(made)
    made.close()
    assert CANARY not in lines
    assert len(re.findall("^gen_ai_server_request_duration_seconds_count", lines, re.MULTILINE)) == 1
    logged = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {line["model"] for line in logged} == {"other"}


def test_the_policy_in_force_is_the_only_one_shown() -> None:
    made = telemetry()
    made.use(policy_for(Sim("http://h", "f"), Sim("http://h", "p"), revision="r2"), lambda: STATES, lambda: "down")
    assert len(re.findall("^gateway_policy_info{", shown(made), re.MULTILINE)) == 1
    assert 'revision="r2"' in shown(made)
    made.use(
        policy_for(Sim("http://h", "f"), Sim("http://h", "p"), tiers={"third": THIRD}), lambda: STATES, lambda: "down"
    )
    made.use(POLICY, lambda: STATES, lambda: "down")
    assert "third" not in shown(made)
    assert value(made, "gateway_store_up") == 0
    assert value(made, 'gateway_limits{kept="deny",limit="budget"}') == 1
    assert value(made, 'gateway_limits{kept="shared",limit="budget"}') == 0
    made.use(POLICY, lambda: STATES, lambda: "ok")
    assert value(made, "gateway_store_up") == 1


def test_a_line_tells_of_a_budget_that_is_used_and_has_null_for_what_there_was_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = telemetry(log=True)
    held = Facts("auto", "ann", "usual", budget="degrade", budget_used=0.98765432, budget_of="all")
    made.record(record(status=499, overhead=None))
    made.record(record(decision=Decision(held, None, ROUTE, "kept", won=0.25), route=ROUTE, overhead=0.0012345678))
    made.close()
    left, kept = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (left["overhead"], left["ttft"], left["tokens"], left["chosen"]) == (None,) * 4
    assert not {"budget", "verdict"} & left.keys()
    assert kept["budget"] == {"used": 0.987654, "then": "degrade", "of": "all"}
    assert (kept["overhead"], kept["won"], kept["chosen"], kept["rule"]) == (0.001235, 0.25, "pro", "triaged")


async def test_each_exchange_is_one_line_of_json_without_a_word_of_the_prompt(
    flash: Sim, pro: Sim, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.time() - 0.001
    async with gateway(policy_for(flash, pro), log_exchanges=True) as gate:
        fields = body(
            f"{COMPLEX} {CANARY}",
            user=CANARY,
            metadata={"x": CANARY},
            tools=[{"type": "function", "function": {"name": CANARY}}],
        )
        await gate.ask(fields, cookie=CANARY, x_other=CANARY)
        await gate.ask(body(f"{CANARY}", model=CANARY))
        await gate.ask(CANARY.encode())
        flash.config(cut_after=2)
        await gate.ask(body(CANARY, stream=True, model="flash"), x_request_id="mine")
        metrics = gate.front.doors.telemetry.render().decode()
    out = capfd.readouterr().out
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["status"] for line in lines] == [200, 404, 400, 200]
    assert [line["error"] for line in lines] == [None, "model_not_found", "invalid_json", "upstream_failed"]
    assert (lines[0]["rule"], lines[0]["verdict"]["label"], lines[0]["draft"]) == ("triaged", "complex", "wasted")
    assert began <= lines[0]["at"] <= lines[-1]["at"] <= time.time() + 0.001
    assert lines[0]["tokens"][0] > 0
    assert lines[3]["request_id"] == "mine"
    assert CANARY not in out + metrics


async def test_a_line_tells_who_was_to_answer_beside_who_did(
    flash: Sim, pro: Sim, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = policy_for(flash, pro, failover={"tiers": {"flash": ["pro"]}})
    async with gateway(policy, log_exchanges=True) as gate:
        await gate.ask(body(model="flash"))
        flash.config(status=500)
        await gate.ask(body(model="flash"))
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(line["chosen"], line["tier"]) for line in lines] == [("flash", "flash"), ("flash", "pro")]


def test_a_line_holds_what_was_decided() -> None:
    trace = Trace(77)
    given = record(
        caller=Caller("k1", "ann", "gold", "salt"), tier="pro", route=ROUTE, decision=DECISION, ttft=0.25, trace=trace
    )
    made = line(given, "auto", 1.5)
    found = msgspec.to_builtins(made)
    assert (found["trace_id"], found["ttft"], found["draft"], found["won"]) == (f"{77:032x}", 0.25, "wasted", None)
    assert (found["caller"], found["plan"], found["tier"], found["model"]) == ("ann", "gold", "pro", "auto")
    said = {"label": "complex", "p_complex": 0.9, "reason": "ok", "source": "triage", "seconds": 0.2, "cut": False}
    said |= {"strategy": "choice", "prompt": "complexity.v1"}
    assert found["verdict"] == said
    assert "salt" not in json.dumps(found)


def test_a_value_counts_in_the_bucket_that_ends_at_it_and_in_all_above() -> None:
    made = telemetry()
    for seconds in (0.0001, 0.00025, 0.0003, 5.0):
        made.record(record(overhead=seconds))
    name = "gateway_overhead_seconds"
    assert value(made, f'{name}_bucket{{le="0.00025"}}') == 2
    assert value(made, f'{name}_bucket{{le="0.0005"}}') == 3
    assert value(made, f'{name}_bucket{{le="1.0"}}') == 3
    assert value(made, f'{name}_bucket{{le="+Inf"}}') == value(made, f"{name}_count") == 4
    assert value(made, f"{name}_sum") == pytest.approx(5.00065)


async def test_lines_are_written_in_order_and_none_is_lost_at_the_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = telemetry(log=True)
    for n in range(3):
        made.record(record(id=f"a{n}"))
    await asyncio.sleep(0)
    made.record(record(id="last"))
    made.close()
    written = [json.loads(line)["request_id"] for line in capfd.readouterr().out.splitlines()]
    assert written == ["a0", "a1", "a2", "last"]


async def test_exchanges_wait_to_be_counted_until_they_are_many_or_the_policy_changes() -> None:
    made = telemetry()
    counted = made.meters.requests.cell("200", "pro")
    made.use(
        policy_for(Sim("http://h", "f"), Sim("http://h", "p"), aliases={"gold": "pro"}), lambda: STATES, lambda: "ok"
    )
    for _ in range(TOGETHER + 1):
        made.record(record(tier="pro", model="gold"))
    await asyncio.sleep(0)
    assert counted == [TOGETHER + 1]
    made.record(record(tier="pro", model="gold"))
    assert counted == [TOGETHER + 1]
    made.use(POLICY, lambda: STATES, lambda: "ok")
    assert counted == [TOGETHER + 2]
    seen = re.findall(
        r'^gen_ai_server_request_duration_seconds_count{.*model="(.+?)",gen_ai_prov.*} (.+)', shown(made), re.MULTILINE
    )
    assert seen == [("gold", f"{TOGETHER + 2}.0")], "each under the policy that it ended under"


def priced(**changes: Any) -> Policy:
    price = {"input_per_m": 1.0, "cached_input_per_m": 0.5, "output_per_m": 2.0}
    dear = {name: 10 * dollars for name, dollars in price.items()}
    sims = Sim("http://127.0.0.1:1", "flash-model"), Sim("http://127.0.0.1:2", "pro-model")
    return policy_for(*sims, tiers={"flash": {"price": price}, "pro": {"price": dear}}, **changes)


@pytest.mark.parametrize(
    ("tier", "cache", "series", "saved"),
    [
        ("flash", "miss", 'how="routed",tier="flash"', (600 + 200 + 800) * 9e-6),
        ("flash", "hit", 'how="cached",tier="flash"', (600 + 200 + 800) * 10e-6),
        ("pro", "miss", 'how="routed",tier="pro"', 0.0),
        ("pro", "coalesced", 'how="cached",tier="pro"', (600 + 200 + 800) * 10e-6),
    ],
)
def test_what_an_answer_saves_is_counted_against_the_last_tier(
    tier: str, cache: str, series: str, saved: float
) -> None:
    made = telemetry(priced())
    made.record(record(tier=tier, cache=cache, model="auto", usage=Usage(1000, 400, 400)))
    assert value(made, f"gateway_saved_usd_total{{{series}}}") == pytest.approx(saved)


def test_what_calls_come_to_is_counted_in_dollars_by_tier_and_kind() -> None:
    made = telemetry()
    costs = [Line("pro", "answer", False, 10, 0, 5, 2_500_000), Line("flash", "triage", False, 10, 0, 1, 1_000)]
    for lines in (costs, costs[:1]):
        made.record(record(tier="pro", costs=lines))
    assert value(made, 'gateway_cost_usd_total{kind="answer",tier="pro"}') == pytest.approx(0.005)
    assert value(made, 'gateway_cost_usd_total{kind="triage",tier="flash"}') == pytest.approx(0.000001)


def test_failures_that_are_alike_are_counted_each() -> None:
    made = telemetry()
    for at in range(3):
        made.record(record(id=f"{at}", status=429, error="rate_limit_exceeded", limited="requests"))
    assert value(made, 'gateway_refusals_total{code="rate_limit_exceeded"}') == 3
    assert value(made, 'gateway_limited_total{limit="requests"}') == 3


def test_an_answer_whose_server_tells_of_no_cache_saves_as_if_nothing_was_cached() -> None:
    made = telemetry(priced())
    made.record(record(tier="flash", model="auto", usage=Usage(1000, None, 400)))
    assert value(made, 'gateway_saved_usd_total{how="routed",tier="flash"}') == pytest.approx((1000 + 800) * 9e-6)


@pytest.mark.parametrize(
    ("tier", "status", "usage"),
    [
        ("gone", 200, Usage(1000, 400, 400)),
        ("flash", 499, Usage(1000, 400, 400)),
        ("flash", 200, Usage(None, None, 400)),
        ("flash", 200, Usage(1000)),
        ("flash", 200, None),
    ],
)
def test_an_answer_that_was_not_given_or_not_counted_saves_nothing(tier: str, status: int, usage: Usage | None) -> None:
    made = telemetry(priced())
    made.record(record(tier=tier, status=status, cache="miss", model="auto", usage=usage))
    assert value(made, f'gateway_saved_usd_total{{how="routed",tier="{tier}"}}') == 0.0


@pytest.mark.parametrize(("usage", "tokens"), [(Usage(7, 0, 9, events=4), 9), (Usage(events=4), 4), (None, 30)])
def test_a_kept_draft_made_what_the_server_counted_else_its_events_else_what_came_of_it(
    usage: Usage | None, tokens: int
) -> None:
    made = telemetry()
    kept = Decision(Facts("auto", "ann", "usual"), None, ROUTE, "kept", 30)
    made.record(record(tier="pro", decision=kept, usage=usage))
    assert value(made, 'gateway_draft_tokens_total{outcome="kept"}') == tokens


def test_an_answer_that_the_last_tier_would_have_given_for_less_makes_no_counter_fall() -> None:
    dear = {"input_per_m": 3.0, "cached_input_per_m": 0.1, "output_per_m": 3.0}
    cheap = {"input_per_m": 1.0, "cached_input_per_m": 0.2, "output_per_m": 1.0}
    sims = Sim("http://127.0.0.1:1", "flash-model"), Sim("http://127.0.0.1:2", "pro-model")
    made = telemetry(policy_for(*sims, tiers={"flash": {"price": cheap}, "pro": {"price": dear}}))
    for cached, saved, dearer in ((0, 2.02, 0.0), (1_000_000, 2.02, 0.08), (500_000, 2.99, 0.08)):
        made.record(record(tier="flash", model="auto", usage=Usage(1_000_000, cached, 10_000)))
        assert value(made, 'gateway_saved_usd_total{how="routed",tier="flash"}') == pytest.approx(saved)
        assert value(made, "gateway_dearer_usd_total") == pytest.approx(dearer)


def test_what_the_cache_gave_is_no_use_of_tokens() -> None:
    made = telemetry()
    for cache in ("miss", "hit", "coalesced"):
        made.record(record(tier="pro", cache=cache, model="auto", usage=Usage(7, 3, 9), stream=True, ttft=0.2))
    assert re.findall(r'gen_ai_client_token_usage_sum{.*type="(.+)"} (.+)', shown(made)) == [
        ("input", "7.0"),
        ("cached_input", "3.0"),
        ("output", "9.0"),
    ]
    assert re.findall(r"gen_ai_server_time_per_output_token_seconds_sum{.*} (.+)", shown(made)) == ["0.1"]


def test_who_got_no_answer_is_counted_by_error_with_nobodys_model() -> None:
    made = telemetry()
    made.record(record(status=503, error="overloaded", model="auto"))
    made.record(record(status=400, tier="pro", model="auto"))
    name = "gen_ai_server_request_duration_seconds_count"
    found = re.findall(rf'{name}{{error_type="(.*?)",.*gen_ai_response_model="(.*?)"}}', shown(made))
    assert found == [("overloaded", "none"), ("400", "pro-model")]


async def test_phases_add_up_to_what_the_gateway_adds(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        await gate.ask(body(COMPLEX))
        await gate.ask(body(COMPLEX, stream=True))
        await gate.ask(b"{")
        made = gate.front.doors.telemetry
    parts = {name: value(made, f'gateway_overhead_phase_seconds_sum{{phase="{name}"}}') for name in PHASES}
    assert all(seconds > 0 for seconds in parts.values())
    assert sum(parts.values()) <= value(made, "gateway_overhead_seconds_sum")
    assert value(made, 'gateway_overhead_phase_seconds_count{phase="read"}') == 2, "one was not understood"
    assert value(made, "gateway_overhead_seconds_count") == 3


def test_prometheus_reads_what_is_shown() -> None:
    made = telemetry(priced(revision='quoted "r" \\ and more'))
    made.record(
        record(tier="pro", route=Route(("pro",), 'a "rule"\\\n', "x"), decision=DECISION, model="auto", ttft=1.0)
    )
    families = {family.name: family for family in text_string_to_metric_families(shown(made))}
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram"}
    (decided,) = families["gateway_decisions"].samples
    assert decided.labels["rule"] == 'a "rule"\\\n'
    ttft = families["gen_ai_server_time_to_first_token_seconds"].samples
    assert [sample.labels["le"] for sample in ttft if sample.name.endswith("bucket")][-3:] == ["300.0", "600.0", "+Inf"]
    ends = {sample.labels.get("le") for sample in families["gen_ai_client_token_usage"].samples}
    assert ends >= {"262144.0", "1.048576e+06", "6.7108864e+07"}, "named as they were by prometheus_client"
