"""From a load to replicas and cost."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from backends.recipes.__main__ import parser, sized
from backends.recipes.size import PRICES, SPEEDS, Load, Part, parts, usd
from backends.sim.settings import TIERS

POLICY = Path(__file__).parents[3] / "policies/hosted.yaml"
LOAD = Load(rps=20, prompt=1000, output=300, pro=0.25)


def by_name(load: Load) -> dict[str, Part]:
    return {part.name: part for part in parts(load)}


@pytest.mark.parametrize("tier", SPEEDS)
def test_speeds_are_those_of_the_simulated_servers(tier: str) -> None:
    assert SPEEDS[tier].prefill * 1000 == pytest.approx(TIERS[tier].prefill_time_per_token, rel=0.01)


def test_prices_are_those_of_the_policy_for_the_hosted_api() -> None:
    for name, tier in yaml.safe_load(POLICY.read_text())["tiers"].items():
        assert PRICES[name] == tuple(tier["price"].values())


@pytest.mark.parametrize("tier", SPEEDS)
def test_the_published_load_takes_one_replica_all_of_its_time(tier: str) -> None:
    speed = SPEEDS[tier]
    for point in speed.points:
        took = point.ttft + 1023 * point.tpot
        each = 8192 * speed.prefill + 1024 * speed.decode(point)
        assert each * point.concurrency == pytest.approx(took)


def test_twice_the_requests_keep_twice_as_much_busy() -> None:
    once, twice = by_name(LOAD), by_name(dataclasses.replace(LOAD, rps=40))
    for name, part in once.items():
        assert twice[name].busy == pytest.approx(2 * part.busy)
        assert twice[name].count >= part.count


def test_no_share_for_pro_needs_no_pro_and_all_of_it_leaves_flash_the_verdicts() -> None:
    assert by_name(dataclasses.replace(LOAD, pro=0.0))["pro"].count == 0
    verdicts = by_name(dataclasses.replace(LOAD, pro=1.0))["flash"]
    assert 0 < verdicts.busy < by_name(LOAD)["flash"].busy


def test_a_prefix_cache_saves_prefill_only() -> None:
    cold, warm = by_name(LOAD)["pro"].busy, by_name(dataclasses.replace(LOAD, cached=1.0))["pro"].busy
    assert cold - warm == pytest.approx(20 * 0.25 * 1000 * SPEEDS["pro"].prefill)


def test_a_stricter_pace_takes_more_servers_and_one_that_nobody_published_is_refused() -> None:
    strict = dataclasses.replace(LOAD, rps=500, tpot=0.03)
    assert by_name(strict)["flash"].busy > by_name(dataclasses.replace(strict, tpot=0.2))["flash"].busy
    with pytest.raises(ValueError, match="TPOT of at most 1 ms"):
        parts(dataclasses.replace(LOAD, tpot=0.001))


@pytest.mark.parametrize(
    "wrong", [{"rps": 0}, {"rps": math.inf}, {"output": 0}, {"pro": 1.5}, {"cached": -0.1}, {"cached": 1.1}]
)
def test_a_load_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        parts(dataclasses.replace(LOAD, **wrong))  # type: ignore[arg-type]


def test_what_a_load_keeps_busy_is_what_its_tokens_take() -> None:
    """Of half of the prompts' tokens, the verdicts and three quarters of the answers on Flash, the others on Pro."""
    found = by_name(Load(rps=3000, prompt=1000, output=300, pro=0.25, cached=0.5))
    flash = ((1.618 + 1023 * 0.03805) / 64 - 0.268) / 1024  # seconds for a token of the answer, at 64 at once
    pro = ((0.684 + 1023 * 0.02583) / 16 - 0.543) / 1024
    assert found["flash"].busy == pytest.approx(3000 * (500 * 0.268 / 8192 + (10 + 0.75 * 300) * flash))
    assert found["pro"].busy == pytest.approx(3000 * 0.25 * (500 * 0.543 / 8192 + 300 * pro))
    assert found["gateway"].busy == pytest.approx(3000 * (512 + 27.7 * 300) / 1e6)
    assert found["valkey"].busy == pytest.approx(3000 * 230 / 1e6)
    counts = {name: (part.count, part.gpus) for name, part in found.items()}
    assert counts == {"flash": (430, 1720), "pro": (397, 3176), "gateway": (45, 0), "valkey": (2, 0)}
    assert found["flash"].note == "h200x4 each, up to 64 at once, TPOT 38.0 ms"
    assert found["gateway"].note == "processes of one core; at most 45000 streams at once"


def test_a_small_load_has_two_gateways_and_the_pace_that_was_published_is_kept() -> None:
    found = by_name(dataclasses.replace(LOAD, rps=0.5, tpot=0.03805))
    assert [(part.name, part.count) for part in found.values()][2:] == [("gateway", 2), ("valkey", 1)]
    assert "up to 64 at once" in found["flash"].note


def test_the_hosted_api_is_paid_for_answers_by_their_tier_and_for_verdicts_on_what_pro_answers() -> None:
    told = usd(dataclasses.replace(LOAD, cached=0.5), [Part("gateway", 3, 1.0, 0, "")], 3.0, 0.24)
    flash, pro = 500 * 0.3 + 500 * 0.006, 500 * 1.32 + 500 * 0.044
    answers = 0.75 * (flash + 300 * 1.2) + 0.25 * (pro + 300 * 3.96)
    assert told["hosted_million"] == pytest.approx(answers + 0.25 * flash + 10 * 1.2)
    assert told["million"] == pytest.approx(3 * 0.24 / (20 * 3600) * 1e6) == 10.0


def test_cost_is_what_runs() -> None:
    found = [Part("flash", 2, 1.5, 8, ""), Part("gateway", 3, 1.0, 0, "")]
    assert usd(LOAD, found, 3.0, 0.1)["hour"] == pytest.approx(8 * 3.0 + 3 * 0.1)


def test_the_command_prints_the_same_as_json_and_as_a_table() -> None:
    words = ["size", "--rps", "20", "--prompt", "1000", "--output", "300"]
    found = json.loads(sized(parser().parse_args([*words, "--json"])))
    table = sized(parser().parse_args(words))
    for part in found["parts"]:
        assert f"{part['name']:<9}{part['count']:>5}" in table
