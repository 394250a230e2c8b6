"""In what do two policy files differ?"""

import os
import pathlib
from typing import Any

from gateway.ids import fingerprint
from gateway.policy.calibrated import calibration_name
from gateway.policy.load import Document
from gateway.policy.problems import Path, dotted

HIDDEN = "(from the environment)"
Values = dict[str, Any]


def differences(old: Document, new: Document) -> list[tuple[str, Any, Any]]:
    """What differs between two files: path, old value, new value; None for a value that is not given.

    Rules go by their id, as in `rules.sql.route`; `rules` stands for their order. Tests are left out. A value that
    came from the environment is not shown; of a file that both name, as `file next.yaml`, a fingerprint.
    """
    ours, theirs = named(old), named(new)
    both = ours.keys() & theirs.keys()
    before = said(old) | {name: ours[name] for name in both}
    after = said(new) | {name: theirs[name] for name in both}
    paths = sorted(before.keys() | after.keys())
    return [(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]


def named(document: Document) -> Values:
    """Fingerprints of the files that a file names, a candidate's own among them, by their place beside it."""
    folder = pathlib.Path(document.file).parent
    texts = {name: text for name, text in document.files.items() if text and name != document.file}
    if document.calibration is not None:  # perhaps another one than its file's
        texts[str(folder / (calibration_name(document) or ""))] = document.calibration
    return {f"file {os.path.relpath(name, folder)}": fingerprint(text) for name, text in texts.items()}


def said(document: Document) -> Values:
    """All values of a file by path, rules by their id."""
    rules = document.data["rules"]
    found: Values = {"rules": [rule["id"] for rule in rules]}
    for at, rule in enumerate(rules):
        found |= flat(document, rule, ("rules", at), ("rules", rule["id"]))
    for key in document.data.keys() - {"rules", "tests"}:
        found |= flat(document, document.data[key], (key,), (key,))
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
