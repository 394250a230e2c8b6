"""How is a predictor trained for a model?

    python -m backends.flashmoe.train_predictor --data FILE.jsonl --model DIR --out predictor.safetensors

Runs the model over the text once and keeps, for a sample of tokens, the router's input and the norms of the selected
experts' outputs; fits a head to each layer; evaluates on the last tenth of the text, which is held out; and finds there
the threshold of `Price` for each perplexity budget. All of that goes as the card into the file's header. An interrupted
run of the same model, text and numbers resumes with the layers that are missing.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends.flashmoe import calib, measure
from backends.flashmoe.calib import Sample
from backends.flashmoe.experts import layers
from backends.flashmoe.policy import Price
from backends.flashmoe.predictor import Head, Predictor
from backends.flashmoe.session import Plan, Session

BUDGETS = (0.02, 0.05, 0.1, 0.2)  # increases of perplexity for which the card has a price
HELD_OUT = 0.1  # the part of the text that is not trained on
LEAST = 10  # pieces of text


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a head does on held-out tokens."""

    explained: float  # explained variance (R squared) of the log norms
    usual: float  # the same of each expert's mean log norm, independent of the token
    agreement: float  # the part of a token's pairs of slots that are ranked as by true worth
    router: float  # the same of the router weights alone


def fit(sample: Sample, experts: int, steps: int, seed: int = 0) -> Head:
    """A head fitted by least squares to the log norms of the sample's slots, on its device."""
    torch.manual_seed(seed)
    head = Head(sample.hidden.shape[1], experts).to(sample.hidden.device)
    norms = sample.norms.clamp_min(1e-6).log()
    head.out.bias.data.copy_(means(sample.ids, norms, experts))
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in track(range(steps), "learning"):
        rows = torch.randint(len(sample), (1024,))
        off = head(sample.hidden[rows].float()).gather(1, sample.ids[rows]) - norms[rows]
        optimizer.zero_grad()
        off.square().mean().backward()
        optimizer.step()
        schedule.step()
    return head.eval().requires_grad_(False)


def means(ids: Tensor, norms: Tensor, experts: int) -> Tensor:
    """Each expert's mean of `norms` [N, k] over its slots in `ids` [N, k], 0 without one: [E]."""
    asked = torch.bincount(ids.flatten(), minlength=experts).clamp_min(1)
    return norms.new_zeros(experts).index_add(0, ids.flatten(), norms.flatten()) / asked


def judge(head: Head, sample: Sample) -> Fit:
    """Evaluates a head on a sample."""
    norms = sample.norms.clamp_min(1e-6).log()
    estimate = head(sample.hidden.float()).gather(1, sample.ids)
    explained = 1 - (estimate - norms).square().mean() / norms.var()
    usual = 1 - (means(sample.ids, norms, head.out.out_features)[sample.ids] - norms).square().mean() / norms.var()
    true = sample.weights * sample.norms
    return Fit(
        explained.item(),
        usual.item(),
        agreement(sample.weights * estimate.exp(), true),
        agreement(sample.weights, true),
    )


def agreement(first: Tensor, second: Tensor) -> float:
    """The part of all pairs in a row that `first` and `second` [N, k] rank alike; 0.5 is chance."""
    orders = [torch.sign(values[:, :, None] - values[:, None, :]) for values in (first, second)]
    pairs = first.shape[0] * first.shape[1] * (first.shape[1] - 1)
    return ((orders[0] * orders[1]) > 0).sum().item() / pairs


def prices(model: Any, predictor: Predictor, ids: Tensor) -> dict[str, float]:
    """By budget, the largest threshold of `Price` found whose increase of perplexity on ids [N, T] is within it; by
    bisection."""
    exact = measure.quality(model, ids)
    found = {}
    for budget in BUDGETS:
        low, high = 1e-5, 1e-1
        for _ in track(range(7), f"price of {budget}"):
            middle = (low * high) ** 0.5
            with Session(model, Plan([Price(middle)], predictor), lockstep=True):
                dear = measure.quality(model, ids).over(exact) > budget
            low, high = (low, middle) if dear else (middle, high)
        found[f"{budget:g}"] = low
    return found


def encode(tokenizer: Any, data: Path, length: int) -> Tensor:
    """The text in `data` as ids [N, length]; a shorter rest is dropped."""
    ids = tokenizer("\n".join(calib.texts(data)))["input_ids"]
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length)


def samples(model: Any, ids: Tensor, tokens: int) -> list[Sample]:
    """For each MoE layer a sample of so many `tokens` of ids [N, T]."""
    with calib.capture(model, tokens) as kept:
        for batch in track(ids.split(measure.BATCH), "capturing"):
            model(input_ids=batch, use_cache=False)
    return [reservoir.sample() for reservoir in kept]


def heads(learned: Sequence[Sample], experts: Sequence[int], steps: int, resume: Path) -> Predictor:
    """Fits the heads of all layers. Each is saved in the folder `resume` when done, and loaded if present."""
    predictor = Predictor(learned[0].hidden.shape[1], experts)
    resume.mkdir(parents=True, exist_ok=True)
    for layer, sample in enumerate(learned):
        done = resume / f"layer{layer}.pt"
        if not done.exists():
            torch.save(fit(sample, experts[layer], steps, seed=layer).state_dict(), done)
        predictor.heads[layer].load_state_dict(torch.load(done))
    return predictor.eval().requires_grad_(False)


def make(model: Any, ids: Tensor, tokens: int, steps: int, resume: Path) -> Predictor:
    """A predictor, with figures on its card, from ids [N, T]."""
    at = round(len(ids) * (1 - HELD_OUT))
    unseen = samples(model, ids[at:], tokens)
    counts = [experts.num_experts for experts in layers(model)]
    predictor = heads(samples(model, ids[:at], tokens), counts, steps, resume)
    fits = [judge(head, sample) for head, sample in zip(predictor.heads, unseen, strict=True)]
    predictor.card = {
        "tokens": min(tokens, ids[:at].numel()),
        "layers": [asdict(each) for each in fits],
        "prices": prices(model, predictor, ids[at:]),
    }
    return predictor


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=262_144, help="sampled of each layer")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    ids = encode(AutoTokenizer.from_pretrained(args.model), args.data, measure.LENGTH)
    if len(ids) < LEAST:
        parser.exit(1, f"{args.data}: {len(ids)} times {measure.LENGTH} tokens; at least {LEAST} times are needed\n")
    resume, names = args.out.with_suffix(".part"), {"model": digest(args.model / "model.safetensors")}
    names["data"] = digest(args.data)
    run = "-".join([*names.values(), str(args.tokens), str(args.steps)])
    predictor = make(model, ids, args.tokens, args.steps, resume / run)
    predictor.card |= names
    predictor.save(args.out)
    shutil.rmtree(resume)
    print(json.dumps(predictor.card, indent=1))


def digest(path: Path) -> str:
    """The first twelve hex digits of a file's SHA-256, "" without a file; on the card it names model and data."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else ""


if __name__ == "__main__":
    main()
