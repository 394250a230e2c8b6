"""Does the plug-in for vLLM read its variable, know a stranger, and hand kernels what they can take? Without vLLM."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.flashmoe.plugin import shape, shared
from backends.flashmoe.plugin.own import KEY, Own, brought
from backends.flashmoe.plugin.settings import Looks, parse
from backends.flashmoe.plugin.slots import LEAVES_OUT, distinct, leaves_out, masked, reduced, routed, with_brought
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
    return reading(asked(seed), plan, renormalise, takes_skipped)


def reading(
    slots: tuple[Tensor, Tensor], plan: Sequence[Policy], renormalise: bool, takes_skipped: bool
) -> tuple[Tensor, Tensor]:
    """Ids and weights that a kernel gets for what a router says."""
    routing = routed(0, EXPERTS, *slots)
    return reduced(routing, masked(routing, plan, None), renormalise, takes_skipped)


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


def test_a_requests_k_holds_where_it_is_let_and_not_in_layers_that_are_left_alone() -> None:
    rest = '"mode": "share", "share": 0.9, "layers": {"4": {"mode": "off"}}, "hash_layers": "exact"'
    for text, found in ((f"{{{rest}}}", [False] * 3), (f'{{{rest}, "requests": true}}', [False, False, True])):
        settings = parse(text)
        assert settings is not None
        layers = ((0, True), (4, False), (5, False))
        assert [settings.takes_own(layer, hashed) for layer, hashed in layers] == found


def test_a_guard_is_there_when_it_has_a_bound() -> None:
    for text, looks in (("mode=off", None), ("mode=off,guard=0.2", Looks(0.2, 64))):
        found = parse(text)
        assert found is not None
        assert found.looks == looks


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
        ("mode=threshold,threshold=1.1", "threshold must be a number from 0 to 1"),
        ("mode=batch-aware,experts=0", "experts must be a whole number from 1 to 65536"),
        ("mode=batch-aware,k=2,experts=9", "needs k or experts"),
        ("mode=off,hash_layers=no", "hash_layers must be skip or exact"),
        ("mode=off,hash_layers=[]", "hash_layers must be skip or exact, not []"),
        ("mode=[]", "mode must be one of off, top-k"),
        ("mode=off,renormalise=1", "renormalise must be true or false"),
        ("mode=off,log_s=-1", "log_s must be a number from 0"),
        ("mode=off,requests=yes", "requests must be true or false"),
        ("mode=off,guard=0", "guard must be a number from 0.0001 to 1"),
        ("mode=off,guard=0.1,every=0.5", "every must be a whole number from 1"),
        ('{"mode": "off", "layers": {"3-1": {"mode": "off"}}}', 'layers: "3-1" is no layer'),
        ('{"mode": "off", "layers": {"0-99999999": {"mode": "off"}}}', 'layers: "0-99999999" is no layer'),
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


def summed_by_places(ids: Tensor, weights: Tensor, value: Tensor) -> Tensor:
    """What a kernel adds that has one place for each token and expert, as those of TensorRT-LLM for up to 16 tokens: of
    the slots with the same expert the last one."""
    places = torch.zeros(len(ids), EXPERTS + 1)
    for which in range(ids.shape[1]):
        places.scatter_(1, ids[:, which, None].long() + 1, weights[:, which, None])
    return places[:, 1:] @ value


@each_plan
@pytest.mark.parametrize("kernel", sorted(LEAVES_OUT))
def test_no_expert_is_lost_where_a_kernel_has_one_place_for_a_token_and_expert(
    plan: tuple[Policy, ...], kernel: str
) -> None:
    value = torch.rand(EXPERTS, generator=torch.Generator().manual_seed(8)) + 1
    ids, weights = cut(8, plan, leaves_out(kernel, parallel=False))
    marked, _ = cut(8, plan, takes_skipped=True)
    kept = torch.where(marked == SKIPPED, 0, weights)
    torch.testing.assert_close(summed_by_places(ids, weights, value), (value[marked.clamp(min=0)] * kept).sum(1))


def test_a_kernel_of_which_it_is_not_known_what_it_makes_of_a_skipped_slot_is_refused() -> None:
    for kernel in ("AiterExperts", "FlashInferCuteDSLExperts", "Another"):
        with pytest.raises(LookupError):
            leaves_out(kernel, parallel=False)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_kernel_that_adds_each_slot_may_be_given_an_expert_twice(parallel: bool) -> None:
    assert not leaves_out("TritonExperts", parallel)
    assert leaves_out("HummingIndexedExperts", parallel) is not parallel
    assert leaves_out("TrtLlmMxfp4ExpertsModular", parallel)


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
    ids_alone, weights_alone = asked(3)
    alone = reading((ids_alone[:-2], weights_alone[:-2]), plan, True, takes_skipped)
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
    routing, k = routed(0, EXPERTS, ids, weights), torch.zeros(len(ids), dtype=torch.int32, device="meta")
    keep = masked(routing, with_brought(plan, k), torch.zeros(1, dtype=torch.bool, device="meta"))
    fewer, lighter = reduced(routing, keep, True, takes_skipped)
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
    _, kept = reading((ids, weights), (Ratio(0.5),), False, takes_skipped)
    torch.testing.assert_close(kept, torch.tensor([[0.6, 0.0, 0.4]]))


@each_plan
def test_a_requests_k_holds_for_its_tokens_only(plan: tuple[Policy, ...]) -> None:
    routing = routed(0, EXPERTS, *asked(6))
    k = torch.tensor([1, 0, 3, 0, 0, 1024, 0, 1, 1], dtype=torch.int32)
    keep, alone = masked(routing, with_brought(plan[:1], k), None), masked(routing, plan[:1], None)
    assert keep[[0, 2, 5]].sum(1).tolist() == [1, 3, K]
    assert bool((~keep[-2:]).all()), "padding asks for nothing, whatever it brings"
    if not isinstance(plan[0], Budget):  # which shares among all tokens
        assert torch.equal(keep[k == 0], alone[k == 0])


def test_what_the_batch_reads_anyway_is_kept_for_requests_with_a_k_too() -> None:
    ids = torch.tensor([[0, 1], [1, 2]])
    routing = routed(0, EXPERTS, ids, torch.tensor([[0.9, 0.1], [0.8, 0.2]]))
    k = torch.tensor([1, 0], dtype=torch.int32)
    assert masked(routing, with_brought((TopK(1), Piggyback()), k), None).tolist() == [[True, True], [True, False]]
    assert masked(routing, with_brought((TopK(1),), k), None).tolist() == [[True, False], [True, False]]


@each_plan
def test_with_exact_set_all_that_is_asked_is_kept(plan: tuple[Policy, ...]) -> None:
    routing = routed(0, EXPERTS, *asked(7))
    assert torch.equal(masked(routing, plan, torch.tensor([True])), routing.ids != SKIPPED)
    assert torch.equal(masked(routing, plan, torch.tensor([False])), masked(routing, plan, None))


def came(name: str, prompt: int, k: Any) -> Any:
    """vLLM's NewRequestData, as far as it is read."""
    return SimpleNamespace(req_id=name, prompt_len=prompt, sampling_params=SimpleNamespace(extra_args={KEY: k}))


def scheduled(*new: Any, finished: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set(finished))


def test_tokens_get_the_k_of_their_request_once_its_prompt_is_over() -> None:
    own = Own(8, torch.device("cpu"))
    own.learn(scheduled(came("a", 3, 1), came("b", 2, None), came("c", 1, 2)))
    own.spread(["c", "a", "b"], [1, 3, 2], [0, 0, 0])
    assert own.k.tolist() == [0] * 8, "prompts"
    own.spread(["a", "b", "c"], [2, 1, 3], [2, 2, 1])  # of a: the prompt's last token and the first after it
    assert own.k.tolist() == [0, 1, 0, 2, 2, 2, 0, 0]
    assert own.tokens == 4
    own.learn(scheduled(finished=("c",)))
    own.spread(["b", "a"], [1, 1], [3, 4])
    assert own.k.tolist() == [0, 1, 0, 0, 0, 0, 0, 0], "what the last step left is gone"
    own.learn(scheduled(came("a", 9, None), finished=("a",)))
    own.spread(["b", "a"], [1, 1], [4, 10])
    assert own.k.tolist() == [0] * 8, "the name came again without a k"


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "2", [1], None])
def test_what_is_no_k_is_none(k: Any) -> None:
    assert brought(SimpleNamespace(extra_args={KEY: k})) == 0
    assert brought(SimpleNamespace(extra_args=None)) == brought(None) == 0


def test_workers_figures_are_read_by_the_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared.FOLDER, str(tmp_path))
    shared.tell("0.0", {"asked": 3})
    shared.tell("0.1", {"asked": 4})
    shared.tell("0.0", {"asked": 5})
    assert shared.told() == {"0.0": {"asked": 5}, "0.1": {"asked": 4}}
    (shared.folder() / "0.1.new").mkdir()  # nothing can be written there
    shared.tell("0.1", {"asked": 7})
    assert shared.told()["0.1"] == {"asked": 4}
    monkeypatch.setenv(shared.FOLDER, str(tmp_path / "gone"))
    shared.tell("0.0", {"asked": 6})
    assert shared.told() == {}


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
