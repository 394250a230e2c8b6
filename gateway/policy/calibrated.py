"""Which calibration does a policy file name?"""

from typing import NamedTuple

from gateway.calibration import BELIEVED, Layer, load
from gateway.policy.load import Document
from gateway.policy.references import mapping
from gateway.score import MEASURES

PLACE = ("triage", "calibration")


class Calibrated(NamedTuple):
    """`layer` gives p_complex, `edges` are the thresholds that were found with it, `text` is the file's."""

    layer: Layer
    edges: tuple[float, ...]
    text: str


def calibrated(document: Document) -> Calibrated | None:
    """The calibration in the file that is named, relative to the policy's own; what is wrong with it is noted."""
    name = mapping(document.data, "triage").get("calibration")
    if not isinstance(name, str):
        return None
    try:
        _, text = document.beside(name)
        layer, edges = load(text)
    except OSError as error:
        document.blame(PLACE, f"cannot be read: {error.strerror}")
        return None
    except (ValueError, RecursionError) as error:
        document.blame(PLACE, f"no calibration: {error}")
        return None
    if unknown := sorted(layer.weights.keys() - {*BELIEVED, *MEASURES}):
        document.blame(PLACE, f"looks at what is not measured: {', '.join(unknown)}")
    return Calibrated(layer, edges, text)
