"""On which prompts are routing decisions evaluated?   JSON lines, plain or gzipped, one file for each set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.evals.tasks import DataError, rows


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt with the scores (0 to 1) of a weak model, a strong one and `others` by name, or a label (0 simple, 1
    complex). `gain`: strong less weak."""

    id: str
    prompt: str
    gain: float | None
    weak: float | None
    strong: float | None
    label: int | None
    language: str
    others: Mapping[str, float] = field(default_factory=dict)


def sets(places: Sequence[Path]) -> Iterator[tuple[str, list[Row]]]:
    """Name and rows of each set, from files and from the *.jsonl and *.jsonl.gz of folders. Raises DataError,
    OSError."""
    for place in places:
        files = sorted((*place.glob("*.jsonl"), *place.glob("*.jsonl.gz"))) if place.is_dir() else [place]
        for file in files:
            yield file.name.partition(".")[0], [row(told) for told in rows(file)]


def row(told: dict[str, Any]) -> Row:
    """A row from id, prompt, weak_score, strong_score, label, lang, scores. Raises DataError without the first two."""
    if not {"id", "prompt"} <= told.keys():
        raise DataError(f"no labelled prompt, which has id and prompt: {str(told)[:80]}")
    weak, strong = told.get("weak_score"), told.get("strong_score")
    gain = None if weak is None or strong is None else strong - weak
    others = told.get("scores") or {}
    return Row(told["id"], told["prompt"], gain, weak, strong, told.get("label"), told.get("lang") or "en", others)
