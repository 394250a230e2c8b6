"""How does a command end in time and say what it has, whatever breaks?

Each part is a process of its own, which writes a JSON line for every figure as soon as it has it. One that hangs is
ended by its pid when its time is over; one that dies (a fault of the GPU takes its whole process) loses what it had not
written yet. The parent knows no torch and writes the result after each part.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from loadtest.kernels.plan import Part

GRACE = 8.0  # seconds to write down what there is, before a part is ended
PROGRAM = (sys.executable, "-m", "loadtest.kernels", "part")
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """A part's end. `state`: ran, failed, out of time, not run."""

    name: str
    seconds: float
    state: str
    note: str = ""


Outcome = tuple[Ended, list[Line]]  # of a part: what became of it, and every line that it wrote


class Book:
    """A part's file of figures (JSON lines) and its deadline."""

    def __init__(self, file: TextIO, seconds: float) -> None:
        self.file, self.end = file, time.monotonic() + seconds

    def write(self, kind: str, **values: Any) -> None:
        """Adds a line: kinds are env, ceiling, correct, row, point, time, left."""
        self.file.write(json.dumps({"kind": kind} | values) + "\n")
        self.file.flush()

    def left(self) -> float:
        """Seconds to the deadline; negative after it."""
        return self.end - time.monotonic()

    @contextmanager
    def figure(self, name: str) -> Iterator[None]:
        """An error inside the block loses this figure only, and is recorded as left."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  a compiler's, a driver's, a rival's: whatever it is, the others go on
            self.write("left", name=name, why=f"broke: {type(error).__name__}: {error}"[:300].replace("\n", " "))

    def within(self, todo: Sequence[Any], name: Any = str) -> Iterator[Any]:
        """Yields items until the deadline; records the others as left."""
        for at, item in enumerate(todo):
            if self.left() <= 0:
                for rest in todo[at:]:
                    self.write("left", name=name(rest), why="no time")
                return
            yield item


def at_once(together: Sequence[Part], left: float, words: Sequence[str], folder: Path) -> list[Outcome]:
    """Runs parts side by side, none for longer than what is left of the command's time."""
    with ThreadPoolExecutor(len(together)) as pool:
        return list(pool.map(lambda part: run(part, min(part.seconds, left), words, folder), together))


def run(part: Part, seconds: float, words: Sequence[str], folder: Path, program: Sequence[str] = PROGRAM) -> Outcome:
    """Runs a part for at most so many seconds. The program gets its name, its file, its seconds and the words."""
    if seconds <= GRACE:
        return Ended(part.name, 0.0, "not run", "no time was left"), []
    lines, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    lines.touch()
    command = [*program, part.name, str(lines), f"{seconds - GRACE:.0f}", *words]
    began = time.monotonic()
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as child:
        try:
            code = child.wait(seconds)
            state = "ran" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            child.kill()
            code, state = child.wait(10), "out of time"
    note = "" if state == "ran" else _last(log, code)
    return Ended(part.name, round(time.monotonic() - began, 1), state, note), read(lines)


def read(path: Path) -> list[Line]:
    """The lines of a part; one that was cut off by its end is dropped."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def collected(command: str, ended: Sequence[Ended], lines: Sequence[Line], tiny: bool) -> dict[str, Any]:
    """All that a command found, as it is kept: `gpu` is None where there was none."""
    of: dict[str, list[Line]] = {}
    for line in lines:
        of.setdefault(line["kind"], []).append({key: value for key, value in line.items() if key != "kind"})
    env = of.get("env", [{}])[0]
    return {
        "command": command,
        "gpu": env.get("gpu"),
        "tiny": tiny,
        "env": env,
        "parts": [asdict(one) for one in ended],
        "ceilings": {line["name"]: line["value"] for line in of.get("ceiling", [])},
        "correct": of.get("correct", []),
        "rows": of.get("row", []),
        "points": of.get("point", []),
        "times": of.get("time", []),
        "left": of.get("left", []),
    }


def _last(log: Path, code: int) -> str:
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit {code}: {words[-1][:300] if words else 'said nothing'}"
