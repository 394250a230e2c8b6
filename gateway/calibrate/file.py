"""What is in a calibration's file?   JSON with a schema version; the policy names the file."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from gateway.calibrate.fitted import Calibration
from gateway.calibration import SCHEMA


def dump(found: Calibration, digest: str, records: int, now: float) -> str:
    """The file's text. `digest` is the SHA-256 of the records' bytes, `now` in seconds since 1970."""
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "records": {"sha256": digest, "n": records},
        "target": found.target.text,
        "inputs": list(found.layer.weights),
        "layer": asdict(found.layer),
        "edges": list(found.edges),
        "basis": asdict(found.basis),
        "proven": found.proven,
        "caveats": list(found.caveats),
        "report": found.report,
    }
    return json.dumps(told, indent=2, allow_nan=False) + "\n"
