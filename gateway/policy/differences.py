"""In what do two policy files differ?"""

import hashlib
from typing import Any

from gateway.policy.load import Document
from gateway.policy.problems import Path, dotted

HIDDEN = "(from the environment)"
Values = dict[str, Any]


def differences(old: Document, new: Document) -> list[tuple[str, Any, Any]]:
    """What differs between two files: path, old value, new value; None for a value that is not given.

    Rules go by their id, as in `rules.sql.route`; `rules` stands for their order. Tests are left out. A value that
    came from the environment is not shown.
    """
    before, after = said(old), said(new)
    paths = sorted(before.keys() | after.keys())
    return [(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]


def said(document: Document) -> Values:
    """All values of a file by path, rules by their id; beside a calibration's name the hash of what it holds."""
    rules = document.data["rules"]
    found: Values = {"rules": [rule["id"] for rule in rules]}
    for at, rule in enumerate(rules):
        found |= flat(document, rule, ("rules", at), ("rules", rule["id"]))
    for key in document.data.keys() - {"rules", "tests"}:
        found |= flat(document, document.data[key], (key,), (key,))
    if document.calibration is not None:
        held = hashlib.sha256(document.calibration.encode()).hexdigest()[:12]
        found["triage.calibration"] = f"{found['triage.calibration']} ({held})"
    return found


def flat(document: Document, value: Any, path: Path, name: Path) -> Values:
    """The values below `path`, by dotted `name`."""
    if isinstance(value, dict) and value:
        found: Values = {}
        for key, inner in value.items():
            found |= flat(document, inner, (*path, key), (*name, key))
        return found
    foreign = any(at[: len(path)] == path for at in document.foreign)
    return {dotted(name): HIDDEN if foreign else value}
