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
def schemas() -> tuple[Json, Json]:
    """Kubernetes' own kinds, and the custom ones, each with what its references need."""
    core = json.loads((SCHEMAS / "core.json").read_text())
    custom = yaml.safe_load((SCHEMAS / "crds.yaml").read_text())
    return core, {"kinds": custom["kinds"], "$defs": core["$defs"] | custom["$defs"]}


def errors(one: Json) -> list[str]:
    """What is wrong with an object. A kind without a schema is wrong."""
    core, custom = schemas()
    kind = f"{one['apiVersion']}/{one['kind']}"
    if kind in core["kinds"]:
        return _told(core["kinds"][kind] | {"$defs": core["$defs"]}, one)
    if kind not in custom["kinds"]:
        return [f"no schema for {kind}"]
    meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    whole = {
        "type": "object",
        "required": ["metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"$ref": f"#/$defs/{meta}"},
            "spec": custom["kinds"][kind],
        },
    }
    return _told(whole | {"$defs": custom["$defs"]}, one)


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
