"""Does the plug-in for vLLM read its variable, know a stranger, and hand kernels what they can take? Without vLLM."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.flashmoe.plugin import shape
from backends.flashmoe.plugin.settings import parse
from backends.flashmoe.plugin.slots import distinct, reduced, routed
from backends.flashmoe.policy import SKIPPED, Budget, Piggyback, Policy, Ratio, Share, TopK

EXPERTS, K = 12, 4
PLANS: list[tuple[Policy, ...]] = [(TopK(2),), (Share(0.7),), (Ratio(0.5),), (TopK(1), Piggyback()), (Budget(5),)]
each_plan = pytest.mark.parametrize("plan", PLANS, ids=str)
either_mark = pytest.mark.parametrize("takes_skipped", [True, False])


def asked(seed: int, tokens: int = 9) -> tuple[Tensor, Tensor]:
    """What vLLM's router gives; the last two tokens are padding."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, EXPERTS, generator=chance).argsort(1)[:, :K].int()
    weights = torch.rand(tokens, K, generator=chance) + 0.01
    ids[-2:], weights[-2:] = SKIPPED, 9  # a weight that nobody may count
    return ids, weights


def cut(seed: int, plan: tuple[Policy, ...], takes_skipped: bool, renormalise: bool = False) -> tuple[Tensor, Tensor]:
    return reduced(routed(0, EXPERTS, *asked(seed)), plan, renormalise, takes_skipped)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("mode=off", ()),
        ("mode=top-k,k=3", (TopK(3),)),
        ('{"mode": "share", "share": 0.8}', (Share(0.8),)),
        ("mode = threshold, threshold = 0.25", (Ratio(0.25),)),
        ("mode=batch-aware,k=2", (TopK(2), Piggyback())),
        ("mode=batch-aware,experts=24", (Budget(24),)),
    ],
)
def test_each_mode_becomes_its_policies(text: str, plan: tuple[Policy, ...]) -> None:
    found = parse(text)
    assert found is not None
    assert found.at(5, hashed=False) == plan


def test_an_empty_variable_is_off() -> None:
    assert parse("") is None
    assert parse("  ") is None


def test_a_named_layer_has_its_own_mode() -> None:
    found = parse('{"mode": "top-k", "k": 3, "layers": {"0-2": {"mode": "off"}, "7": {"mode": "share", "share": 0.5}}}')
    assert found is not None
    assert [found.at(layer, hashed=False) for layer in (0, 2, 3, 7)] == [(), (), (TopK(3),), (Share(0.5),)]


def test_layers_that_route_by_a_table_are_left_alone_on_request() -> None:
    for text, plan in (("mode=top-k,k=3", (TopK(3),)), ("mode=top-k,k=3,hash_layers=exact", ())):
        found = parse(text)
        assert found is not None
        assert found.at(0, hashed=True) == plan


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("top-k", "'top-k' is no name=value"),
        ("{", "Expecting property name"),
        ("mode=fast", "mode must be one of off, top-k"),
        ("k=3", "mode must be one of"),
        ("mode=top-k", "mode top-k needs k"),
        ("mode=top-k,k=0", "k must be a whole number from 1"),
        ("mode=top-k,k=2.5", "k must be a whole number"),
        ("mode=top-k,k=3,share=0.5", "mode top-k takes no 'share'"),
        ("mode=share,share=1.5", "share must be a number from 0 to 1"),
        ("mode=share,share=true", "share must be a number"),
        ("mode=batch-aware,k=2,experts=9", "needs k or experts"),
        ("mode=off,hash_layers=no", "hash_layers must be skip or exact"),
        ("mode=off,renormalise=1", "renormalise must be true or false"),
        ("mode=off,log_s=-1", "log_s must be a number from 0"),
        ('{"mode": "off", "layers": {"3-1": {"mode": "off"}}}', 'layers: "3-1" is no layer'),
        ('{"mode": "off", "layers": {"1": {"mode": "top-k"}}}', "layers 1: mode top-k needs k"),
        ('{"mode": "off", "layers": [1]}', "layers must be like"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line_that_names_the_variable(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^FLASHMOE_VLLM: ") as refused:
        parse(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@each_plan
@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_both_marks_mean_the_same_sum(plan: tuple[Policy, ...], seed: int) -> None:
    value = torch.rand(EXPERTS, generator=torch.Generator().manual_seed(seed))  # stands for what an expert answers
    sums = []
    for takes_skipped in (True, False):
        ids, weights = cut(seed, plan, takes_skipped)
        sums.append((value[ids.clamp(min=0)] * weights).sum(1))
    torch.testing.assert_close(sums[0], sums[1])


@each_plan
@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_kernel_that_knows_no_skipped_slot_gets_none_and_reads_no_more(plan: tuple[Policy, ...], seed: int) -> None:
    ids, weights = cut(seed, plan, takes_skipped=False)
    marked, _ = cut(seed, plan, takes_skipped=True)
    assert bool((ids[:-2] >= 0).all())
    assert int(distinct(ids, EXPERTS)) == int(distinct(marked, EXPERTS))
    assert bool((weights[marked == SKIPPED] == 0).all())


@each_plan
@either_mark
def test_padding_stays_padding_and_costs_no_one(plan: tuple[Policy, ...], takes_skipped: bool) -> None:
    ids, weights = cut(3, plan, takes_skipped, renormalise=True)
    alone = reduced(routed(0, EXPERTS, *(each[:-2] for each in asked(3))), plan, True, takes_skipped)
    assert bool((ids[-2:] == SKIPPED).all())
    assert bool((weights[-2:] == 0).all())
    assert torch.equal(ids[:-2], alone[0])
    assert torch.equal(weights[:-2], alone[1])


@either_mark
def test_no_policy_changes_nothing(takes_skipped: bool) -> None:
    ids, weights = asked(1)
    kept, weighed = cut(1, (), takes_skipped)
    assert torch.equal(kept, ids.long())
    assert torch.equal(weighed[:-2], weights[:-2])


def test_renormalised_weights_keep_their_sum() -> None:
    _, weights = cut(2, (TopK(1),), False, renormalise=True)
    torch.testing.assert_close(weights[:-2].sum(1), asked(2)[1][:-2].sum(1))


@each_plan
@either_mark
def test_no_step_needs_to_know_a_value_or_waits_for_the_device(plan: tuple[Policy, ...], takes_skipped: bool) -> None:
    ids, weights = (each.to("meta") for each in asked(4))  # tensors without values: looking at one fails
    fewer, lighter = reduced(routed(0, EXPERTS, ids, weights), plan, True, takes_skipped)
    assert fewer.shape == lighter.shape == ids.shape
    assert distinct(fewer, EXPERTS).shape == ()


@either_mark
def test_a_slot_is_worth_its_weight(takes_skipped: bool) -> None:
    _, weights = cut(5, (TopK(2),), takes_skipped)
    best = asked(5)[1][:-2].sort(dim=1, descending=True).values
    torch.testing.assert_close(weights[:-2].sort(dim=1, descending=True).values[:, :2], best[:, :2])
    _, few = cut(5, (Ratio(0.5),), takes_skipped)
    assert torch.equal((few[:-2] > 0).sum(1), (best >= 0.5 * best[:, :1]).sum(1))


@either_mark
def test_a_slot_that_is_not_asked_is_worth_nothing(takes_skipped: bool) -> None:
    ids, weights = torch.tensor([[3, SKIPPED, 5]]), torch.tensor([[0.6, 9.0, 0.4]])
    _, kept = reduced(routed(0, EXPERTS, ids, weights), (Ratio(0.5),), False, takes_skipped)
    torch.testing.assert_close(kept, torch.tensor([[0.6, 0.0, 0.4]]))


def test_different_experts_are_counted_once_and_skipped_ones_not() -> None:
    assert int(distinct(torch.tensor([[3, 3], [SKIPPED, 11], [0, 3]]), EXPERTS)) == 3


class Older:
    """As the layer stood before the runner took its shared experts."""

    def forward_modular(self, x: Any, topk_weights: Any, topk_ids: Any) -> Any: ...
    def forward_monolithic(self, x: Any, router_logits: Any, input_ids: Any) -> Any: ...


class Oldest:
    def forward(self, x: Any) -> Any: ...


def test_a_layer_of_another_shape_is_refused_with_what_differs() -> None:
    said = shape.other_shape(Older)
    assert said is not None
    assert said.startswith("Older.forward_modular takes self, x, topk_weights, topk_ids, not self")
    assert shape.other_shape(Oldest) == "Oldest has no forward_modular"
    assert "cannot be replaced" in str(shape.not_pluggable(Oldest))
