"""Which replica answers: the same one for one conversation, a fair share for each, never a crowded one."""

import random
from collections import Counter

import pytest

from gateway.upstream.balance import BOUND, FEW, affinity, pick

CHANCE = random.Random(7)
KEYS = [affinity(f"You are a bot.\nquestion {i}") for i in range(6000)]


def urls(count: int) -> list[str]:
    return [f"http://10.0.0.{i}:8000" for i in range(count)]


@pytest.mark.parametrize("balance", ["prefix_affinity", "least_inflight", "round_robin"])
def test_one_replica_takes_everything(balance: str) -> None:
    assert pick(["http://a"], balance, {"http://a": 999}, 5) == "http://a"


def test_affinity_is_a_number_for_any_text() -> None:
    assert affinity("x") == affinity("x") != affinity("y")
    assert affinity("\ud800 half a pair") >= 0


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("balance", ["prefix_affinity", "least_inflight"])
def test_conversations_spread_evenly_over_idle_replicas(count: int, balance: str) -> None:
    shares = Counter(pick(urls(count), balance, {}, key) for key in KEYS)
    assert min(shares.values()) > 0.85 * len(KEYS) / count
    assert max(shares.values()) < 1.15 * len(KEYS) / count


def test_a_conversation_stays_with_its_replica_in_any_order_and_under_usual_load() -> None:
    for key in KEYS[:200]:
        home = pick(urls(4), "prefix_affinity", {}, key)
        assert pick(urls(4)[::-1], "prefix_affinity", dict.fromkeys(urls(4), 9), key) == home


def test_a_replica_that_goes_moves_its_own_conversations_only() -> None:
    for key in KEYS[:500]:
        home = pick(urls(5), "prefix_affinity", {}, key)
        if home != urls(5)[-1]:
            assert pick(urls(4), "prefix_affinity", {}, key) == home


def test_no_replica_is_crowded_beyond_the_bound() -> None:
    load: Counter[str] = Counter()
    for _ in range(1000):
        load[pick(urls(4), "prefix_affinity", load, KEYS[0] if CHANCE.random() < 0.9 else CHANCE.choice(KEYS))] += 1
    assert max(load.values()) <= BOUND * 1000 / 4 + 1
    assert load[pick(urls(4), "prefix_affinity", {}, KEYS[0])] > 1000 / 4


def test_a_few_calls_send_no_conversation_away_from_its_replica() -> None:
    for key in KEYS[:50]:
        home = pick(urls(8), "prefix_affinity", {}, key)
        assert pick(urls(8), "prefix_affinity", {home: FEW - 1}, key) == home
        assert pick(urls(8), "prefix_affinity", {home: FEW}, key) != home


def test_least_inflight_takes_the_emptiest_and_keeps_affinity_among_equals() -> None:
    load = dict.fromkeys(urls(3), 3) | {urls(3)[1]: 2}
    assert pick(urls(3), "least_inflight", load, KEYS[0]) == urls(3)[1]
    for key in KEYS[:50]:
        assert pick(urls(3), "least_inflight", {}, key) == pick(urls(3), "prefix_affinity", {}, key)


def test_round_robin_takes_turns() -> None:
    assert [pick(urls(3), "round_robin", {}, turn) for turn in range(4)] == [*urls(3), urls(3)[0]]
