"""Which measurement is a part, and where does it run?   Each imports only what it needs: some of it takes seconds."""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch

from loadtest.kernels.parts import Book


def environment() -> dict[str, Any]:
    """Of this process. `gpu` is None where there is none."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton", "transformers", "numpy")}
    return {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, **versions}


def work(book: Book, name: str, tiny: bool, rivals: Path | None) -> None:
    """Measures the part of that name."""
    kind, _, rest = name.partition("-")
    if kind == "ceilings":
        from loadtest.kernels import ceilings

        ceilings.measure(book, tiny)
    elif kind == "correct":
        from loadtest.kernels import correct

        shape, _, form = rest.rpartition("-")
        correct.measure(book, shape, form, tiny)
    elif kind == "policies":
        from loadtest.kernels import quality

        quality.measure(book, tiny)
    elif kind == "serve":
        from loadtest.kernels import serve

        serve.measure(book, rest, tiny)
    else:
        from loadtest.kernels import grid
        from loadtest.kernels import rivals as others

        grid.measure(book, name, tiny, others.Rivals(rivals))
