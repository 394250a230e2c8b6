"""From a load to replicas and cost."""

import dataclasses
import json
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


@pytest.mark.parametrize("wrong", [{"rps": 0}, {"output": 0}, {"pro": 1.5}, {"cached": -0.1}])
def test_a_load_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        parts(dataclasses.replace(LOAD, **wrong))  # type: ignore[arg-type]


def test_cost_is_what_runs() -> None:
    found = [Part("flash", 2, 1.5, 8, ""), Part("gateway", 3, 1.0, 0, "")]
    assert usd(LOAD, found, 3.0, 0.1)["hour"] == pytest.approx(8 * 3.0 + 3 * 0.1)


def test_the_command_prints_the_same_as_json_and_as_a_table() -> None:
    words = ["size", "--rps", "20", "--prompt", "1000", "--output", "300"]
    found = json.loads(sized(parser().parse_args([*words, "--json"])))
    table = sized(parser().parse_args(words))
    for part in found["parts"]:
        assert f"{part['name']:<9}{part['count']:>5}" in table
