"""How many of everything does a load take, and what does that cost?   From published and measured figures."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One published measurement: 8,192 tokens in, 1,024 out. Seconds."""

    concurrency: int
    ttft: float
    tpot: float


@dataclass(frozen=True, slots=True)
class Speed:
    """A tier on its hardware. `prefill`: seconds a token of prompt takes the server, from TTFT at concurrency 1."""

    hardware: str
    gpus: int
    prefill: float
    points: tuple[Point, ...]

    def decode(self, point: Point) -> float:
        """Seconds of the server a token: what a request takes at this concurrency, less its prefill, by its tokens."""
        return ((point.ttft + 1023 * point.tpot) / point.concurrency - 8192 * self.prefill) / 1024


# The sources stand in `backends/sim/settings.py`, which simulates these same servers.
SPEEDS = {
    "flash": Speed(
        "h200x4",
        4,
        (0.308 - 0.040) / 8192,
        (Point(16, 0.662, 0.00839), Point(64, 1.618, 0.03805), Point(256, 1.932, 0.10453)),
    ),
    "pro": Speed("h200x8", 8, (0.623 - 0.080) / 8192, (Point(16, 0.684, 0.02583),)),
}
PRICES = {
    "flash": (0.3, 0.006, 1.2),
    "pro": (1.32, 0.044, 3.96),
}  # US dollars a million: in, cached, out; policies/hosted.yaml
VERDICT = 10  # tokens of a verdict
# Of one process, one core, LOG.md 2026-11-22: a request with triage, a chunk of a stream.
GATEWAY_US, CHUNK_US = 512.0, 27.7
# Of one Valkey, its whole process, for an admission and its settlement: LOG.md 2026-11-22 (`python -m loadtest.fleet`),
# at the lower rates, where it wakes up for each request. Busier ones cost it less.
STORE_US = 230.0
BUSY = {"model": 0.7, "gateway": 0.6, "store": 0.5}  # how much of each is used; the rest is for bursts


@dataclass(frozen=True, slots=True)
class Load:
    """`rps`: requests a second. `pro`: the share that Pro answers. `cached`: the share of prompt tokens that a
    prefix cache has. `tpot`: seconds a token may take at most."""

    rps: float
    prompt: int
    output: int
    pro: float
    cached: float = 0.0
    tpot: float = 0.05


@dataclass(frozen=True, slots=True)
class Part:
    """`busy`: how many would be busy all the time; `count`: how many to run."""

    name: str
    count: int
    busy: float
    gpus: int
    note: str


def parts(load: Load) -> list[Part]:
    """Raises ValueError for a load that is none, and where no published measurement keeps to `load.tpot`."""
    if min(load.rps, load.prompt, load.output) <= 0 or not (0 <= load.pro <= 1 and 0 <= load.cached <= 1):
        raise ValueError("rates and lengths are above 0, shares from 0 to 1")
    return [*(_tier(tier, load) for tier in SPEEDS), *_fronts(load)]


def _tier(tier: str, load: Load) -> Part:
    speed = SPEEDS[tier]
    within = [point for point in speed.points if point.tpot <= load.tpot]
    if not within:
        raise ValueError(f"{tier}: no published point has a TPOT of at most {load.tpot * 1000:g} ms")
    point, fresh = within[-1], load.prompt * (1 - load.cached)
    decode = speed.decode(point)
    if tier == "flash":  # reads every prompt, for the verdict; its own answers share that prefill (`layout: suffix`)
        each = fresh * speed.prefill + VERDICT * decode + (1 - load.pro) * load.output * decode
    else:
        each = load.pro * (fresh * speed.prefill + load.output * decode)
    busy = load.rps * each
    count = math.ceil(busy / BUSY["model"])
    note = f"{speed.hardware} each, up to {point.concurrency} at once, TPOT {point.tpot * 1000:.1f} ms"
    return Part(tier, count, busy, count * speed.gpus, note)


def _fronts(load: Load) -> list[Part]:
    gateway = load.rps * (GATEWAY_US + CHUNK_US * load.output) / 1e6
    store = load.rps * STORE_US / 1e6
    streams = load.rps * load.output * load.tpot
    return [
        Part(
            "gateway",
            max(2, math.ceil(gateway / BUSY["gateway"])),
            gateway,
            0,
            f"processes of one core; at most {streams:.0f} streams at once",
        ),
        Part(
            "valkey",
            max(1, math.ceil(store / BUSY["store"])),
            store,
            0,
            "primaries; a second one for the first's death is not counted",
        ),
    ]


def usd(load: Load, found: list[Part], gpu_hour: float, core_hour: float) -> dict[str, float]:
    """US dollars: what runs, an hour and a million requests; and the same tokens from DeepSeek's API at peak hours."""
    hour = sum(part.gpus * gpu_hour if part.gpus else part.count * core_hour for part in found)
    hosted = 0.0
    for tier, share in (("flash", 1 - load.pro), ("pro", load.pro)):
        fresh, cached, out = PRICES[tier]
        prompt = load.prompt * ((1 - load.cached) * fresh + load.cached * cached)
        hosted += share * (prompt + load.output * out)  # dollars a million requests
    fresh, cached, out = PRICES["flash"]
    hosted += load.pro * load.prompt * ((1 - load.cached) * fresh + load.cached * cached) + VERDICT * out
    return {"hour": hour, "million": hour / (load.rps * 3600) * 1e6, "hosted_million": hosted}
