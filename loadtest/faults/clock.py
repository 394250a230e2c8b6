"""How does a process get a wrong clock?   A small library, made by the machine's C compiler, stands before libc."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


@contextlib.contextmanager
def wrong_clock() -> Iterator[Path]:
    """The library; `shifted` says how to use it. Raises FileNotFoundError without a C compiler."""
    with tempfile.TemporaryDirectory() as place:
        library = Path(place) / "clock.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        yield library


def shifted(library: Path, seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is wrong by `seconds`. Raises ValueError where it has no effect."""
    env = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(seconds)}
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"], env=env, capture_output=True, check=True
    )
    if abs(float(told.stdout) - time.time() - seconds) > 60:
        raise ValueError("a library does not change this Python's clock")
    return env
