"""How many instructions does an answer take?   Counted by valgrind, so other work on the machine changes little.

    python -m loadtest.overhead.instructions [--only WAY]... [--point POINT] [--seconds 8] [--functions 0]

The same ways and points as `python -m loadtest.overhead`, each process under callgrind (Debian's package valgrind);
what the kernel does is not counted. Two runs of one tree differ by 1 to 2 % where each counted 1,000 answers, so a
change of 3 % can be seen here, where times on a shared machine differ by half. With fewer, what is done once a second
or a connection weighs too much: on a busy machine take more --seconds. Instructions are no time: wrong guesses of
branches and waiting for memory come on top.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loadtest.clusters import single
from loadtest.overhead.__main__ import POINTS
from loadtest.overhead.probe import Point, built, loaded, model_server
from loadtest.overhead.ways import Running, Spot, Way, new_key, ways
from loadtest.servers import HOST

WARM = 2.0  # seconds of load before counting: what is made once, is made
CALLGRIND = "--tool=callgrind --instr-atstart=no --trace-children=yes --dump-instr=no"


def main() -> None:
    options = parsed()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed")
    point = next(point for point in POINTS if point.name == options.point)
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiergate-")))
        built(place)
        stub, store = stack.enter_context(model_server(place)), stack.enter_context(single())
        spot = Spot(f"{HOST}:{stub.port}", place, store)
        for way in ways(new_key(store)):
            if (not options.only or way.name in options.only) and not way.missing():
                told(way, counted(way, spot, point, options.seconds), options.functions)


def counted(way: Way, spot: Spot, point: Point, seconds: float) -> tuple[int, Path]:
    """Answers that were counted, and callgrind's file of them."""
    for old in spot.place.glob("callgrind.*"):
        old.unlink()
    before = ["valgrind", *CALLGRIND.split(), f"--callgrind-out-file={spot.place}/callgrind.%p"]
    with way.started(spot, before) as running:
        loaded(spot.place, way, running, point, (WARM, 0.0))
        steered(running, "-i", "on")
        answers = loaded(spot.place, way, running, point, (seconds, 0.0))["answers"]
        steered(running, "-i", "off")
        steered(running, "-d")
        return answers, written(spot.place)


def steered(running: Running, *told: str) -> None:
    """Tells callgrind something: to count or not (-i), to write down what it has (-d)."""
    command = ["callgrind_control", *told, str(running.pid)]
    subprocess.run(command, capture_output=True, check=True, timeout=60)


def written(place: Path) -> Path:
    """The file of the counted part. Raises TimeoutError."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for file in sorted(place.glob("callgrind.*")):
            if (found := re.search(r"^totals: (\d+)", file.read_text(), re.MULTILINE)) and int(found[1]):
                return file
        time.sleep(0.1)
    raise TimeoutError("callgrind wrote nothing")


def told(way: Way, seen: tuple[int, Path], functions: int) -> None:
    """One line for the way; `functions` lines for those of its C functions that took most."""
    answers, file = seen
    total = int(re.findall(r"^totals: (\d+)", file.read_text(), re.MULTILINE)[-1])
    print(f"{way.name}: {total / answers:,.0f} instructions an answer ({answers} answers)", flush=True)
    if functions:
        command = ["callgrind_annotate", "--threshold=100", str(file)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
        named = [line for line in lines if re.match(r" *[\d,]+ .*:\S", line)]
        for line in named[:functions]:
            count, name = int(line.split()[0].replace(",", "")), re.sub(r"^.*?:(\S+).*$", r"\1", line.split(")", 1)[1])
            print(f"  {count / answers:>9,.0f}  {name}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="WAY", help="this way only; repeatable")
    parser.add_argument("--point", default="json c=16", metavar="POINT")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--functions", type=int, default=0, help="also the C functions that took most")
    return parser.parse_args()


if __name__ == "__main__":
    main()
