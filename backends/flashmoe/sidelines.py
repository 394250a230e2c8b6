"""What do guard, reuse, scheduling, pruning and offload give on the tiny model?   A table each, for `report`."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from backends.flashmoe import calib, measure, schedule
from backends.flashmoe.experts import layers, run_with
from backends.flashmoe.guard import Guard
from backends.flashmoe.offload import Offload
from backends.flashmoe.policy import Price
from backends.flashmoe.prune import prune, saliency
from backends.flashmoe.reuse import Reuse
from backends.flashmoe.session import Plan, Session, calibrated, decode
from backends.flashmoe.train_predictor import samples
from backends.flashmoe.trials import Bench, asked

Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]


def all_of(bench: Bench, price: float) -> Iterator[Table]:
    """Title, column heads and rows of each table."""
    yield guarded(bench, price)
    yield reused(bench)
    yield from scheduled(bench)
    yield pruned(bench)
    yield offloaded(bench)


def guarded(bench: Bench, price: float) -> Table:
    """Steps until a guard, calibrated on one batch of text, trips on others and on drift."""
    ids = bench.ids
    wrong = copy.deepcopy(bench.predictor)
    for head in wrong.heads:
        head.out.weight.neg_()
    noise = torch.randint(256, ids[:16].shape, generator=torch.Generator().manual_seed(0))
    rows = []
    streams = {"more held-out text": ids[16:112], "a predictor gone wrong": ids[16:48], "random bytes": noise}
    for name, stream in streams.items():
        guard = calibrated(bench.model, Plan([Price(price)], bench.predictor), ids[:16])
        after = follow(bench, guard, Plan([Price(price)], wrong if "wrong" in name else bench.predictor), stream)
        rows.append((name, guard.steps, after or "never", f"{guard.pressure:.2f}", f"{guard.strain:.2f}"))
    return "Guard, looking at one step in 16", ("stream", "steps", "tripped after", "pressure", "strain"), rows


def follow(bench: Bench, guard: Guard, plan: Plan, stream: Tensor) -> int:
    """Decodes a stream under a guard; the step at which it first tripped, 0 if it never did."""
    tripped = 0
    with Session(bench.model, plan, guard):
        for batch in stream.split(measure.BATCH):
            for _ in decode(bench.model, batch):
                tripped = tripped or (guard.steps if guard.trips else 0)
    return tripped


def reused(bench: Bench) -> Table:
    """The part of slots reused and the loss in perplexity, by the bound on the cosine similarity."""
    ids = bench.ids[:32]
    exact = measure.quality(bench.model, ids)
    rows = []
    for bound in (-1.0, 0.5, 0.8, 0.9, 0.95):
        memory = Reuse(bench.model, measure.BATCH, bound)
        losses = []
        with run_with(bench.model, memory.runners()):
            for batch in ids.split(measure.BATCH):
                memory.forget()
                losses.append(measure.quality(bench.model, batch).losses)
        damage = measure.Quality(torch.cat(losses)).over(exact)
        rows.append((f"{bound:g}", f"{memory.reused / memory.asked:.3f}", f"{damage:+.3f}"))
    return "Reuse of an expert's last answer", ("cosine at least", "slots reused", "perplexity"), rows


def scheduled(bench: Bench) -> Iterator[Table]:
    """Distinct experts that 64 requests read in a step: on four ranks, placed by chance and by profile, or in one
    batch."""
    ids = bench.ids[:64]
    slots = asked(bench.model, ids)  # [layers, 64, T, k]
    count, cut = layers(bench.model)[0].num_experts, 192
    by_layer = [torch.stack([schedule.profile(request[cut - 16 : cut], count) for request in layer]) for layer in slots]
    profiles = torch.cat(by_layer, dim=1)
    placed = schedule.place(profiles, 4)
    chance = torch.randperm(64, generator=torch.Generator().manual_seed(0)).view(4, 16).tolist()
    rows: list[tuple[object, ...]] = []
    for name, groups in (("by chance", chance), ("by profile", placed), ("one batch", [list(range(64))])):
        each = [read(slots[:, group, cut : cut + 32], count) for group in groups]
        rows.append((name, len(groups), f"{sum(each) / len(each):.2f}", f"{sum(each):.1f}"))
    yield "64 requests, by their last 16 steps", ("placed", "ranks", "distinct a rank", "distinct in all"), rows
    worth = schedule.worth_splitting(profiles, placed)
    yield "Splitting one engine's batch", ("worth it by profile",), [("yes" if worth else "no",)]


def read(slots: Tensor, experts: int) -> float:
    """Mean number of distinct experts in a layer and step: expert ids [layers, R, T, k]."""
    seen = torch.zeros(slots.shape[0], slots.shape[2], experts)
    flat = slots.transpose(1, 2).flatten(2)
    return seen.scatter(2, flat, 1.0).sum(2).mean().item()


def pruned(bench: Bench) -> Table:
    """Perplexity of the model without its least salient experts."""
    found = samples(bench.model, calibration(), 16_384)
    rows = []
    for keep in (28, 24, 20, 16):
        model = copy.deepcopy(bench.model)
        prune(model, [saliency(sample, 32) for sample in found], keep)
        damage = measure.quality(model, bench.ids).over(bench.exact)
        rows.append((keep, f"{1 - keep / 32:.0%}", f"{damage:+.3f}"))
    return "Experts cut out for good, of 32", ("experts left", "expert memory saved", "perplexity"), rows


def offloaded(bench: Bench) -> Table:
    """The hit rate of the expert cache by its size, decoding one sequence and four, with and without prefetch."""
    rows = [
        (f"{room / 32:.0%}", sequences, *(f"{hits(bench, room, sequences, ahead):.3f}" for ahead in (0, 8)))
        for room in (8, 16, 24)
        for sequences in (1, 4)
    ]
    return "Experts kept near, of 32 a layer", ("near", "sequences", "hits", "hits, 8 fetched ahead"), rows


def hits(bench: Bench, room: int, sequences: int, ahead: int) -> float:
    """The hit rate of 128 decoded steps."""
    offload = Offload(bench.model, room, ahead)
    with run_with(bench.model, offload.runners()):
        for _ in decode(bench.model, bench.ids[:sequences, :128]):
            pass
    return offload.hit_rate


def calibration() -> Tensor:
    """Text the tiny model learned from: ids [64, LENGTH]."""
    data = "\n".join(calib.texts(measure.TINY / "calibration.jsonl.gz")).encode()
    return torch.tensor(list(data[: 64 * measure.LENGTH])).view(64, measure.LENGTH)
