"""Is each goal met?   From the results of the commands: met, missed, or not measured, with the reason."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.flashmoe.costmodel import between
from loadtest.kernels.plan import FULL, OURS

Row = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]  # of each command, by its name
DAMAGE = 0.1  # perplexity that a policy may cost
LAYER = ("v4-flash", "mxfp4"), ("qwen3-30b", "bf16")  # shapes of 128 experts and more
PRICE, OEA, STATIC = "price by predictor", "OEA as published", ("top-k", "top-k, renormalised")


@dataclass(frozen=True, slots=True)
class Goal:
    """`least` or `most`: the bound. `found`: NaN where nothing was measured; `note`: the case that was the worst."""

    name: str
    found: float
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def bound(self) -> str:
        return f">= {self.least:g}" if self.most is None else f"<= {self.most:g}"

    @property
    def met(self) -> bool:
        """Whether the bound holds; False for NaN."""
        return self.found >= self.least if self.least is not None else self.found <= (self.most or 0.0)


def verdict(goal: Goal, counts: bool) -> str:
    """`counts`: the figures were measured on a GPU at full shapes."""
    if not counts:
        return "no GPU figure"
    if math.isnan(goal.found):
        return "not measured"
    return "met" if goal.met else "missed"


def goals(results: Results) -> list[Goal]:
    """Every goal, whether or not its command was run."""
    grid, quality, serve = (results.get(name, {}) for name in ("grid", "quality", "serve"))
    rows, read = grid.get("rows", []), grid.get("ceilings", {}).get("read", math.nan)
    points, times = quality.get("points", []), serve.get("times", [])
    return [
        right(grid.get("correct", [])),
        efficiency(rows),
        bandwidth(rows, read, 8, 64, 0.8),
        bandwidth(rows, read, 1, 1, 0.6),
        beside(rows),
        *(layer(grid, points, *which) for which in LAYER),
        *damages(points),
        speedup(times, "ttft", 4.0),
        speedup(times, "tpot", 5.0),
    ]


def right(checks: Sequence[Row]) -> Goal:
    worst = max(checks, key=lambda one: one["error"], default=None)
    name = "error against torch, worst of the checks"
    if worst is None:
        return Goal(name, math.nan, most=0.01)
    note = f"{len(checks)} checks; {worst['shape']} {worst['format']} B={worst['batch']} {worst['mask']}"
    return Goal(name, worst["error"], most=0.01, note=note)


def efficiency(rows: Sequence[Row]) -> Goal:
    """The part of the time saved over the part of the bytes saved, for each mask at up to 64 tokens."""
    found = [(paid(one, whole), named(one)) for one, whole in skipped(rows) if one["batch"] <= 64]
    held = f"{sum(value <= 1.10 for value, _ in found)} of {len(found)} hold"
    return worst("time(skip)/time(full) over bytes(skip)/bytes(full)", found, most=1.10, of=held)


def skipped(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Our rows with a mask, each paired with the same case without one."""
    keys = ("shape", "format", "batch", "routing")
    whole = {tuple(one[key] for key in keys): one for one in own(rows) if one["mask"] == FULL.name}
    for one in own(rows):
        same = whole.get(tuple(one[key] for key in keys))
        if same is not None and one["mask"] != FULL.name:
            yield one, same


def paid(one: Row, whole: Row) -> float:
    """How much more time is left than bytes are; 1 where time is bytes."""
    return float(one["seconds"] / whole["seconds"] / (one["bytes"] / whole["bytes"]))


def bandwidth(rows: Sequence[Row], read: float, least: int, most: int, bound: float) -> Goal:
    """Of reading alone, on the same device, for all experts that the batch asks."""
    found = [
        (one["bytes"] / one["seconds"] / read, named(one))
        for one in own(rows)
        if one["mask"] == FULL.name and least <= one["batch"] <= most
    ]
    where = f"B = {least}" if least == most else f"B >= {least}"
    return worst(f"part of the measured read bandwidth at {where}", found, least=bound)


def beside(rows: Sequence[Row]) -> Goal:
    """Our time over that of vLLM's kernel, by case."""
    keys = ("shape", "format", "batch", "mask", "routing")
    mine = {tuple(one[key] for key in keys): one for one in own(rows)}
    pairs = [(mine.get(tuple(one[key] for key in keys)), one) for one in rows if one["way"] == "vllm"]
    found = [(ours["seconds"] / one["seconds"], named(one)) for ours, one in pairs if ours]
    return worst("our time over that of vLLM's Triton kernel", found, most=1.02)


def layer(grid: Mapping[str, Any], points: Sequence[Row], shape: str, form: str) -> Goal:
    """Time saved in a layer at batch 16, where the trained model's share of experts at DAMAGE is read.

    Routing is counted, with a predictor's head where something is skipped. That the share carries over from that model
    to this shape is assumed.
    """
    same = (shape, form, 16, "uniform")
    of = [r for r in own(grid.get("rows", [])) if (r["shape"], r["format"], r["batch"], r["routing"]) == same]
    whole = next((one for one in of if one["mask"] == FULL.name), None)
    share = experts_at(points, PRICE) / distinct(points)
    name = f"part of a layer's time saved at B = 16 and +{DAMAGE} perplexity, {shape} {form}"
    if whole is None or math.isnan(share):
        return Goal(name, math.nan, least=0.45)
    route, head = (grid.get("ceilings", {}).get(f"{way} {shape} B=16", math.nan) for way in ("route", "route, head"))
    seconds = between([(one["bytes"], one["seconds"]) for one in of], share * whole["bytes"])
    saved = 1 - (seconds + head) / (whole["seconds"] + route)
    return Goal(name, saved, least=0.45, note=f"{share:.2f} of the experts read")


def damages(points: Sequence[Row]) -> list[Goal]:
    """The goals on quality: policies on the trained model at batch 16."""
    ours, oea = experts_at(points, PRICE), experts_at(points, OEA)
    static = min((experts_at(points, name) for name in STATIC), key=lambda value: (math.isnan(value), value))
    level = [(one["distinct"], one["damage"]) for one in curve(points, PRICE)]
    worse = [
        (between(level, one["distinct"]) / one["damage"], f"k0 = {one['knob']:g}")
        for one in curve(points, OEA)
        if one["damage"] > 0
    ]
    known = [one for one in worse if not math.isnan(one[0])]
    return [
        Goal(f"distinct experts of static top-k over ours at +{DAMAGE}", static / ours, least=1.2),
        Goal(f"part fewer experts than OEA as published at +{DAMAGE}", 1 - ours / oea, least=0.05),
        worst("perplexity lost over OEA's at equal experts", known, most=0.7),
    ]


def speedup(times: Sequence[Row], kind: str, bound: float) -> Goal:
    """Against transformers' eager loop, the best of ours at each count; the worst of the counts."""
    of: dict[tuple[str, int], dict[str, float]] = {}
    for one in times:
        if one["measured"] == kind:
            of.setdefault((one["model"], one["count"]), {})[one["way"]] = one["seconds"]
    found = []
    for (model, count), some in of.items():
        mine = [seconds for way, seconds in some.items() if way.startswith(OURS)]
        if mine and "eager" in some:
            found.append((some["eager"] / min(mine), f"{model} {count}"))
    return worst(f"{kind.upper()} of transformers' eager loop over ours", found, least=bound)


def worst(
    name: str, found: Iterable[tuple[float, str]], least: float | None = None, most: float | None = None, of: str = ""
) -> Goal:
    """The worst of the figures, with its case as the note."""
    pick = min if most is None else max
    value, note = pick(found, default=(math.nan, ""))
    return Goal(name, value, least, most, "; ".join(filter(None, (note, of))) if note else "")


def own(rows: Sequence[Row]) -> list[Row]:
    return [one for one in rows if one["way"] == OURS]


def named(one: Row) -> str:
    return f"{one['shape']} {one['format']} B={one['batch']} {one['mask']} {one['routing']}"


def curve(points: Sequence[Row], name: str) -> list[Row]:
    return [one for one in points if one["curve"] == name and one["batch"] == 16]


def experts_at(points: Sequence[Row], name: str) -> float:
    """Distinct experts at which a policy does DAMAGE; none lost is where the whole model is."""
    line = [(one["damage"], one["distinct"]) for one in curve(points, name)]
    return between([*line, (0.0, distinct(points))], DAMAGE) if line else math.nan


def distinct(points: Sequence[Row]) -> float:
    """Distinct experts in a layer and step without skipping."""
    return next((float(one["distinct"]) for one in curve(points, "whole")), math.nan)
