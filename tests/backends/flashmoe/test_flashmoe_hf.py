"""Does a transformers model skip by being loaded through one class, and is it untouched where it should be?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV4Config,
    GptOssConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from backends.flashmoe import measure
from backends.flashmoe.experts import layers, mix
from backends.flashmoe.hf import FlashMoEForCausalLM
from backends.flashmoe.policy import Piggyback, Policy, Price, TopK
from backends.flashmoe.predictor import Predictor
from backends.flashmoe.session import Plan, Session

PREDICTOR = measure.TINY / "predictor.safetensors"
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": None,
}
CONFIGS: list[PreTrainedConfig] = [
    DeepseekV4Config(
        **SMALL,
        moe_intermediate_size=16,
        q_lora_rank=16,
        o_groups=2,
        o_lora_rank=8,
        n_routed_experts=8,
        hc_mult=2,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=4,
        sliding_window=16,
        partial_rotary_factor=0.5,
        mlp_layer_types=["hash_moe", "moe", "moe"],
    ),
    Qwen3MoeConfig(**SMALL, num_key_value_heads=2, num_experts=8, moe_intermediate_size=16, intermediate_size=32),
    MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=8, intermediate_size=16),
    GptOssConfig(**SMALL, num_key_value_heads=2, num_local_experts=8, intermediate_size=16),
]
each_class = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)


def made(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)  # so that biases and sinks count
    return model


@each_class
@torch.inference_mode()
def test_logits_without_skipping_are_those_of_the_eager_model(config: PreTrainedConfig) -> None:
    model, ids = made(config), torch.arange(48).view(2, 24)
    model.set_experts_implementation("eager")
    eager = model(input_ids=ids).logits
    with Session(model, Plan([]), lockstep=True):
        assert (model(input_ids=ids).logits - eager).abs().max() < 1e-5
    with Session(model, Plan([TopK(3)]), lockstep=True) as session:
        assert (model(input_ids=ids).logits - eager).abs().max() < 1e-5
        assert session.kept == 3
    with Session(model, Plan([TopK(1)]), lockstep=True) as session:
        assert (model(input_ids=ids).logits - eager).abs().max() > 1e-3
        assert session.kept == 1


@each_class
def test_a_model_of_each_class_is_saved_loaded_and_generates_as_before(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    made(config).save_pretrained(tmp_path / "plain")
    policy: list[Policy] = [TopK(2), Piggyback()]
    model = FlashMoEForCausalLM.from_pretrained(tmp_path / "plain", policy=policy).eval()
    prompt = torch.arange(1, 13).view(2, 6)
    said = model.generate(prompt, max_new_tokens=6, do_sample=False)
    assert said.shape == (2, 12)
    assert 1 <= model.flash.kept < 3
    FlashMoEForCausalLM.save(model, tmp_path / "skipping")
    again = FlashMoEForCausalLM.from_pretrained(tmp_path / "skipping").eval()
    assert again.flash.plan.policies == policy
    assert torch.equal(again.generate(prompt, max_new_tokens=6, do_sample=False), said)
    plain = FlashMoEForCausalLM.from_pretrained(tmp_path / "skipping", use_flash=False)
    assert not hasattr(plain, "flash")
    assert plain(input_ids=prompt).logits.isfinite().all()


@torch.inference_mode()
def test_a_prompt_is_run_whole_and_decoding_skips() -> None:
    model = FlashMoEForCausalLM.from_pretrained(measure.TINY, policy=[TopK(2)]).eval()
    model(input_ids=measure.held_out(2)[:, :32], use_cache=False)
    assert model.flash.kept == 0
    model(input_ids=measure.held_out(2)[:, :1], use_cache=False)
    assert model.flash.kept == 2


def test_a_budget_becomes_the_dearest_price_on_the_card_that_keeps_it() -> None:
    prices = []
    for budget in (0.05, 0.12):
        model = FlashMoEForCausalLM.from_pretrained(measure.TINY, predictor_weights=PREDICTOR, budget=budget)
        (policy,) = model.flash.plan.policies
        assert isinstance(policy, Price)
        prices.append(policy.price)
    assert 0 < prices[0] < prices[1]


def test_a_budget_needs_a_predictor_that_knows_its_price() -> None:
    with pytest.raises(ValueError, match="no price for a budget"):
        FlashMoEForCausalLM.from_pretrained(measure.TINY, budget=0.1)
    with pytest.raises(ValueError, match=r"no price for a budget of 0\.001"):
        FlashMoEForCausalLM.from_pretrained(measure.TINY, predictor_weights=PREDICTOR, budget=0.001)


def test_a_predictor_of_another_model_is_refused(tmp_path: Path) -> None:
    Predictor(64, [8]).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="of another model"):
        FlashMoEForCausalLM.from_pretrained(measure.TINY, predictor_weights=tmp_path / "other.safetensors")


def test_a_predictor_that_is_not_there_is_refused_and_not_left_out(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mistyped"):
        FlashMoEForCausalLM.from_pretrained(measure.TINY, predictor_weights=tmp_path / "mistyped.safetensors")


def test_the_predictor_is_saved_with_the_model_and_its_card(tmp_path: Path, text: Tensor) -> None:
    model = FlashMoEForCausalLM.from_pretrained(measure.TINY, predictor_weights=PREDICTOR, budget=0.1).eval()
    FlashMoEForCausalLM.save(model, tmp_path)
    again = FlashMoEForCausalLM.from_pretrained(tmp_path).eval()
    step = text[:16, :1]
    assert torch.equal(again(input_ids=step).logits, model(input_ids=step).logits)
    other = FlashMoEForCausalLM.from_pretrained(tmp_path, budget=0.05)
    assert other.flash.plan.policies[0].price < model.flash.plan.policies[0].price


@torch.inference_mode()
def test_closing_a_session_leaves_the_model_as_it_was(model: Any, text: Tensor) -> None:
    before = model(input_ids=text[:4], use_cache=False).logits
    with Session(model, Plan([TopK(1)]), lockstep=True):
        pass
    assert torch.equal(model(input_ids=text[:4], use_cache=False).logits, before)


def test_an_expert_that_no_token_asks_is_not_read(model: Any) -> None:
    experts = layers(model)[0]
    poisoned = experts.down_proj.data.clone()
    whole = experts.down_proj.data
    poisoned[[3, 31]] = torch.nan  # the last is what an id of -1 would index
    experts.down_proj.data = poisoned
    ids = torch.tensor([[1, 2, -1], [5, -1, -1]])
    out = mix(experts, torch.randn(2, 96), ids, torch.ones(2, 3))
    experts.down_proj.data = whole
    assert out.isfinite().all()


@pytest.mark.parametrize("invariant", [True, False])
@torch.inference_mode()
def test_an_answer_depends_on_its_batch_only_when_it_may(
    model: Any, trained: Predictor, text: Tensor, invariant: bool
) -> None:
    plan = Plan([Price(0.004)], trained, batch_invariant=invariant)
    with Session(model, plan, lockstep=True):
        alone = model(input_ids=text[:1], use_cache=False).logits
        together = model(input_ids=text[:16], use_cache=False).logits[:1]
    assert bool((alone - together).abs().max() < 1e-4) == invariant
