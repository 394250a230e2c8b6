"""Do policies keep what they say they keep?"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.flashmoe.policy import (
    SKIPPED,
    Budget,
    LayerPlan,
    Piggyback,
    Policy,
    Price,
    Ratio,
    Routing,
    Share,
    TopK,
    decide,
    named,
    per_expert,
    rank,
    skip,
    written,
)

EXPERTS, K = 12, 4
POLICIES: list[list[Policy]] = [
    [TopK(2)],
    [Share(0.7)],
    [Ratio(0.5)],
    [TopK(1), Piggyback()],
    [Budget(5)],
    [Price(0.02)],
    [LayerPlan({0: [TopK(3)], 1: [TopK(1)]})],
    [Share(0.9), Budget(4), Piggyback()],
]
each_policy = pytest.mark.parametrize("policies", POLICIES, ids=str)


def routed(seed: int, tokens: int = 24, steps: int = 3, layer: int = 0) -> Routing:
    chance = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, EXPERTS, generator=chance).argsort(1)[:, :K]
    weights = torch.rand(tokens, K, generator=chance) + 0.01
    worth = weights * (torch.rand(tokens, K, generator=chance) + 0.05)
    step = torch.randint(steps, (tokens,), generator=chance)
    return Routing(layer, EXPERTS, ids, weights, worth, step)


def read(routing: Routing, keep: Tensor) -> Tensor:
    """Distinct experts of each step."""
    return (per_expert(routing, keep.float()) > 0).sum(1)


seeds = given(seed=st.integers(0, 10_000))
quick = settings(max_examples=40, deadline=None)


@each_policy
@quick
@seeds
def test_every_token_keeps_at_least_one_expert(policies: list[Policy], seed: int) -> None:
    assert bool(decide(routed(seed), policies).any(1).all())


@each_policy
@quick
@seeds
def test_less_pressure_never_reads_more_slots_away(policies: list[Policy], seed: int) -> None:
    routing = routed(seed)
    eased = decide(routing, [policy.eased(0.5) for policy in policies])
    assert eased.sum() >= decide(routing, policies).sum()
    free = decide(routing, [policy.eased(1e-9) for policy in policies])
    assert bool(free.all())


@each_policy
@quick
@seeds
def test_the_order_of_the_slots_does_not_matter(policies: list[Policy], seed: int) -> None:
    routing = routed(seed)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    ids, weights, worth = (column[:, order] for column in (routing.ids, routing.weights, routing.worth))
    turned = Routing(0, EXPERTS, ids, weights, worth, routing.step)
    assert torch.equal(decide(turned, policies), decide(routing, policies)[:, order])


@each_policy
def test_a_policy_survives_being_written(policies: list[Policy]) -> None:
    assert [named(written(policy)) for policy in policies] == policies


@quick
@seeds
def test_top_k_keeps_the_k_worth_most(seed: int) -> None:
    routing = routed(seed)
    keep = decide(routing, [TopK(2)])
    assert bool((keep.sum(1) == 2).all())
    kept, left = routing.worth.masked_fill(~keep, 9), routing.worth.masked_fill(keep, -9)
    assert bool((kept.amin(1) >= left.amax(1)).all())


@quick
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.99))
def test_a_share_is_reached_and_not_without_the_last_slot(seed: int, share: float) -> None:
    routing = routed(seed)
    keep = decide(routing, [Share(share)])
    kept, total = routing.worth * keep, routing.worth.sum(1)
    assert bool((kept.sum(1) >= share * total - 1e-6).all())
    least = routing.worth.masked_fill(~keep, 9).amin(1)
    assert bool((kept.sum(1) - least < share * total + 1e-6).all())


@quick
@seeds
def test_piggyback_adds_slots_and_no_experts(seed: int) -> None:
    routing = routed(seed)
    first, both = decide(routing, [TopK(2)]), decide(routing, [TopK(2), Piggyback()])
    assert bool((both | ~first).all())
    assert torch.equal(read(routing, first), read(routing, both))


@quick
@given(seed=st.integers(0, 10_000), experts=st.integers(1, EXPERTS))
def test_a_budget_is_kept_but_for_tokens_that_would_be_left_with_none(seed: int, experts: int) -> None:
    routing = routed(seed)
    keep = decide(routing, [Budget(experts)])
    alone = keep.sum(1) == 1  # its one slot may be the one put back
    assert bool((read(routing, keep & ~alone[:, None]) <= experts).all())


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=str)
def test_a_budget_keeps_the_same_experts_in_whatever_order_their_worth_is_summed(order: list[int]) -> None:
    ids = torch.tensor([[0, 1], [1, 2], [1, 3]])[order]
    worth = torch.tensor([[1.0, 1.0], [2.0**-24, 0.0], [2.0**-24, 0.0]])[order]  # in fp32 1 + 2 ** -24 is 1
    routing = Routing(0, 4, ids, worth, worth, torch.zeros(3, dtype=torch.int64))
    assert read(routing, Budget(1)(routing, torch.ones_like(ids, dtype=torch.bool))).tolist() == [1]
    assert Budget(1)(routing, torch.ones_like(ids, dtype=torch.bool))[order.index(0)].tolist() == [False, True]


@quick
@seeds
def test_what_is_read_at_a_price_is_read_at_every_lower_one(seed: int) -> None:
    routing = routed(seed)
    masks = [Price(price)(routing, torch.ones(24, K, dtype=torch.bool)) for price in (0.0, 0.005, 0.02, 0.08, 1.0)]
    assert all(bool((cheap | ~dear).all()) for cheap, dear in itertools.pairwise(masks))
    assert bool(masks[0].all())
    assert not bool(masks[-1].all())


@quick
@seeds
def test_steps_do_not_see_each_other(seed: int) -> None:
    routing = routed(seed, steps=2)
    mine = routing.step == 0
    alone = Routing(0, EXPERTS, routing.ids[mine], routing.weights[mine], routing.worth[mine], routing.step[mine])
    several: list[list[Policy]] = [[TopK(1), Piggyback()], [Budget(4)], [Price(0.02)]]
    for policies in several:
        assert torch.equal(decide(alone, policies), decide(routing, policies)[mine])


def test_a_plan_treats_each_layer_by_its_own_policies() -> None:
    plan = LayerPlan({0: [TopK(3)], 1: [TopK(1)]})
    assert [int(decide(routed(1, layer=layer), [plan]).sum(1)[0]) for layer in (0, 1, 2)] == [3, 1, K]


def test_kept_weights_stay_as_they_are_unless_asked_up_to_their_sum() -> None:
    routing = routed(3)
    keep = decide(routing, [TopK(2)])
    ids, weights = skip(routing, keep)
    assert torch.equal(weights[keep], routing.weights[keep])
    assert bool((ids[~keep] == SKIPPED).all())
    assert bool((weights[~keep] == 0).all())
    _, sums = skip(routing, keep, renormalise=True)
    assert torch.allclose(sums.sum(1), routing.weights.sum(1))


def test_the_first_of_equals_ranks_first() -> None:
    assert rank(torch.tensor([[2.0, 5.0, 5.0, 1.0]])).tolist() == [[2, 0, 1, 3]]
