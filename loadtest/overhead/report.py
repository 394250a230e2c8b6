"""What do the measurements come to?   A table, the goals, and a row for LOG.md."""

import statistics
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from loadtest.overhead.probe import CHUNKS, Seen

LOG = Path(__file__).parent.parent.parent / "LOG.md"
HEADING = "| date | passthrough : vllm-router"
EVENTS = CHUNKS + 1
COLUMNS = ("CPU us", "p50 ms", "p99 ms", "TTFB p50", "TTFB p99", "foreign")

Rounds = Mapping[tuple[str, str], list[Seen]]  # by way and point


class Start(NamedTuple):
    """Seconds until a way answered, and its megabytes then and after the loads."""

    seconds: float
    idle: float
    after: float


class Goal(NamedTuple):
    """What was wanted and what came; `None` where it could not be measured."""

    name: str
    found: float | None
    least: float | None = None
    most: float | None = None

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        low, high = self.least is None or self.found >= self.least, self.most is None or self.found <= self.most
        return "met" if low and high else "missed"


def middle(rounds: Rounds, way: str, point: str, field: str) -> float | None:
    """The median over the rounds."""
    seen = rounds.get((way, point), [])
    return statistics.median(getattr(one, field) for one in seen) if seen else None


def ratio(rounds: Rounds, ways: tuple[str, str], point: str) -> float | None:
    """The median of the rounds' own ratios of answers a second."""
    ours, theirs = (rounds.get((way, point), []) for way in ways)
    pairs = [a.rate / b.rate for a, b in zip(ours, theirs, strict=False)]
    return statistics.median(pairs) if pairs else None


def added(rounds: Rounds, way: str, point: str, field: str) -> float | None:
    """Milliseconds more than directly."""
    ours, direct = middle(rounds, way, point, field), middle(rounds, "direct", point, field)
    return None if ours is None or direct is None else (ours - direct) / 1000


def scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def goals(rounds: Rounds, starts: Mapping[str, list[Start]]) -> Iterator[Goal]:
    ours, full, triaged, router = "passthrough", "full path", "with triage", "vllm-router"
    yield Goal("passthrough (asgi) : vllm-router, c=64", ratio(rounds, (f"{ours} (asgi)", router), "json c=64"), 1.0)
    yield Goal("passthrough : vllm-router, c=64", ratio(rounds, (ours, router), "json c=64"), 1.5)
    yield Goal("passthrough : nginx, c=64", ratio(rounds, (ours, "nginx"), "json c=64"), 0.3)
    yield Goal("full path : vllm-router, c=64", ratio(rounds, (full, router), "json c=64"), 1.2)
    yield Goal("full path, CPU us, c=64", middle(rounds, full, "json c=64", "cpu"), most=90)
    yield Goal("with triage : vllm-router, c=64", ratio(rounds, (triaged, router), "json c=64"), 7 / 8)
    yield Goal("passthrough, added p50 ms, c=1", added(rounds, ours, "json c=1", "p50"), most=0.25)
    yield Goal("full path, p99 ms, c=64", scaled(middle(rounds, full, "json c=64", "p99"), 1e-3), most=12)
    yield Goal("passthrough, p99 ms, c=64", scaled(middle(rounds, ours, "json c=64", "p99"), 1e-3), most=12)
    yield Goal("passthrough, 100 KB, CPU us", middle(rounds, ours, "100 KB c=16", "cpu"), most=250)
    chunk = scaled(middle(rounds, ours, "sse c=256", "cpu"), 1 / EVENTS)
    yield Goal("passthrough, CPU us a chunk, 256 streams", chunk, most=22)
    yield Goal("passthrough, added TTFB p50 ms, 16 streams", added(rounds, ours, "sse c=16", "ttfb50"), most=0.8)
    yield Goal("passthrough : direct, 256 streams", ratio(rounds, (ours, "direct"), "sse c=256"), 0.95)
    late = scaled(middle(rounds, ours, "sse c=256", "ttfb99"), 1e-3)
    yield Goal("passthrough, TTFB p99 ms, 256 streams", late, most=40)
    begun = starts.get(full, [])
    yield Goal("full path, RSS MB idle", statistics.median(s.idle for s in begun) if begun else None, most=60)
    yield Goal("full path, cold start s", statistics.median(s.seconds for s in begun) if begun else None, most=0.8)


def tables(rounds: Rounds, starts: Mapping[str, list[Start]]) -> Iterator[str]:
    """Lines of text: each point's ways, then how they start, then the goals."""
    for point in dict.fromkeys(point for _, point in rounds):
        yield f"\n{point:<22} {'rate':>9} " + " ".join(f"{name:>8}" for name in COLUMNS)
        for way in dict.fromkeys(way for way, at in rounds if at == point):
            shown = [middle(rounds, way, point, name) or 0.0 for name in Seen.__annotations__]
            rate, cpu, *times, foreign = shown
            told = " ".join(f"{value / 1000:8.2f}" for value in times)
            yield f"  {way:<20} {rate:>9.0f} {cpu:8.1f} {told} {foreign:8.0%}"
    yield f"\n{'start':<22} {'seconds':>9} {'RSS idle':>8} {'after':>8}"
    for way, begun in starts.items():
        seconds, idle, after = (statistics.median(values) for values in zip(*begun, strict=True))
        yield f"  {way:<20} {seconds:9.2f} {idle:8.1f} {after:8.1f}"
    yield ""
    for goal in goals(rounds, starts):
        wanted = f">= {goal.least:.3g}" if goal.least is not None else f"<= {goal.most:g}"
        found = "" if goal.found is None else f"{goal.found:.3g}"
        yield f"  {goal.name:<44} {found:>8}  {wanted:<8} {goal.verdict}"


def row(rounds: Rounds) -> str:
    """A dated line of the table in LOG.md."""
    router, full, ours = "vllm-router", "full path", "passthrough"
    found = [
        ratio(rounds, (ours, router), "json c=64"),
        ratio(rounds, (ours, "nginx"), "json c=64"),
        ratio(rounds, (full, router), "json c=64"),
        ratio(rounds, ("with triage", router), "json c=64"),
        *(middle(rounds, way, "json c=64", "cpu") for way in (ours, full, "with triage")),
        scaled(middle(rounds, ours, "sse c=256", "cpu"), 1 / EVENTS),
        middle(rounds, ours, "100 KB c=16", "cpu"),
        added(rounds, ours, "json c=1", "p50"),
    ]
    cells = ["-" if value is None else f"{value:.3g}" for value in found]
    return f"| {datetime.now(UTC):%Y-%m-%d} | " + " | ".join(cells) + " |"


def logged(line: str) -> None:
    """Puts the row at the end of its table in LOG.md. Raises ValueError when that has no such table."""
    lines = LOG.read_text().splitlines()
    at = next((n for n, text in enumerate(lines) if text.startswith(HEADING)), None)
    if at is None:
        raise ValueError(f"LOG.md has no table that begins with {HEADING!r}")
    while at < len(lines) and lines[at].startswith("|"):
        at += 1
    LOG.write_text("\n".join([*lines[:at], line, *lines[at:]]) + "\n")
