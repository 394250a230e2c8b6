"""How does the API server get the workers' figures?   From a JSON file of each, in a temporary folder."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

FOLDER = "FLASHMOE_VLLM_FOLDER"  # set by the first process, inherited by those that it starts


def folder() -> Path:
    """The server's folder; made by its first process, and removed when that ends."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="flashmoe-")
        atexit.register(_remove, os.environ[FOLDER], os.getpid())
    return Path(os.environ[FOLDER])


def tell(worker: str, figures: dict[str, Any]) -> None:
    """Replaces a worker's file, atomically. Does nothing when the folder is gone, as the server is ending, or full."""
    file = folder() / f"{worker}.json"
    try:
        file.with_suffix(".new").write_text(json.dumps(figures))
        file.with_suffix(".new").replace(file)
    except OSError:
        return


def told() -> dict[str, dict[str, Any]]:
    """The figures of each worker on this machine, by its name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder().glob("*.json"))}


def _remove(place: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(place, ignore_errors=True)
