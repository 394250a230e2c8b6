"""Can a model be trained to need fewer experts a token?

    python -m backends.flashmoe.distill --model DIR --out DIR [--data FILE.jsonl] [--control]

Elastic self-distillation: each step runs the student with another k. The loss is the mean of the cross-entropy on the
text and the KL divergence from the frozen original with all k experts. `--control` trains for the same steps on the
same text with all experts, so that a gain from more training is not taken for one from distillation.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends.flashmoe import calib, corpus
from backends.flashmoe.policy import TopK
from backends.flashmoe.session import Plan, Session

LENGTH, BATCH = 256, 4  # tokens of a sequence, sequences of a step
WIDTHS = (8, 3, 4, 3, 2, 3)  # experts a token (k), step by step, repeated


def batches(ids: Tensor, seed: int) -> Iterator[Tensor]:
    """An endless stream of random windows of a text's ids [N]: [BATCH, LENGTH]."""
    rng = random.Random(seed)
    while True:
        starts = [rng.randrange(len(ids) - LENGTH) for _ in range(BATCH)]
        yield torch.stack([ids[start : start + LENGTH] for start in starts]).long()


def loss(student: Any, teacher: Any, ids: Tensor) -> Tensor:
    """The mean of the cross-entropy on ids [B, T] and the KL divergence from the teacher, nats a token."""
    logits = student(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    with torch.no_grad():
        told = teacher(input_ids=ids, use_cache=False).logits.flatten(0, 1).log_softmax(-1)
    text = functional.cross_entropy(logits.view(*ids.shape, -1)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    apart = functional.kl_div(logits.log_softmax(-1), told, log_target=True, reduction="batchmean")
    return (text + apart) / 2


def distill(student: Any, teacher: Any, data: Iterator[Tensor], steps: int, widths: tuple[int, ...] = WIDTHS) -> None:
    """Trains the student in place; `widths`: the k of each step, repeated."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.05)
    student.train()
    for step, width in zip(track(range(steps), "distilling"), itertools.cycle(widths), strict=False):
        with Session(student, Plan([TopK(width)]), lockstep=True):
            off = loss(student, teacher, next(data))
            off.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1}, {width} experts: {off.item():.3f}", flush=True)
    student.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="JSONL; Python's own library if not given")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    student, teacher = (AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32) for _ in range(2))
    teacher.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if args.data:
        ids = torch.tensor(tokenizer("\n".join(calib.texts(args.data)))["input_ids"])
    else:
        ids = torch.frombuffer(bytearray(corpus.text(held_out=False)), dtype=torch.uint8)
    whole = (student.config.num_experts_per_tok,)
    distill(student, teacher, batches(ids, args.seed), args.steps, whole if args.control else WIDTHS)
    student.set_experts_implementation("eager")
    student.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
