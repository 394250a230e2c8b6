"""What kustomize makes of k8s/, and what each kind may look like."""

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Json = dict[str, Any]
ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
KUBECTL = shutil.which("kubectl")
SCHEMAS = ROOT / "tests" / "data" / "k8s"
WITH_PODS = {"Deployment", "StatefulSet", "LeaderWorkerSet"}


@functools.cache
def rendered(overlay: str) -> list[Json]:
    """The objects that `kubectl apply -k` would send."""
    assert KUBECTL
    made = subprocess.run(
        [KUBECTL, "kustomize", str(K8S / "overlays" / overlay)], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(made.stdout))


def of_kind(overlay: str, kind: str) -> dict[str, Json]:
    """Objects by name."""
    return {one["metadata"]["name"]: one for one in rendered(overlay) if one["kind"] == kind}


def pods(overlay: str) -> dict[str, Json]:
    """Pod templates by who makes them; those of a LeaderWorkerSet apart, as NAME/leader and NAME/worker."""
    found: dict[str, Json] = {}
    for one in rendered(overlay):
        name, spec = one["metadata"]["name"], one.get("spec", {})
        if one["kind"] == "LeaderWorkerSet":
            template = spec["leaderWorkerTemplate"]
            found |= {f"{name}/{role}": template[f"{role}Template"] for role in ("leader", "worker")}
        elif one["kind"] in WITH_PODS:
            found[name] = spec["template"]
    return found


def matches(selector: Json, labels: Json) -> bool:
    """Whether a label selector takes what has these labels; an empty one takes all."""
    assert selector.keys() <= {"matchLabels"}, "only matchLabels is understood here"
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


@functools.cache
def schemas() -> Json:
    """Of each kind, Kubernetes' own and the custom ones, with what their references need."""
    core, custom = (json.loads((SCHEMAS / name).read_text()) for name in ("core.json", "crds.json"))
    return {key: core[key] | custom[key] for key in ("kinds", "$defs")}


def errors(one: Json) -> list[str]:
    """What is wrong with an object. A kind without a schema is wrong."""
    known, kind = schemas(), f"{one['apiVersion']}/{one['kind']}"
    if kind not in known["kinds"]:
        return [f"no schema for {kind}"]
    return _told(known["kinds"][kind] | {"$defs": known["$defs"]}, one)


def _told(schema: Json, one: Json) -> list[str]:
    found = jsonschema.Draft202012Validator(schema).iter_errors(one)
    return [f"{error.json_path}: {error.message}" for error in found] + _nulls(one, "$")


def _nulls(value: Any, path: str) -> list[str]:
    """Kubernetes takes null for a field that is left out: here it is one that was forgotten."""
    if value is None:
        return [f"{path}: null"]
    if isinstance(value, dict):
        return [error for name, one in value.items() for error in _nulls(one, f"{path}.{name}")]
    if isinstance(value, list):
        return [error for n, one in enumerate(value) for error in _nulls(one, f"{path}[{n}]")]
    return []
