"""Do reuse, scheduling, pruning, offloading and distilling do what they say, and nothing when they are off?"""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from backends.flashmoe import distill, measure, schedule, train_tiny
from backends.flashmoe.experts import layers, run_with
from backends.flashmoe.measure import Quality
from backends.flashmoe.offload import Offload
from backends.flashmoe.policy import Price, TopK
from backends.flashmoe.predictor import Predictor
from backends.flashmoe.prune import prune, saliency
from backends.flashmoe.reuse import Reuse
from backends.flashmoe.session import Plan, Session, calibrated, decode
from backends.flashmoe.train_predictor import samples
from backends.flashmoe.trials import Point, damage_at, experts_at


@torch.inference_mode()
def logits(model: Any, ids: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def test_reuse_that_is_off_changes_nothing(model: Any, text: Tensor) -> None:
    memory = Reuse(model, sequences=4, bound=1.1)
    before = logits(model, text[:4])
    with run_with(model, memory.runners()):
        assert (logits(model, text[:4]) - before).abs().max() < 1e-4
    assert memory.reused == 0


def test_an_answer_is_used_again_only_for_an_input_that_is_near_enough(model: Any, text: Tensor) -> None:
    same = text[:4, :1].repeat(1, 8)
    shares = []
    for bound in (0.999, 0.9, 0.5):
        memory = Reuse(model, sequences=4, bound=bound)
        with run_with(model, memory.runners()):
            logits(model, text[:4])
        shares.append(memory.reused / memory.asked)
    assert shares == sorted(shares)
    assert shares[0] < 0.05
    memory = Reuse(model, sequences=4, bound=0.999)
    with run_with(model, memory.runners()):
        for step in same.split(1, dim=1):  # one token again and again, each time from nothing
            logits(model, step)
    assert memory.reused / memory.asked == pytest.approx(7 / 8)


profiles = st.integers(0, 10_000).map(
    lambda seed: torch.rand(12, 20, generator=torch.Generator().manual_seed(seed)).square()
)


@settings(max_examples=50, deadline=None)
@given(profiles, st.integers(1, 5))
def test_every_request_is_placed_once_and_ranks_are_even(found: Tensor, ranks: int) -> None:
    placed = schedule.place(found, ranks)
    assert sorted(at for rank in placed for at in rank) == list(range(12))
    assert max(map(len, placed)) - min(map(len, placed)) <= 1


@settings(max_examples=50, deadline=None)
@given(profiles, st.integers(2, 5))
def test_a_batch_that_one_pass_can_run_is_never_split(found: Tensor, ranks: int) -> None:
    assert not schedule.worth_splitting(found, schedule.place(found, ranks))


def test_requests_that_ask_alike_are_placed_together() -> None:
    kinds = torch.eye(4).repeat_interleave(5, dim=1)  # four kinds, five experts each
    found = kinds.repeat(3, 1)
    placed = schedule.place(found, 4)
    assert {tuple(sorted(at % 4 for at in rank)) for rank in placed} == {(k, k, k) for k in range(4)}
    assert sum(schedule.reads(found[rank]) for rank in placed) == 20


def test_a_profile_is_how_often_each_expert_was_asked() -> None:
    assert schedule.profile(torch.tensor([[0, 1], [1, 2]]), 4).tolist() == [0.5, 1.0, 0.5, 0.0]


def test_a_pruned_model_is_an_ordinary_smaller_checkpoint(
    model: Any, text: Tensor, exact: Quality, tmp_path: Path
) -> None:
    smaller = copy.deepcopy(model)
    found = [saliency(sample, 32) for sample in samples(model, text[:16], 2048)]
    prune(smaller, found, 24)
    smaller.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert all(experts.down_proj.shape[0] == 24 for experts in layers(again))
    assert torch.equal(logits(again, text[:2]), logits(smaller, text[:2]))
    worst = copy.deepcopy(model)
    prune(worst, [-each for each in found], 24)
    assert 0 < measure.quality(smaller, text).over(exact) < measure.quality(worst, text).over(exact)


def test_a_model_is_not_pruned_below_what_a_token_asks(model: Any) -> None:
    with pytest.raises(ValueError, match="7 experts are fewer than the 8"):
        prune(copy.deepcopy(model), [torch.rand(32)] * 3, 7)


def test_a_model_that_chooses_experts_by_groups_is_not_pruned(model: Any) -> None:
    grouped = copy.deepcopy(model)
    grouped.config.n_group = 4
    with pytest.raises(ValueError, match="chosen by groups"):
        prune(grouped, [torch.rand(32)] * 3, 24)


@pytest.mark.parametrize("room", [1, 8, 32])
def test_an_offloaded_model_answers_the_same_and_holds_no_more_than_its_room(
    model: Any, text: Tensor, room: int
) -> None:
    before = logits(model, text[:4, :32])
    offload = Offload(model, room, ahead=4)
    with run_with(model, offload.runners()):
        assert (logits(model, text[:4, :32]) - before).abs().max() < 1e-4
    assert all(len(pages.near) <= room for pages in offload.pages)


def test_what_was_foreseen_is_near_when_it_is_asked(model: Any) -> None:
    pages = Offload(model, 3).pages[0]
    pages.foresee([3, 5, 9])
    assert list(pages.near) == [3, 5, 9]
    pages.run(torch.randn(1, 96), torch.tensor([[5, 9, 1]]), torch.ones(1, 3))
    assert (pages.hits, pages.misses) == (2, 1)
    assert sorted(pages.near) == [1, 5, 9]


def test_decoding_with_the_cache_is_what_teacher_forcing_measures(model: Any, trained: Predictor, text: Tensor) -> None:
    plan = Plan([Price(0.002)], trained)
    with Session(model, plan) as session, torch.inference_mode():
        *_, last = decode(model, text[:16, :24])
    with Session(model, plan, lockstep=True) as forced:
        at_once = logits(model, text[:16, :24])[:, -1]
    assert (last - at_once).abs().max() < 1e-3
    assert session.distinct == pytest.approx(forced.distinct, abs=0.02)


def test_a_calibrated_guard_leaves_like_text_alone_and_hears_the_final_answer(
    model: Any, trained: Predictor, text: Tensor
) -> None:
    plan = Plan([Price(0.002)], trained)
    guard = calibrated(model, plan, text[:16, :96])
    assert set(guard.bounds) == {"layer 0", "layer 1", "layer 2", "kl"}
    with Session(model, plan, guard) as session:
        list(decode(model, text[16:, :96]))
        assert not guard.trips
        assert 0 < session.audit(text[16:, :32]) == guard.means["kl"]
        assert guard.strain < 2
        with pytest.raises(IndexError):
            session.audit(torch.full((1, 2), 10**6))  # no such token
        assert (session.guard, session.lockstep) == (guard, False)


def test_a_student_learns_to_do_with_fewer_experts(model: Any, text: Tensor) -> None:
    student = copy.deepcopy(model).requires_grad_(True)
    data = distill.batches(text.flatten(), 0)
    fixed = next(distill.batches(text.flatten(), 1))

    def apart() -> float:
        with torch.no_grad(), Session(student, Plan([TopK(2)]), lockstep=True):
            return distill.loss(student, model, fixed).item()

    before = apart()
    distill.distill(student, model, data, 8, (2,))
    assert apart() < before


def test_the_tiny_models_script_trains() -> None:
    made = train_tiny.train(12, 0)
    assert measure.quality(made, measure.held_out(4)).perplexity < 200  # 256 is knowing nothing
    assert all(bool((router.e_score_correction_bias != 0).any()) for router in map(gate, made.model.layers))


def gate(layer: Any) -> Any:
    return layer.mlp.gate


def test_bytes_are_tokens() -> None:
    tokenizer, text = train_tiny.tokenizer(), "def f(x):\n\treturn 'é€'\x00"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_a_curve_is_read_between_its_points_and_not_beyond() -> None:
    points = [Point("a", 4, 20, 0.2, 0), Point("b", 6, 30, 0.0, 0)]
    assert experts_at(points, 0.1) == pytest.approx(25)
    assert damage_at(points, 22) == pytest.approx(0.16)
    assert math.isnan(experts_at(points, 0.3))
