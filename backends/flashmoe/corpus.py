"""Which text does the tiny model learn from, and which is held out?

The sources of Python's own standard library (PSF licence), as bytes. Whether a file is held out depends on a hash of
its name, so the split is the same on every machine. `digest` tells library versions apart.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT_OF = 20  # one file in so many is held out
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "__pycache__", "turtledemo"}


def files(held_out: bool) -> Iterator[Path]:
    """The library's sources on one side of the split, by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        first = hashlib.sha256(name.as_posix().encode()).digest()[0]
        if not LEFT_OUT & set(name.parts) and (first % HELD_OUT_OF == 0) == held_out:
            yield path


def text(held_out: bool) -> bytes:
    """The text on one side of the split."""
    return b"\n".join(path.read_bytes() for path in files(held_out))


def digest(data: bytes) -> str:
    """The first twelve hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:12]
