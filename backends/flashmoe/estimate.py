"""What does skipping experts buy at the service?   Tokens a second and money for a V4-Flash tier.

    tiergate backends estimate --hardware h200x4 --policy off batch-aware=4 --batch 1 16 64 [--kernels FILE]

A decode step reads the distinct experts of its batch, all other weights, and the KV cache of every sequence. The time
of the experts is interpolated between measured ones where FILE (`grid.json` of `python -m loadtest.kernels grid`) has
them; all else is bytes over bandwidth. The output says of each figure which it is. Nothing else is counted, so a real
server is slower: see ASSUMED.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.flashmoe.costmodel import H200_RATE, V4_FLASH, between, compute_bound_from, distinct
from backends.recipes.fit import Wish, check
from backends.recipes.hardware import GPUS, Hardware, hardware
from backends.recipes.models import ENTRY, INDEX, MODELS, Model
from backends.recipes.size import SPEEDS

STRATEGIES = ("dep", "tep", "tp")
REACHED = H200_RATE / GPUS["h200"].rate  # the part of the published bandwidth that a copy reaches on an H200
CHOSEN, WINDOW = 512, 128  # compressed entries that a CSA layer attends to; last tokens that every layer attends to
SHAPE, FORMAT = "v4-flash", "mxfp4"  # the rows of FILE that are used
ASSUMED = (
    "experts are asked uniformly and spread evenly over GPUs: skewed routing reads fewer, the fullest GPU more",
    "no time for communication between GPUs, launches outside of the experts, sampling and scheduling; no prompts",
    "an engine's own kernels turn bytes that are not read into time as these figures do",
    "the batch is always full; no speculative decoding, which would read for more tokens at once",
    "nothing is said of quality: measure what a policy costs before it is sold as a tier",
)


@dataclass(frozen=True, slots=True)
class Skipping:
    """A policy, reduced to `k`, the mean number of experts of a token."""

    name: str
    k: float

    @classmethod
    def read(cls, text: str) -> "Skipping":
        """From `off`, `top-k=4` or `batch-aware=3`, the plug-in's names. Raises ValueError."""
        mode, _, value = text.partition("=")
        if text == "off":
            return cls(text, V4_FLASH.top_k)
        if mode not in {"top-k", "batch-aware"}:
            raise ValueError(f"{text!r} is none of off, top-k=K, batch-aware=K; of others give the mean K that is kept")
        k = float(value) if value.replace(".", "", 1).isdigit() else math.nan
        if not 1 <= k <= V4_FLASH.top_k:
            raise ValueError(f"{text!r}: K is from 1 to {V4_FLASH.top_k}")
        return cls(text, k)


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier's hardware, parallelism and price. `context`: tokens of each sequence; `usd`: US dollars a GPU-hour."""

    hardware: Hardware
    strategy: str
    context: int
    usd: float


@dataclass(frozen=True, slots=True)
class Speed:
    """`rate`: memory bandwidth, bytes a second, `said` its source; `layer`: measured (bytes, seconds) of a layer's
    experts, ascending; empty: nothing was measured."""

    rate: float
    said: str
    layer: tuple[tuple[float, float], ...] = ()

    def seconds(self, read: float) -> tuple[float, bool]:
        """The time to read so many bytes of one layer's experts, and whether it lies between measured points."""
        if not self.layer:
            return read / self.rate, False
        inside = between(self.layer, read)
        if not math.isnan(inside):
            return inside, True
        (least, fast), (most, slow) = self.layer[0], self.layer[-1]  # below: the least time; above: in proportion
        return (fast, False) if read < least else (slow * read / most, False)


@dataclass(frozen=True, slots=True)
class Row:
    """A policy at a batch size. `experts`: distinct ones read in a layer, over all GPUs; `tokens_s`, `stream_s`: tokens
    a second of the tier, of one sequence; `usd_million`: US dollars for a million tokens; `gain`: speed-up over `off`;
    `measured`: the experts' time lies between measured points."""

    policy: str
    batch: int
    experts: float
    step_ms: float
    tokens_s: float
    stream_s: float
    usd_million: float
    gain: float
    measured: bool


def published(metal: Hardware) -> Speed:
    """The speed from the GPU's published memory bandwidth. Raises ValueError where none is known."""
    if not metal.gpu.rate:
        raise ValueError(f"no memory rate is known of {metal.name}")
    rate = metal.gpu.rate * REACHED
    told = f"{rate / 1e12:.2f} TB/s: {REACHED:.0%} of the published rate, as a copy reaches on an H200"
    return Speed(rate, told)


def measured(path: Path, metal: Hardware) -> Speed:
    """The speed from the benchmark's file. Raises ValueError for another GPU's, for none, and without the rows."""
    try:
        found = json.loads(path.read_text())
        gpu, read = found["gpu"], found["ceilings"].get("read")
        rows = [row for row in found["rows"] if (row["shape"], row["format"], row["way"]) == (SHAPE, FORMAT, "ours")]
        points = sorted((float(row["bytes"]), float(row["seconds"])) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of `python -m loadtest.kernels grid`: {error!r}") from error
    family = metal.name.rpartition("x")[0]
    if not gpu:
        raise ValueError(f"{path} was made without a GPU: its times say nothing of one")
    if family.upper() not in gpu.upper().split():
        raise ValueError(f"{path} was measured on {gpu}, which says nothing of {metal.name}")
    if not read or len(points) < 2:
        raise ValueError(f"{path} lacks what is needed: the read rate, and times of {SHAPE} in {FORMAT}")
    slowest = itertools.accumulate((seconds for _, seconds in points), max)  # noise must not make more bytes faster
    layer = tuple(zip((sizes for sizes, _ in points), slowest, strict=True))
    return Speed(float(read), f"{read / 1e12:.2f} TB/s, read on {gpu}", layer)


def rows(tier: Tier, speed: Speed, policies: Sequence[Skipping], batches: Sequence[int]) -> list[Row]:
    """Every policy at every batch size. Raises Impossible and ValueError for what does not fit or is not known."""
    held = room(tier)
    for batch in batches:
        if batch < 1 or batch * tier.context > held:
            raise ValueError(f"{batch} sequences of {tier.context} tokens: the KV cache has room for {held} tokens")
        if batch * V4_FLASH.top_k / V4_FLASH.experts > compute_bound_from(V4_FLASH):
            raise ValueError(
                f"at {batch} sequences arithmetic takes longer than reading, which is all that counts here"
            )
    whole = {batch: step(tier, speed, V4_FLASH.top_k, batch)[0] for batch in batches}
    return [row(tier, speed, policy, batch, whole[batch]) for policy in policies for batch in batches]


def row(tier: Tier, speed: Speed, policy: Skipping, batch: int, whole: float) -> Row:
    """`whole`: seconds of a step without skipping."""
    seconds, inside = step(tier, speed, policy.k, batch)
    rate = batch / seconds
    usd = tier.hardware.count * tier.usd / 3600 / rate * 1e6
    experts = distinct(V4_FLASH.experts, policy.k, batch)
    return Row(policy.name, batch, experts, seconds * 1e3, rate, 1 / seconds, usd, whole / seconds, inside)


def step(tier: Tier, speed: Speed, k: float, batch: int) -> tuple[float, bool]:
    """Seconds of a decode step of `batch` sequences, and whether the experts' time lies between measured points."""
    gpus, apart = tier.hardware.count, tier.strategy == "dep"
    layer, inside = speed.seconds(distinct(V4_FLASH.experts, k, batch) / gpus * V4_FLASH.expert_bytes)
    rest = V4_FLASH.rest_bytes if apart else V4_FLASH.rest_bytes / gpus
    sequences = batch / gpus if apart else batch  # tensor parallelism does not divide the one KV head
    return V4_FLASH.layers * layer + (rest + sequences * attended(MODELS["flash"], tier.context)) / speed.rate, inside


def attended(model: Model, context: int) -> float:
    """Bytes of KV cache that a decode step reads for one sequence, over all layers."""
    entry, index = ENTRY["fp8"], INDEX["fp8"]
    chosen = context / 4 * index + min(context / 4, CHOSEN) * entry
    return model.csa * chosen + model.hca * context / 128 * entry + model.layers * min(context, WINDOW) * entry


def room(tier: Tier) -> int:
    """Tokens that the tier's KV cache holds. Raises Impossible, with the arithmetic, where the model does not fit."""
    wish = Wish("flash", tier.hardware, tier.strategy, context=tier.context)
    return check(wish).held * (wish.ranks if tier.strategy == "dep" else 1)


def sources(tier: Tier, speed: Speed, found: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """The sources of the figures by kind, and others' measurements on the same hardware."""
    inside = sum(one.measured for one in found)
    timed = (f"times of a layer's experts in {inside} of {len(found)} rows",) if speed.layer else ()
    rate = (f"memory: {speed.said}",)
    other = SPEEDS["flash"] if SPEEDS["flash"].hardware == tier.hardware.name else None
    points = other.points if other else ()
    real = (f"{point.tpot * 1e3:.1f} ms a token at concurrency {point.concurrency}" for point in points)
    return {
        "measured": (*timed, *(rate if speed.layer else ())) or ("nothing: give --kernels FILE",),
        "arithmetic": (
            "distinct experts, bytes of weights and of context, from the published shape",
            *(
                ()
                if inside == len(found)
                else ("experts' bytes over the rate; beyond measured bytes, the nearest time",)
            ),
        ),
        "assumed": ASSUMED if speed.layer else (*rate, *ASSUMED),
        "published, a whole server without skipping": tuple(real) or ("nothing for this hardware",),
    }


def table(tier: Tier, speed: Speed, found: Sequence[Row]) -> Iterator[str]:
    """The rows as text: upper bounds for tokens a second, lower bounds for cost."""
    unmeasured = "  beyond" if speed.layer else "  bound"
    where = f"{tier.hardware.name} ({tier.strategy}), {tier.context} tokens of context"
    yield f"V4-Flash on {where}, {tier.usd:.2f} US dollars a GPU and hour"
    heads = f"{'step ms':>9}{'tokens/s':>10}{'a stream':>10}{'$/million':>11}{'of off':>8}"
    yield f"{'policy':<16}{'batch':>6}{'experts':>9}{heads}"
    for one in found:
        times = f"{one.step_ms:9.2f}{one.tokens_s:10.0f}{one.stream_s:10.1f}{one.usd_million:11.3f}{one.gain:7.2f}x"
        yield f"{one.policy:<16}{one.batch:>6}{one.experts:>9.1f}{times}{'' if one.measured else unmeasured}"


def options(words: Sequence[str]) -> argparse.Namespace:
    whole = argparse.ArgumentParser(prog="tiergate backends")
    p = whole.add_subparsers(dest="verb", required=True).add_parser(
        "estimate", description="Tokens a second and money for a V4-Flash tier that skips experts."
    )
    p.add_argument("--hardware", required=True, help=f"of one replica: {', '.join(GPUS)} and how many (h200x4)")
    p.add_argument("--strategy", choices=STRATEGIES, default="dep")
    usual = ["off", "top-k=4", "batch-aware=3"]
    p.add_argument("--policy", nargs="+", default=usual, help="off, top-k=K, batch-aware=K")
    p.add_argument("--batch", nargs="+", type=int, default=[1, 4, 16, 64], help="sequences decoded together")
    p.add_argument("--context", type=int, default=8192, help="tokens of each sequence")
    p.add_argument("--gpu-hour", type=float, default=3.0, help="US dollars; yours, not a figure of ours")
    p.add_argument("--kernels", type=Path, help="grid.json of the GPU benchmark; else the published memory rate")
    p.add_argument("--json", action="store_true")
    return whole.parse_args(words)


def written(asked: argparse.Namespace) -> str:
    """The output for the command line. Raises Impossible and ValueError, with the reason."""
    tier = Tier(hardware(asked.hardware), asked.strategy, asked.context, asked.gpu_hour)
    policies = [Skipping.read(text) for text in asked.policy]
    speed = measured(asked.kernels, tier.hardware) if asked.kernels else published(tier.hardware)
    found = rows(tier, speed, policies, asked.batch)
    basis = sources(tier, speed, found)
    if asked.json:
        told: dict[str, Any] = {"hardware": tier.hardware.name, "gpus": tier.hardware.count, "strategy": tier.strategy}
        told |= {"context": tier.context, "usd_gpu_hour": tier.usd, "basis": basis}
        return json.dumps(told | {"rows": [dataclasses.asdict(one) for one in found]}, indent=2) + "\n"
    lines = [f"{kind}: {part}" for kind, parts in basis.items() for part in parts]
    return "\n".join([*table(tier, speed, found), *lines]) + "\n"


def main() -> None:
    try:
        print(written(options(sys.argv[1:])), end="")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
