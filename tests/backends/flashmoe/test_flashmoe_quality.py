"""Does skipping on the tiny model cost what it is said to cost?"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from backends.flashmoe import measure
from backends.flashmoe.measure import Quality
from backends.flashmoe.policy import Piggyback, Policy, Price, TopK
from backends.flashmoe.predictor import Predictor
from backends.flashmoe.session import Plan, Session


def cost(model: Any, text: Tensor, exact: Quality, plan: Plan) -> tuple[float, float]:
    """Distinct experts a step, and by how much perplexity rises."""
    with Session(model, plan, lockstep=True) as session:
        damage = measure.quality(model, text).over(exact)
        return session.distinct, damage


def published(k: int) -> Plan:
    """Batch-aware selection as published: router scores, weights renormalised."""
    return Plan([TopK(k), Piggyback()], renormalise=True)


def test_the_model_has_learned_to_read(exact: Quality) -> None:
    assert exact.perplexity < 3.8  # bytes of Python it never saw; 256 without learning


def test_a_price_reads_a_tenth_fewer_experts_than_the_published_policy_for_less_damage(
    model: Any, trained: Predictor, text: Tensor, exact: Quality
) -> None:
    read, damage = cost(model, text, exact, published(3))
    ours_read, ours_damage = cost(model, text, exact, Plan([Price(0.0021)], trained))
    assert ours_read < 0.9 * read
    assert ours_damage < damage


def test_at_equal_experts_a_price_does_half_the_damage(
    model: Any, trained: Predictor, text: Tensor, exact: Quality
) -> None:
    read, damage = cost(model, text, exact, published(3))
    ours_read, ours_damage = cost(model, text, exact, Plan([Price(0.0012)], trained))
    assert ours_read <= read
    assert ours_damage <= 0.6 * damage


def test_what_the_predictor_thinks_an_expert_is_worth_beats_the_routers_score(
    model: Any, trained: Predictor, text: Tensor, exact: Quality
) -> None:
    for k in (4, 3, 2):
        by_score, by_worth = (cost(model, text, exact, Plan([TopK(k)], who))[1] for who in (None, trained))
        assert by_worth < 0.75 * by_score


def test_weights_scaled_back_up_do_more_damage_than_weights_left_alone(
    model: Any, text: Tensor, exact: Quality
) -> None:
    policies: Sequence[Policy] = [TopK(4)]
    assert cost(model, text, exact, Plan(policies))[1] < cost(model, text, exact, Plan(policies, renormalise=True))[1]
