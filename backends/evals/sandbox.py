"""Does a program that a model wrote pass its tests?   Runs it in an isolated process (jail.py)."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

JAIL = Path(__file__).with_name("jail.py")
GRACE = 5.0  # seconds for the jail itself, beyond the program's
MEGABYTES = 1024  # memory limit of a program


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why`: the error that ended the program; `held`: the isolation that the kernel allowed (jail.py)."""

    passed: bool
    why: str
    held: tuple[str, ...]


def executed(program: str, seconds: float = 10.0) -> Verdict:
    """Runs the program for at most `seconds`; it passes if it ends without an error."""
    with tempfile.TemporaryDirectory(prefix="answer-") as folder:
        command = [sys.executable, "-I", "-S", "-B", str(JAIL), folder, str(seconds), str(MEGABYTES)]
        try:
            run = subprocess.run(  # noqa: S603  (our own script)
                command,
                input=program.encode(errors="replace"),
                capture_output=True,
                timeout=seconds + GRACE,
                env={},
                check=False,
            )
            told = json.loads(run.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            return Verdict(False, f"the jail itself ended badly: {type(error).__name__}", ())
    return Verdict(told["passed"], told["why"], tuple(told["held"]))
