"""How does a calibration stand in its file?   JSON, versioned; the policy names the file."""

import json
from datetime import UTC, datetime
from typing import Any

from gateway.calibrate.fitted import Calibration
from gateway.calibrate.logistic import Layer

SCHEMA = 1


def dump(found: Calibration, digest: str, records: int, now: float) -> str:
    """The file's text. `digest` is the SHA-256 of the records' bytes, `now` in seconds since 1970."""
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "records": {"sha256": digest, "n": records},
        "target": found.target.text,
        "inputs": list(found.layer.weights),
        "layer": {name: getattr(found.layer, name) for name in Layer.__slots__},
        "edges": list(found.edges),
        "proven": found.proven,
        "caveats": list(found.caveats),
        "report": found.report,
    }
    return json.dumps(told, indent=2, allow_nan=False) + "\n"


def load(text: str) -> tuple[Layer, tuple[float, ...]]:
    """The layer and the edges of a file's text. Raises ValueError for anything but a calibration of this schema."""
    told = json.loads(text)
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        raise ValueError(f"no calibration of schema {SCHEMA}")
    try:
        layer = Layer(**{name: told["layer"][name] for name in Layer.__slots__})
        edges = tuple(map(float, told["edges"]))
        layer.p(dict.fromkeys(layer.weights, 0.5))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"not a whole calibration: {error!r}") from None
    if list(edges) != sorted(edges):
        raise ValueError("edges are not in order")
    return layer, edges
