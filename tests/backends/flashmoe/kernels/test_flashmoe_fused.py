"""Does a transformers model answer by the kernels what it answers without them, and is it told where it cannot?"""

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
    Qwen3MoeConfig,
)

pytest.importorskip("triton", reason="triton is not installed: the kernels are not tested")
from backends.flashmoe import fused
from backends.flashmoe.experts import layers
from backends.flashmoe.hf import FlashMoEForCausalLM
from backends.flashmoe.policy import TopK
from backends.flashmoe.session import Plan, Session

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": None,
}
PLAIN = {**SMALL, "num_key_value_heads": 2}
V4 = DeepseekV4Config(
    **SMALL, moe_intermediate_size=64, q_lora_rank=16, o_groups=2, o_lora_rank=8, n_routed_experts=8, hc_mult=2,
    index_n_heads=2, index_head_dim=16, index_topk=4, sliding_window=16, partial_rotary_factor=0.5,
    mlp_layer_types=["hash_moe", "moe"], swiglu_limit=2.0,
)  # fmt: skip
QWEN3 = Qwen3MoeConfig(**PLAIN, num_experts=8, moe_intermediate_size=64, intermediate_size=32)
MIXTRAL = MixtralConfig(**PLAIN, num_local_experts=8, intermediate_size=64)
GPT_OSS = GptOssConfig(**PLAIN, num_local_experts=8, intermediate_size=64)
CONFIGS: list[PreTrainedConfig] = [V4, QWEN3, MIXTRAL, GPT_OSS]
each_class = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)


def made(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)  # so that biases and cuts count
    return model.to(dtype).requires_grad_(False)


def answered(experts: Any, kernels: str, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    session = Session(torch.nn.Identity(), Plan([], kernels=kernels))
    return session._mix(experts, hidden, ids, weights).float()


@each_class
def test_a_layer_of_each_class_answers_by_the_kernels_what_it_answers_without(config: PreTrainedConfig) -> None:
    experts = layers(made(config))[-1]
    exact = layers(made(config).float())[-1]
    hidden, weights = (torch.randn(20, 64) * 2).bfloat16(), torch.rand(20, 3)
    ids = torch.rand(20, 8).argsort(1)[:, :3]
    ids[::3, 1:], weights[::3, 1:] = -1, 0.0
    expected = answered(exact, "torch", hidden.float(), ids, weights)
    plain, found = (answered(experts, kernels, hidden, ids, weights) for kernels in ("torch", "triton"))
    assert (plain - expected).norm() < 0.01 * expected.norm()
    assert (found - expected).norm() < 0.01 * expected.norm()
    assert not torch.equal(found, plain)


def test_a_long_prompt_is_run_in_parts() -> None:
    experts = layers(made(QWEN3))[0]
    hidden, ids, weights = torch.randn(7, 64).bfloat16(), torch.randint(8, (7, 2)), torch.rand(7, 2)
    whole = fused.mix(experts, hidden, ids, weights)
    assert torch.equal(fused.mix(experts, hidden, ids, weights, at_once=3), whole)
    assert whole[-1].any()
    assert fused.mix(experts, hidden[:0], ids[:0], weights[:0]).shape == (0, 64)


@pytest.mark.parametrize("trained", ["hidden", "weights", "gate_up_proj", "down_proj"])
def test_nothing_that_is_trained_loses_its_gradients_to_the_kernels(trained: str) -> None:
    experts = layers(made(QWEN3))[0]
    given = {"hidden": torch.randn(2, 64).bfloat16(), "weights": torch.rand(2, 2)}
    (given | dict(experts.named_parameters()))[trained].requires_grad_()
    complaint = fused.unfit(experts, **given)
    assert "no gradients" in complaint
    with torch.no_grad():
        assert not fused.unfit(experts, **given)


@each_class
@torch.inference_mode()
def test_a_whole_model_skips_by_the_kernels_as_without(config: PreTrainedConfig) -> None:
    model, ids = made(config), torch.arange(12).view(2, 6)
    logits, kept = {}, {}
    for kernels in ("torch", "triton"):
        with Session(model, Plan([TopK(2)], kernels=kernels), lockstep=True) as session:
            logits[kernels] = model(input_ids=ids).logits.float()
            kept[kernels] = [(tally.experts, tally.slots) for tally in session.tallies]
    assert (logits["torch"] - logits["triton"]).norm() < 0.05 * logits["torch"].norm()
    assert not torch.equal(logits["torch"], logits["triton"])
    assert kept["torch"] == kept["triton"]


@torch.inference_mode()
def test_a_model_that_ran_by_the_kernels_is_saved_and_loaded_as_it_was(tmp_path: Path) -> None:
    made(GPT_OSS).save_pretrained(tmp_path / "plain")
    model = FlashMoEForCausalLM.from_pretrained(tmp_path / "plain", dtype="bfloat16", kernels="triton").eval()
    prompt = torch.arange(1, 9).view(2, 4)
    said = model.generate(prompt, max_new_tokens=2, do_sample=False)
    FlashMoEForCausalLM.save(model, tmp_path / "ran")
    again = FlashMoEForCausalLM.from_pretrained(tmp_path / "ran", dtype="bfloat16", kernels="triton").eval()
    assert torch.equal(again.generate(prompt, max_new_tokens=2, do_sample=False), said)
    for name, tensor in made(GPT_OSS).state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_weights_that_change_are_the_ones_that_are_used() -> None:
    experts = layers(made(GPT_OSS))[0]
    tokens = (torch.randn(2, 64).bfloat16(), torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.ones(2, 3))
    before = answered(experts, "triton", *tokens)
    experts.down_proj_bias += 1
    assert (answered(experts, "triton", *tokens) - before - 3).abs().max() < 0.2
    experts.down_proj.data = experts.down_proj.data * 0
    assert (
        answered(experts, "triton", *tokens) - experts.down_proj_bias.float()[:6].view(2, 3, 64).sum(1)
    ).abs().max() < 0.1


@pytest.mark.parametrize(
    ("config", "dtype", "gradients", "complaint"),
    [
        (QWEN3, torch.float32, False, "bfloat16 only"),
        (QWEN3, torch.bfloat16, True, "no gradients"),
        (Qwen3MoeConfig(**{**PLAIN, "hidden_act": "gelu"}, num_experts=8, moe_intermediate_size=64), torch.bfloat16,
         False, "activation is none of theirs"),
        (Qwen3MoeConfig(**PLAIN, num_experts=8, moe_intermediate_size=48), torch.bfloat16, False, "bf16 has no tile"),
    ],
    ids=["dtype", "gradients", "activation", "shape"],
)  # fmt: skip
def test_what_the_kernels_cannot_run_is_told_or_left_to_torch(
    config: PreTrainedConfig, dtype: torch.dtype, gradients: bool, complaint: str
) -> None:
    model, ids = made(config, dtype).requires_grad_(gradients), torch.arange(12).view(2, 6)
    with Session(model, Plan([], kernels="triton")), pytest.raises(ValueError, match=complaint):
        model(input_ids=ids)
    logits = []
    for kernels in ("auto", "torch"):
        with Session(model, Plan([], kernels=kernels)):
            logits.append(model(input_ids=ids).logits)
    assert torch.equal(*logits)


def test_kernels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="auto, torch or triton, not cuda"):
        Session(made(QWEN3), Plan([], kernels="cuda"))
