"""Do the claims about skipping hold?   Measures them on the tiny model; prints tables, missed goals included.

python -m backends.flashmoe.report [--elastic DIR --control DIR]
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from backends.flashmoe import measure, sidelines
from backends.flashmoe.policy import Piggyback, Price, Share, TopK
from backends.flashmoe.predictor import load
from backends.flashmoe.session import Plan
from backends.flashmoe.train_predictor import judge, samples
from backends.flashmoe.trials import Bench, Point, by_batch, by_layer, curves, damage_at, experts_at

PRICE = 0.0021  # about the predictor card's price for 0.1 perplexity


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    yield ""


def goal(name: str, found: float, least: float | None = None, most: float | None = None) -> tuple[str, ...]:
    """A row: what was measured against its bound, held or missed. NaN misses."""
    held = (least is None or found >= least) and (most is None or found <= most)
    bound = f">= {least:g}" if most is None else f"<= {most:g}"
    return (name, f"{found:.3f}", bound, "held" if held else "missed")


def policies(found: dict[str, list[Point]]) -> Iterator[str]:
    rows = [
        (name, f"{p.kept:.2f}", f"{p.distinct:.1f}", f"{p.damage:+.3f} ± {p.error:.3f}")
        for name, p in ((p.name, p) for points in found.values() for p in points)
    ]
    yield from table(("policy", "experts a token", "distinct a step", "perplexity"), rows)


def goals(found: dict[str, list[Point]]) -> list[tuple[str, ...]]:
    """The goals of the `Price` policy against the others."""
    ours, oea = found["price by predictor"], found["OEA as published"]
    at = {name: experts_at(points, 0.1) for name, points in found.items()}
    static = min(at["top-k"], at["top-k, renormalised"])
    levels = [point.distinct for point in oea if point.name[-1] in "432"]
    damages = [damage_at(ours, level) / damage_at(oea, level) for level in levels]
    ranks = [
        (learned.damage / scored.damage)
        for learned, scored in zip(found["top-k by predictor"][2:], found["top-k"][2:], strict=True)
    ]
    return [
        goal("distinct experts of static top-k over ours, at +0.1", static / at["price by predictor"], least=1.3),
        goal("part fewer than OEA as published, at +0.1", 1 - at["price by predictor"] / at["OEA as published"], 0.1),
        goal("damage of OEA's at equal experts, worst of k0 = 4, 3, 2", max(damages, default=math.nan), most=0.6),
        goal("damage of the router's ranking's, worst of k = 4, 3, 2", max(ranks), most=1),
    ]


def heads(bench: Bench) -> Iterator[str]:
    """The fit of the predictor in each layer, on the held-out text."""
    found = [
        judge(head, sample)
        for head, sample in zip(bench.predictor.heads, samples(bench.model, bench.ids, 40_960), strict=True)
    ]
    rows = [
        (layer, *(f"{value:.3f}" for value in (fit.explained, fit.usual, fit.agreement, fit.router)))
        for layer, fit in enumerate(found)
    ]
    yield from table(("layer", "variance explained", "by each expert's mean", "pairs ranked right", "by router"), rows)


def distilled(bench: Bench, elastic: Path, control: Path) -> Iterator[str]:
    """Distilled and control student at several k, against the original; also with the student's own predictor, if it
    has one."""
    rows = []
    for name, path in (("elastic", elastic), ("control", control)):
        student = Bench(AutoModelForCausalLM.from_pretrained(path).eval(), bench.predictor, bench.ids, bench.exact)
        plans = {f"top-{k}": Plan([TopK(k)]) for k in (8, 4, 3, 2)} | {"OEA 3": Plan([TopK(3), Piggyback()])}
        if (path / "predictor.safetensors").exists():
            own = load(path / "predictor.safetensors")
            plans |= {f"top-{k} by its predictor": Plan([TopK(k)], own) for k in (3, 2)}
            plans |= {f"share {share} by its predictor": Plan([Share(share)], own) for share in (0.7, 0.6, 0.5)}
            plans |= {f"price {price} by its predictor": Plan([Price(price)], own) for price in (0.0021, 0.004)}
        for how, plan in plans.items():
            point = student.point(how, plan)
            rows.append((name, how, f"{point.kept:.2f}", f"{point.distinct:.1f}", f"{point.damage:+.3f}"))
    yield from table(("student", "run with", "experts a token", "distinct a step", "against the original"), rows)


def sections(bench: Bench, args: argparse.Namespace) -> Iterator[str]:
    yield f"Whole model: perplexity {bench.exact.perplexity:.3f} on {bench.ids.numel()} bytes held out.\n"
    found = curves(bench)
    yield from policies(found)
    yield from table(("goal", "measured", "bound", "verdict"), goals(found))
    reach = [(name, f"{experts_at(points, 0.1):.1f}") for name, points in found.items()]
    yield from table(("policy", "distinct experts at +0.1"), reach)
    rows = [
        (batch, f"{whole:.1f}", f"{p.distinct:.1f}", f"{p.kept:.2f}", f"{p.damage:+.3f}")
        for batch, whole, p in by_batch(bench, PRICE)
    ]
    yield from table((f"batch, price {PRICE}", "distinct, whole", "distinct", "a token", "perplexity"), rows)
    yield f"Layer by layer: {', '.join(f'{count:.1f}' for count in by_layer(bench, PRICE))} distinct.\n"
    yield from heads(bench)
    if args.elastic and args.control:
        yield from distilled(bench, args.elastic, args.control)
    for title, head, body in sidelines.all_of(bench, PRICE):
        yield f"{title}\n"
        yield from table(head, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=160, help=f"of {measure.LENGTH} bytes; 512 at most")
    parser.add_argument("--elastic", type=Path, help="a model that `distill` made")
    parser.add_argument("--control", type=Path, help="one that `distill --control` made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(measure.TINY, dtype=torch.float32).eval().requires_grad_(False)
    ids = measure.held_out(args.sequences)
    predictor = load(measure.TINY / "predictor.safetensors")
    for line in sections(Bench(model, predictor, ids, measure.quality(model, ids)), args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
