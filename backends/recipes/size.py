"""How many servers and processes does a load need, and what do they cost?   From published and measured figures."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One published measurement with 8,192 tokens in, 1,024 out; times in seconds."""

    concurrency: int
    ttft: float
    tpot: float


@dataclass(frozen=True, slots=True)
class Speed:
    """A tier on its hardware. `prefill`: seconds of the server for a prompt token, from TTFT at concurrency 1."""

    hardware: str
    gpus: int
    prefill: float
    points: tuple[Point, ...]

    def decode(self, point: Point) -> float:
        """Seconds of the server for an output token: a request's time by concurrency, less prefill, over its tokens."""
        return ((point.ttft + 1023 * point.tpot) / point.concurrency - 8192 * self.prefill) / 1024


# Sources: `backends/sim/settings.py`, which simulates the same servers.
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
}  # US dollars a million tokens: input, cached input, output; as policies/hosted.yaml
VERDICT = 10  # tokens of a verdict
# Microseconds of one gateway process on one core for a request with triage, and a chunk of a stream; LOG.md 2026-11-22.
GATEWAY_US, CHUNK_US = 512.0, 27.7
# Microseconds of one Valkey process for admission and settlement, LOG.md 2026-11-22 (`python -m loadtest.fleet`),
# at low rates, where it wakes up for each request. At higher rates it takes less.
STORE_US = 230.0
BUSY = {"model": 0.7, "gateway": 0.6, "store": 0.5}  # target utilisation; the rest is for bursts


@dataclass(frozen=True, slots=True)
class Load:
    """`rps`: requests a second; `prompt`, `output`: tokens of each. `pro`: the share that Pro answers. `cached`: the
    share of prompt tokens found in the prefix cache. `tpot`: the most seconds for an output token."""

    rps: float
    prompt: int
    output: int
    pro: float
    cached: float = 0.0
    tpot: float = 0.05


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of server or process. `busy`: how many the load keeps busy; `count`: how many to run; `gpus`: of all."""

    name: str
    count: int
    busy: float
    gpus: int
    note: str


def parts(load: Load) -> list[Part]:
    """What to run for a load. Raises ValueError for a load out of range, and where no published point has the TPOT."""
    asked = 0 < load.rps < math.inf and min(load.prompt, load.output) > 0
    if not asked or not (0 <= load.pro <= 1 and 0 <= load.cached <= 1):
        raise ValueError("rates and lengths are above 0, shares from 0 to 1")
    return [*(_tier(tier, load) for tier in SPEEDS), *_fronts(load)]


def _tier(tier: str, load: Load) -> Part:
    speed = SPEEDS[tier]
    within = [point for point in speed.points if point.tpot <= load.tpot]
    if not within:
        raise ValueError(f"{tier}: no published point has a TPOT of at most {load.tpot * 1000:g} ms")
    point, fresh = within[-1], load.prompt * (1 - load.cached)
    decode = speed.decode(point)
    if tier == "flash":  # prefills every prompt for the verdict; its answers reuse that (`layout: suffix`)
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
    """US dollars of the parts for an `hour`, for a `million` requests, and of these from DeepSeek's API at peak hours
    (`hosted_million`)."""
    hour = sum(part.gpus * gpu_hour if part.gpus else part.count * core_hour for part in found)
    hosted = 0.0
    for tier, share in (("flash", 1 - load.pro), ("pro", load.pro)):
        fresh, cached, out = PRICES[tier]
        prompt = load.prompt * ((1 - load.cached) * fresh + load.cached * cached)
        hosted += share * (prompt + load.output * out)  # US dollars for a million requests
    fresh, cached, out = PRICES["flash"]
    hosted += load.pro * load.prompt * ((1 - load.cached) * fresh + load.cached * cached) + VERDICT * out
    return {"hour": hour, "million": hour / (load.rps * 3600) * 1e6, "hosted_million": hosted}
