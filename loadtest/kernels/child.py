"""Which measurement is a part, and where does it run?"""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch

from backends.flashmoe.kernels.launch import Format
from loadtest.kernels import ceilings, correct, grid, quality, serve
from loadtest.kernels.parts import Book
from loadtest.kernels.rivals import Rivals


def environment() -> dict[str, Any]:
    """Of this process. `gpu` is None where there is none."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton", "transformers", "numpy")}
    return {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, **versions}


def work(book: Book, name: str, tiny: bool, rivals: Path | None) -> None:
    """Measures one part. Where there is no GPU the kernels are interpreted: TRITON_INTERPRET=1, or nothing runs."""
    if name == "ceilings":
        ceilings.measure(book, tiny)
    elif name.startswith("correct-"):
        shape, _, form = name.removeprefix("correct-").rpartition("-")
        correct.measure(book, shape, list(Format) if form == "all" else [Format(form)], tiny)
    elif name == "policies":
        quality.measure(book, tiny)
    elif name.startswith("serve-"):
        serve.measure(book, name.removeprefix("serve-"), tiny)
    else:
        grid.measure(book, name, tiny, Rivals(rivals))
