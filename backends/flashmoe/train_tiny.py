"""How was the tiny model made? This script made it.

    python -m backends.flashmoe.train_tiny --out backends/flashmoe/tiny

A byte-level DeepSeek-V4 of about a million parameters: three layers, 32 routed experts with top_k 8, one shared,
`sqrtsoftplus` scores, load balancing by a selection bias (no auxiliary loss). One thread, about 20 minutes.
"""

import argparse
import gzip
import json
import math
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, PreTrainedTokenizerFast
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter

from backends.flashmoe import corpus

LENGTH, BATCH = 256, 4  # bytes of a sequence, sequences of a step
BALANCE = 2e-3  # step size of an expert's selection bias
HELD_OUT = 512  # shipped sequences, of files that are not trained on
CALIBRATION, STRETCH = 192, 2048  # shipped excerpts of the training text, and their bytes


@dataclass(frozen=True, slots=True)
class Size:
    """The dimensions of a model."""

    layers: int
    hidden: int
    inner: int  # an expert's intermediate size
    experts: int
    top: int  # k
    heads: int


SHIPPED = Size(layers=3, hidden=96, inner=32, experts=32, top=8, heads=4)


def config(size: Size = SHIPPED) -> DeepseekV4Config:
    """A small V4 without compressed attention, which sequences of 256 bytes do not need."""
    return DeepseekV4Config(
        vocab_size=256,
        hidden_size=size.hidden,
        moe_intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        head_dim=32,
        q_lora_rank=size.hidden // 2,
        o_groups=2,
        o_lora_rank=size.hidden // 4,
        partial_rotary_factor=0.5,
        sliding_window=128,
        max_position_embeddings=4096,
        num_experts_per_tok=size.top,
        n_routed_experts=size.experts,
        layer_types=["sliding_attention"] * size.layers,
        mlp_layer_types=["moe"] * size.layers,
        hc_mult=2,
        hc_sinkhorn_iters=3,
        initializer_range=0.05,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; a token's id is the byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # ByteLevel writes these as they are
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    raw = Tokenizer(models.BPE(vocab=letters, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def windows(data: bytes, count: int, rng: random.Random) -> torch.Tensor:
    """`count` random windows of the text: ids [count, LENGTH]."""
    starts = [rng.randrange(len(data) - LENGTH) for _ in range(count)]
    return torch.tensor([list(data[start : start + LENGTH]) for start in starts])


def balance(router: DeepseekV4TopKRouter, _: object, out: tuple[torch.Tensor, ...]) -> None:
    """Forward hook: lowers the selection bias of experts with more than the mean number of tokens, raises others'."""
    if router.training:
        asked = torch.bincount(out[2].reshape(-1), minlength=router.num_experts).float()
        router.e_score_correction_bias += BALANCE * torch.sign(asked.mean() - asked)


def rate(step: int, steps: int) -> float:
    """The share of the full learning rate: a short warm-up, then a cosine to 2 %."""
    return min((step + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def balanced(model: DeepseekV4ForCausalLM) -> None:
    """Hooks `balance` to every router; it acts in training mode only."""
    for router in (module for module in model.modules() if isinstance(module, DeepseekV4TopKRouter)):
        router.register_forward_hook(balance)


def learner(model: DeepseekV4ForCausalLM, most: float) -> torch.optim.Optimizer:
    """The optimiser, with a peak learning rate of `most`."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=most, betas=(0.9, 0.95), fused=True)


def train(steps: int, seed: int) -> DeepseekV4ForCausalLM:
    """A model trained for so many steps; reproducible with the same library, seed and machine."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    data = corpus.text(held_out=False)
    model = DeepseekV4ForCausalLM(config())
    model.set_experts_implementation("grouped_mm")
    balanced(model)
    optimizer = learner(model, 4e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, steps=steps))
    for step in track(range(steps), "training"):
        ids = windows(data, BATCH, rng)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 250 == 249:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def save(model: DeepseekV4ForCausalLM, out: Path) -> None:
    """Writes the checkpoint (matrices in bf16), its tokenizer, the held-out text and the calibration text."""
    state = {name: t.bfloat16() if t.ndim >= 2 else t for name, t in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    tokenizer().save_pretrained(out)
    held_out = bytes(windows(corpus.text(held_out=True), HELD_OUT, random.Random(1)).flatten().tolist())
    (out / "held_out.bin.gz").write_bytes(gzip.compress(held_out, mtime=0))
    data, rng = corpus.text(held_out=False), random.Random(2)
    starts = (rng.randrange(len(data) - STRETCH) for _ in range(CALIBRATION))
    lines = (json.dumps({"text": data[start : start + STRETCH].decode(errors="ignore")}) for start in starts)
    (out / "calibration.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    save(train(args.steps, args.seed), args.out)
    print(f"text {corpus.digest(corpus.text(held_out=False))}, held out {corpus.digest(corpus.text(held_out=True))}")


if __name__ == "__main__":
    main()
