"""How are the results reported?   As one page of Markdown, with missed goals and missing measurements."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadtest.kernels.goals import Results, Row, goals, own, paid, skipped, verdict
from loadtest.kernels.plan import FULL, RIDING, RIVALS

Found = Mapping[str, Any]


def page(results: Results) -> str:
    """The page, from the results of the commands that were run, by name."""
    return "\n".join(_lines(results))


def counts(results: Results) -> bool:
    """Whether these figures count: measured on a GPU, at full shapes."""
    return bool(results) and all(one["gpu"] and not one["tiny"] for one in results.values())


def _lines(results: Results) -> Iterator[str]:
    gpus, judged = sorted({one["gpu"] for one in results.values() if one["gpu"]}), counts(results)
    yield f"## Kernels that skip experts, on {' and '.join(gpus) or 'no GPU'}\n"
    if not judged:
        yield "**No figure on this page counts**: made without a GPU or on tiny shapes, to prove that the code runs.\n"
    for name, one in results.items():
        yield from ran(name, one)
    made = [(one.name, _number(one.found), one.bound, verdict(one, judged), one.note) for one in goals(results)]
    yield from table(("goal", "measured", "asked", "verdict", "the worst, and more"), made)
    for name, sections in {"grid": (ceilings, correct, times), "quality": (policies,), "serve": (serving,)}.items():
        for section in sections if name in results else ():
            yield from section(results[name])
    for name, one in results.items():
        yield from left(name, one)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A Markdown table; nothing without rows."""
    if rows:
        yield "| " + " | ".join(head) + " |"
        yield "|" + "---|" * len(head)
        yield from ("| " + " | ".join(map(str, row)) + " |" for row in rows)
        yield ""


def ran(name: str, found: Found) -> Iterator[str]:
    """The command, its environment, and the parts that failed."""
    versions = ", ".join(f"{key} {value}" for key, value in found["env"].items() if key not in {"gpu", "cpus"})
    yield f"`python -m loadtest.kernels {name}{' --tiny' * found['tiny']}`: {found['gpu'] or 'no GPU'}; {versions}.\n"
    broken = [one for one in found["parts"] if one["state"] != "ran"]
    yield from (f"- **{one['name']}: {one['state']}** after {one['seconds']:.0f} s. {one['note']}" for one in broken)
    yield from [""] if broken else []


def ceilings(found: Found) -> Iterator[str]:
    units = {"read": (1e12, "TB/s"), "copy": (1e12, "TB/s, read and written"), "bf16": (1e12, "TFLOP/s")}
    rows = []
    for name, value in found["ceilings"].items():
        scale, unit = units.get(name, (1e-6, "us"))
        rows.append((name, f"{value / scale:.2f} {unit}"))
    yield from table(("ceiling", "measured"), rows)


def correct(found: Found) -> Iterator[str]:
    of: dict[tuple[str, str], list[Row]] = {}
    for one in found["correct"]:
        of.setdefault((one["shape"], one["format"]), []).append(one)
    rows = [
        (*key, f"{sum(one['held'] for one in some)} of {len(some)}", f"{max(one['error'] for one in some):.4f}")
        for key, some in of.items()
    ]
    yield from table(("checked against torch", "format", "within 0.01 of the norm", "worst"), rows)


def times(found: Found) -> Iterator[str]:
    """Our kernels against reading alone and against themselves without a skip, then the others against ours."""
    rows, read = found["rows"], found["ceilings"].get("read")
    pairs = {id(whole): one for one, whole in skipped(rows) if one["mask"] == RIDING.name}
    said = []
    for one in sorted((one for one in own(rows) if one["mask"] == FULL.name), key=_order):
        ridden = pairs.get(id(one))
        cut: tuple[str, ...] = ("-",) * 3
        if ridden:
            cut = (_us(ridden), f"{ridden['bytes'] / one['bytes']:.2f}", f"{paid(ridden, one):.2f}")
        part = f"{one['bytes'] / one['seconds'] / read:.0%}" if read else "-"
        said.append((*_order(one), _us(one), f"{one['noise']:.1%}", f"{one['distinct']:.1f}", part, *cut))
    head = ("shape", "format", "routing", "batch", "us", "noise", "experts", "of read")
    yield "Times are of a layer's experts from given ids on: blocks, products, sum. Routing is among the ceilings.\n"
    yield from table((*head, f"us at {RIDING.name}", "bytes", "time over bytes"), said)
    yield from table(("shape", "batch", "ours us", *RIVALS), list(_beside(rows)))


def _beside(rows: Sequence[Row]) -> Iterator[tuple[object, ...]]:
    """How many times our time the others take, in bf16."""
    whole = [one for one in own(rows) if (one["mask"], one["format"], one["routing"]) == (FULL.name, "bf16", "uniform")]
    for mine in sorted(whole, key=_order):
        same = {one["way"]: one["seconds"] for one in rows if _order(one) == _order(mine) and one["mask"] == FULL.name}
        others = (f"{same[way] / mine['seconds']:.2f}x" if way in same else "-" for way in RIVALS)
        yield (mine["shape"], mine["batch"], _us(mine), *others)


def policies(found: Found) -> Iterator[str]:
    whole = next((one for one in found["points"] if one["curve"] == "whole" and "parameters" in one), None)
    if whole:
        size, seen = whole["parameters"] / 1e6, whole["tokens"] / 1e6
        told = f"perplexity {whole['perplexity']:.3f} held out"
        yield f"A model of {size:.1f} M parameters after {seen:.1f} M bytes: {told}.\n"
    rows = [
        (one["curve"], f"{one.get('knob', 0):g}", one["batch"], f"{one['kept']:.2f}", f"{one['distinct']:.1f}",
         f"{one['damage']:+.3f} ± {one['error']:.3f}")
        for one in found["points"]
    ]  # fmt: skip
    yield from table(("policy", "knob", "batch", "experts a token", "distinct a step", "perplexity"), rows)


def serving(found: Found) -> Iterator[str]:
    ways = list(dict.fromkeys(one["way"] for one in found["times"]))
    of: dict[tuple[str, str, int], dict[str, Row]] = {}
    for one in found["times"]:
        of.setdefault((one["model"], one["measured"], one["count"]), {})[one["way"]] = one
    rows = [(*key, *(_step(some[way]) if way in some else "-" for way in ways)) for key, some in of.items()]
    yield from table(("model", "ms", "tokens or sequences", *ways), rows)


def left(name: str, found: Found) -> Iterator[str]:
    """What was not run, by its reason."""
    of: dict[str, list[str]] = {}
    for one in found["left"]:
        of.setdefault(one["why"], []).append(one["name"])
    for why, names in of.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"- Not run by `{name}` ({why}): {'; '.join(names[:3])}{more}."
    yield from [""] if of else []


def _order(one: Row) -> tuple[Any, ...]:
    return one["shape"], one["format"], one["routing"], one["batch"]


def _step(one: Row) -> str:
    return f"{one['seconds'] * 1e3:.2f} {one['how']}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _us(one: Row) -> str:
    return f"{one['seconds'] * 1e6:.1f}"
