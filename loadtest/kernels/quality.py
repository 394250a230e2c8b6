"""What does each policy cost a model of 70 million parameters?   Trained here and now, then run with each.

The tiny model's kind (`backends/flashmoe/train_tiny.py`), larger: eight layers, 64 routed experts, eight of them asked.
It learns from Python's sources for half of the time, a predictor from it, and then every policy is run over text which
it never saw, as `backends/flashmoe/trials.py` does it on the tiny model.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DeepseekV4ForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from backends.flashmoe import corpus
from backends.flashmoe.experts import layers
from backends.flashmoe.measure import BATCH, LENGTH, Quality, quality
from backends.flashmoe.policy import TopK
from backends.flashmoe.predictor import Predictor
from backends.flashmoe.session import Plan
from backends.flashmoe.train_predictor import fit, samples
from backends.flashmoe.train_tiny import Size, balanced, config, learner, windows
from backends.flashmoe.trials import Bench, Point, ways
from loadtest.kernels.clock import device
from loadtest.kernels.parts import Book

TRAINING = "flashmoe-training"  # an experts implementation: grouped_mm in bf16 on fp32 weights
SAMPLED = 65_536  # tokens of each layer that a predictor learns from


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes. `training`: the part of the time for it; `sequences`: held-out ones, of LENGTH bytes."""

    size: Size
    batch: int
    training: float
    sequences: int
    steps: int  # of a head of the predictor
    most: float  # learning rate


@dataclass(frozen=True, slots=True)
class Trial:
    """A policy with its parameter, at a batch size."""

    curve: str
    knob: float
    batch: int
    plan: Callable[[float], Plan]

    @property
    def name(self) -> str:
        return f"{self.curve} {self.knob:g} B={self.batch}"


LARGE = Scale(Size(layers=8, hidden=384, inner=112, experts=64, top=8, heads=8), 64, 0.5, 160, 1500, 1.2e-3)
TINY = Scale(Size(layers=2, hidden=64, inner=32, experts=8, top=4, heads=2), 4, 0.04, 8, 10, 4e-3)


def measure(book: Book, tiny: bool) -> None:
    """Writes a point without skipping, then one for each policy there is time for."""
    scale = TINY if tiny else LARGE
    model, steps, loss = trained(scale, time.monotonic() + scale.training * book.left())
    model.requires_grad_(False).set_experts_implementation("eager")
    ids = held_out(scale.sequences)
    exact = quality(model, ids)
    bench = Bench(model, predicted(model, scale), ids, exact)
    whole = _said(bench.point("whole", Plan([TopK(scale.size.top)])))
    whole |= {"perplexity": exact.perplexity, "parameters": sum(one.numel() for one in model.parameters())}
    book.write("point", curve="whole", batch=BATCH, tokens=steps * scale.batch * LENGTH, loss=loss, **whole)
    for trial in book.within(list(trials(bench, scale, tiny)), lambda one: one.name):
        with book.figure(trial.name):
            said = _said(tried(bench, trial))
            book.write("point", curve=trial.curve, knob=trial.knob, batch=trial.batch, **said)


def tried(bench: Bench, trial: Trial) -> Point:
    """Of one policy at one knob and batch; small batches take many runs, so they get less text."""
    ids = bench.ids[: max(trial.batch, len(bench.ids) * min(trial.batch, BATCH) // BATCH)]
    some = Bench(bench.model, bench.predictor, ids, Quality(bench.exact.losses[: len(ids)]))
    return some.point(trial.name, trial.plan(trial.knob), trial.batch)


def trials(bench: Bench, scale: Scale, tiny: bool) -> Iterator[Trial]:
    """Every policy over its knobs at batch 16, the most telling first; then some at other batches."""
    made, top, experts = ways(bench), scale.size.top, scale.size.experts
    ks = [k for k in (6, 5, 4, 3, 2) if k < top] if not tiny else [2]
    dear = [0.0003 * 1.5**step for step in range(9)] if not tiny else [0.02]
    parts = [0.9, 0.8, 0.7] if not tiny else [0.7]
    budgets = [round(part * experts) for part in ((0.85, 0.75, 0.65, 0.55) if not tiny else (0.5,))]
    curves: dict[str, Sequence[float]] = {
        "price by predictor": dear,
        "OEA as published": ks,
        "top-k": ks,
        "top-k, renormalised": ks,
        "OEA by predictor": ks,
        "OEA": ks,
        "price": dear,
        "share by predictor": parts,
        "budget": budgets,
        "budget by predictor": budgets,
        "NAEE ratio": [part - 0.3 for part in parts],
        "price by oracle": dear,
        "top-k by predictor": ks,
        "top-k by oracle": ks,
    }
    for name, knobs in curves.items():
        yield from (Trial(name, knob, BATCH if not tiny else 4, made[name]) for knob in knobs)
    for batch in () if tiny else (64, 4, 1):
        yield Trial("whole", top, batch, made["top-k"])
        for name in ("price by predictor", "OEA as published"):
            yield from (Trial(name, knob, batch, made[name]) for knob in curves[name][::2])


def trained(scale: Scale, until: float) -> tuple[Any, int, float]:
    """A model, the steps that it learned until that monotonic time, and its last loss."""
    torch.manual_seed(0)
    where = device()
    ALL_EXPERTS_FUNCTIONS.register(TRAINING, bf16_experts)
    model = DeepseekV4ForCausalLM(config(scale.size)).to(where)
    model.set_experts_implementation(TRAINING)
    balanced(model)
    optimizer = learner(model, scale.most)
    data = torch.frombuffer(bytearray(corpus.text(held_out=False)), dtype=torch.uint8).to(where)
    began, step, part, loss = time.monotonic(), 0, 0.0, torch.zeros(())
    while part < 1:
        for group in optimizer.param_groups:  # the schedule goes by time, as nobody knows how many steps there will be
            group["lr"] = scale.most * min((step + 1) / 100, _cooled(part))
        starts = torch.randint(len(data) - LENGTH, (scale.batch, 1), device=where)
        ids = data[starts + torch.arange(LENGTH, device=where)].long()
        with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)  # waits for the device, so that time is real
        part = (time.monotonic() - began) / max(until - began, 1e-9)
    return model.eval(), step, loss.item()


def bf16_experts(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """A layer's experts by two grouped products, differentiable: hidden [N, H], ids and weights [N, k] -> [N, H]."""
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=experts.num_experts).cumsum(0).int()
    rows = hidden.bfloat16()[order // ids.shape[1]]
    inner = experts._apply_gate(_grouped(rows, experts.gate_up_proj, ends))
    said = _grouped(inner, experts.down_proj, ends).float() * weights.reshape(-1, 1)[order].float()
    return torch.zeros_like(hidden, dtype=torch.float32).index_add(0, order // ids.shape[1], said).to(hidden.dtype)


def predicted(model: Any, scale: Scale) -> Predictor:
    """A predictor of the model, from text that it learned from."""
    count = min(SAMPLED // LENGTH, 4 * scale.sequences)
    some = windows(corpus.text(held_out=False), count, random.Random(2)).to(device())
    kept = samples(model, some, SAMPLED)
    made = Predictor(scale.size.hidden, [experts.num_experts for experts in layers(model)]).to(device())
    for layer, sample in enumerate(kept):
        made.heads[layer] = fit(sample, scale.size.experts, scale.steps, seed=layer)
    return made.eval().requires_grad_(False)


def held_out(sequences: int) -> Tensor:
    """Held-out text: ids [sequences, LENGTH]."""
    return windows(corpus.text(held_out=True), sequences, random.Random(1)).to(device())


def _grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    made: Tensor = functional.grouped_mm(rows, weight.bfloat16().transpose(1, 2), offs=ends)
    return made


def _cooled(part: float) -> float:
    """The share of the full learning rate when so much of the time is over: a cosine to 2 %."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def _said(point: Point) -> dict[str, float]:
    return {"kept": point.kept, "distinct": point.distinct, "damage": point.damage, "error": point.error}
