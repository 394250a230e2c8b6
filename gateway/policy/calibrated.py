"""Which calibration and which embeddings does a policy file name?"""

from pathlib import Path
from typing import NamedTuple

from gateway.calibration import BELIEVED, Fitted, load
from gateway.policy.load import Document
from gateway.policy.references import mapping
from gateway.score import AXES, EMBEDDED, HEAD, MEASURES, Axes, Table, read_table

CALIBRATION, TABLE = ("triage", "calibration"), ("triage", "embeddings")


class Calibrated(NamedTuple):
    """A calibration file: what it holds, and its text."""

    fitted: Fitted
    text: str


def calibration_name(document: Document) -> str | None:
    """The calibration file that the policy names, if it does."""
    name = mapping(document.data, "triage").get("calibration")
    return name if isinstance(name, str) else None


def calibrated(document: Document) -> Calibrated | None:
    """The calibration that the policy names, by a path relative to its own file; None where there is none or its file
    is invalid, which is noted in `document`."""
    name, text = calibration_name(document), document.calibration
    if name is None:
        return None
    try:
        if text is None:
            _, text = document.beside(name)
        found = load(text)
    except OSError as error:
        document.blame(CALIBRATION, f"cannot be read: {error.strerror}")
        return None
    except (ValueError, RecursionError) as error:
        document.blame(CALIBRATION, f"no calibration: {error}")
        return None
    if unknown := sorted(found.layer.inputs - {*BELIEVED, *MEASURES, EMBEDDED, *AXES}):
        document.blame(CALIBRATION, f"looks at what is not measured: {', '.join(unknown)}")
    document.calibration = text
    return Calibrated(found, text)


def embedded(document: Document) -> Table | Axes | None:
    """The embeddings that the policy names, by a path relative to its own file; None as for `calibrated`."""
    name = mapping(document.data, "triage").get("embeddings")
    if not isinstance(name, str):
        return None
    try:
        head, _ = document.beside(f"{name}/{HEAD}")  # a changed one is followed; the model beside it is read then, too
        return read_table(Path(head).parent)
    except OSError as error:
        document.blame(TABLE, f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        document.blame(TABLE, f"no embeddings: {error}")
    return None
