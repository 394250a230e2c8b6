"""What does a gateway add to a model server that takes no time?

    python -m loadtest.overhead [--quick] [--rounds 3] [--only WAY]... [--point POINT]... [--log]

One process of each gateway on CPU 0; model server, load and store on CPU 1; all ways interleaved round by round and
started afresh in each, so that ratios hold where a shared machine's absolutes do not. Compared are the way directly to
the model server, nginx, vllm-router, LiteLLM's proxy, and Tiergate as

    passthrough     model: flash, limits in memory, no log lines (the others write none)
    passthrough (asgi)   the same by the plain ASGI front
    full path       an API key, policy, limits and the cache on a Redis, where every request is looked up, missed and
                    remembered; metrics, log lines, and spans of 5 % of them
    with triage     the same, and the question to a model server that answers it at once

`rate` is answers a second, `CPU us` the gateway's user and system time an answer, `foreign` the share of CPU 0 that
others took. A peer that is not there is named as missing.
"""

import argparse
import contextlib
import os
import platform
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from loadtest.clusters import single
from loadtest.overhead.probe import Point, Seen, aside, built, loaded, measured, model_server, resident
from loadtest.overhead.report import Start, logged, row, tables
from loadtest.overhead.ways import Running, Spot, Way, new_key, ways
from loadtest.servers import HOST

LONG = 100_000  # characters
POINTS = [
    *(Point(f"json c={n}", n) for n in (1, 16, 64, 256)),
    Point("100 KB c=16", 16, LONG),
    Point("sse c=16", 16, stream=True),
    Point("sse c=256", 256, stream=True),
]
QUICK = ("json c=1", "json c=64", "100 KB c=16", "sse c=16", "sse c=256")


class Run:
    """One run's measurements."""

    def __init__(self, place: Path, points: list[Point], quick: bool) -> None:
        self.place, self.points, self.quick = place, points, quick
        self.rounds: dict[tuple[str, str], list[Seen]] = defaultdict(list)
        self.starts: dict[str, list[Start]] = defaultdict(list)

    def through(self, way: Way, spot: Spot) -> None:
        with way.started(spot) as running:
            idle = resident(running.pid)
            if way.warm:
                loaded(self.place, way, running, self.points[0], (0.1, way.warm))
            self.load(way, running)
            self.starts[way.name].append(Start(running.seconds, idle, resident(running.pid)))

    def load(self, way: Way, running: Running) -> None:
        """Each point once."""
        for point in [one for one in self.points if one.connections <= way.most]:
            seen = measured(self.place, way, running, point, seconds(point, self.quick))
            self.rounds[way.name, point.name].append(seen)


def seconds(point: Point, quick: bool) -> tuple[float, float]:
    """Seconds of measuring and of warming up.

    Streams of 0.16 s that began together end together: a short window would count a round of them more or less, and a
    short warm-up those whose callers all connected in one moment.
    """
    if point.stream:
        return (1.6, 0.5) if quick else (4.0, 0.5)
    return (0.7, 0.3) if quick else (1.5, 0.4)


def main() -> None:
    options = parsed()
    if (os.cpu_count() or 1) < 2:
        sys.exit("two CPUs are needed: one for the gateway, one for all else")
    aside()
    wanted = options.point or (QUICK if options.quick else [point.name for point in POINTS])
    points = [point for point in POINTS if point.name in wanted]
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiergate-")))
        built(place)
        stub, store = stack.enter_context(model_server(place)), stack.enter_context(single())
        run = Run(place, points, options.quick)
        chosen = [way for way in ways(new_key(store)) if not options.only or way.name in options.only]
        for way in chosen:
            if missing := way.missing():
                print(f"missing: {way.name}: {missing}")
        for _ in range(options.rounds):
            run.load(Way("direct"), stub)
            for way in chosen:
                if not way.missing():
                    run.through(way, Spot(f"{HOST}:{stub.port}", place, store))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {options.rounds} rounds")
    print("\n".join(tables(run.rounds, run.starts)))
    if options.log:
        logged(row(run.rounds))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of the points that goals name")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument("--only", action="append", metavar="WAY", help="this way only; repeatable")
    parser.add_argument("--point", action="append", metavar="POINT", help="this load only; repeatable")
    parser.add_argument("--log", action="store_true", help="append a row to LOG.md")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main()
