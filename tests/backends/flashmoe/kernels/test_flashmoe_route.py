"""Do route and align keep what the policies keep, and is each kept slot worked on exactly once?"""

from collections import Counter

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: the kernels are not tested")
from backends.flashmoe.kernels import align, route
from backends.flashmoe.kernels.route import Rule
from backends.flashmoe.predictor import Head

RULES = {
    "all": Rule(top=6, score="sqrtsoftplus", scale=1.5),
    "share": Rule(top=4, share=0.7),
    "piggyback": Rule(top=6, score="sqrtsoftplus", scale=1.5, piggyback=True),
    "share, piggyback": Rule(top=4, share=0.5, piggyback=True),
}


def drawn(tokens: int, experts: int, budgets: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=chance) * 2
    logits[:, 0] += 3  # an expert that most keep, and that piggyback must not give to padding
    bias = torch.randn(experts, generator=chance) * 0.1
    return logits, bias, torch.tensor([budgets[row % len(budgets)] for row in range(tokens)], dtype=torch.int32)


def same_blocks(found: align.Blocks, expected: align.Blocks) -> None:
    blocks = int(expected.work[0])
    assert found.work.tolist() == expected.work.tolist()
    assert found.slots[:blocks].tolist() == expected.slots.tolist()
    assert found.expert[:blocks].tolist() == expected.expert.tolist()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("tokens", "experts"), [(1, 8), (7, 24), (20, 32), (3, 384)])
@pytest.mark.parametrize("budgets", [[9], [2], [1, 0, 3]], ids=str)
def test_the_kernel_keeps_what_the_policies_keep(rule: Rule, tokens: int, experts: int, budgets: list[int]) -> None:
    logits, bias, budget = drawn(tokens, experts, budgets)
    found = route.route(logits, bias, budget, rule, rows=16)
    ids, weights = route.reference(logits, bias, budget, rule)
    assert found.ids.tolist() == ids.tolist()
    torch.testing.assert_close(found.weights, weights)
    same_blocks(found.blocks, align.reference_blocks(ids, experts, 16))


@pytest.mark.parametrize("shift", [-25.0, -6.9, 25.0])  # 1 + exp(-25) is 1 in fp32
def test_experts_of_which_all_score_low_or_high_are_ranked_too(shift: float) -> None:
    logits, bias, budget = drawn(7, 24, [6])
    found = route.route(logits + shift, bias * 0, budget, RULES["all"], rows=16)
    ids, weights = route.reference(logits + shift, bias * 0, budget, RULES["all"])
    assert found.ids.tolist() == ids.tolist()
    torch.testing.assert_close(found.weights, weights, rtol=1e-4, atol=0)


def test_a_predictor_ranks_by_what_experts_would_say() -> None:
    torch.manual_seed(1)
    head, hidden = Head(32, 24), torch.randn(18, 32)
    logits, bias, budget = drawn(18, 24, [2])
    rule = Rule(top=6, piggyback=True)
    with torch.no_grad():
        head.out.weight *= 8  # estimates that change the order
        estimate = route.Estimate.of(head, head.trunk(hidden))
        found = route.route(logits, bias, budget, rule, 16, estimate)
        ids, weights = route.reference(logits, bias, budget, rule, head(hidden))
    assert found.ids.tolist() == ids.tolist() != route.reference(logits, bias, budget, rule)[0].tolist()
    torch.testing.assert_close(found.weights, weights)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize("repeated", [False, True])
def test_each_kept_slot_is_in_one_block_of_its_expert(seed: int, rows: int, repeated: bool) -> None:
    chance = torch.Generator().manual_seed(seed)
    tokens, experts, top = [1, 5, 16, 33, 64, 300][seed], [4, 8, 4, 16, 4, 64][seed], 3
    ids = torch.rand(tokens, experts, generator=chance).argsort(1)[:, :top].int()
    if repeated:
        ids = torch.randint(min(3, experts), (tokens, top), generator=chance, dtype=torch.int32)
    ids[torch.rand(ids.shape, generator=chance) < [0, 0.3, 0.6, 0.9, 1, 0.4][seed]] = -1
    blocks = align.align(ids.contiguous(), experts, rows)
    count, distinct = blocks.work.tolist()
    assert count <= blocks.slots.shape[0]
    worked = Counter(
        (slot, int(expert))
        for block, expert in zip(blocks.slots[:count].tolist(), blocks.expert[:count], strict=True)
        for slot in block
        if slot >= 0
    )
    asked = Counter((slot, expert) for slot, expert in enumerate(ids.reshape(-1).tolist()) if expert >= 0)
    each = Counter(expert for _, expert in asked)
    assert worked == asked
    assert distinct == len(each)
    assert count == sum(-(-slots // rows) for slots in each.values())
    same_blocks(blocks, align.reference_blocks(ids, experts, rows))
