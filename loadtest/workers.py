"""Do two workers answer more than one?

    python -m loadtest.workers [--rounds 3]

Both on one store, by turns; load, model server and store share the machine's cores with them, so on two cores no more
is shown than that a second worker does not hurt.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from loadtest.overhead.probe import Point, built, measured, model_server
from loadtest.overhead.ways import Running, Way
from loadtest.servers import HOST, MODELS, Sim, gateway, pid_of, policy, valkey

POINTS = (Point("json c=64", 64), Point("sse c=64", 64, stream=True))
SECONDS = (1.5, 0.4)  # measured, and warming up before


def rates(place: Path, stub: Sim, store: str, workers: int) -> list[float]:
    """Answers a second at each point."""
    with gateway(policy(), stub, stub, store, workers=workers) as url:
        running = Running(pid_of(url), int(url.rpartition(":")[2]), 0.0)
        return [measured(place, Way(f"{workers}", model="flash"), running, point, SECONDS).rate for point in POINTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="tiergate-") as name, valkey() as store:
        place = Path(name)
        built(place)
        with model_server(place) as running:
            stub = Sim(f"http://{HOST}:{running.port}", MODELS["flash"])
            seen = [[rates(place, stub, store, workers) for workers in (1, 2)] for _ in range(rounds)]
    print(f"{os.cpu_count()} CPUs, {rounds} rounds: answers a second by two workers over those by one")
    for at, point in enumerate(POINTS):
        ratios = sorted(two[at] / one[at] for one, two in seen)
        ones = [one[at] for one, _ in seen]
        told = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"  {point.name:<10} {told}, one worker {min(ones):.0f} to {max(ones):.0f}")


if __name__ == "__main__":
    main()
