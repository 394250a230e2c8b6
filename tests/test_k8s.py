"""Do the Kubernetes manifests fit each other and the program?"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from gateway.app import PART
from gateway.policy import load_policy
from gateway.settings import Settings

JSON = dict[str, Any]
ROOT = Path(__file__).parent.parent
FOLDERS = [ROOT / "k8s" / "base", ROOT / "k8s" / "overlays" / "sim"]
OBJECTS: list[JSON] = [
    document
    for folder in FOLDERS
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    if name.endswith(".yaml")
    for document in yaml.safe_load_all((folder / name).read_text())
]
PODS = {o["metadata"]["name"]: o["spec"]["template"] for o in OBJECTS if o["kind"] in {"Deployment", "StatefulSet"}}
CONTAINERS: dict[str, JSON] = {
    f"{name}/{container['name']}": container
    for name, pod in PODS.items()
    for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
}
K8S_SERVICES = {o["metadata"]["name"]: o["spec"] for o in OBJECTS if o["kind"] == "Service"}
each_container = pytest.mark.parametrize("name", CONTAINERS)


def environment(name: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in CONTAINERS[name].get("env", [])}


@each_container
def test_images_are_those_of_the_compose_file(name: str) -> None:
    compose = re.findall(r"image: \$\{\w+:-(.+)\}", (ROOT / "docker-compose.yml").read_text())
    assert CONTAINERS[name]["image"] in compose


@each_container
def test_commands_are_those_of_the_compose_file(name: str) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert services[name.split("/", maxsplit=1)[1]]["command"] == CONTAINERS[name]["args"]


@each_container
def test_variables_of_the_gateway_are_settings_with_right_values(name: str) -> None:
    ours = {key: value for key, value in environment(name).items() if key.startswith("GATEWAY_")}
    fields: JSON = {key.removeprefix("GATEWAY_").lower(): value for key, value in ours.items()}
    assert set(fields) <= set(Settings.model_fields)
    Settings(**fields)


def test_the_policy_asks_for_the_variables_that_name_the_tiers() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", (ROOT / "policies" / "default.yaml").read_text()))
    assert wanted == {key for key in environment("gateway/gateway") if not key.startswith("GATEWAY_")}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomizations_list_exactly_the_files_beside_them(folder: Path) -> None:
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    beside = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert {name for name in listed if name.endswith(".yaml")} == beside
    assert [name for name in listed if not (folder / name).exists()] == []


def test_the_policy_is_mounted_as_a_folder_that_can_be_swapped() -> None:
    generated = yaml.safe_load((ROOT / "policies" / "Kustomization").read_text())["configMapGenerator"][0]
    mount = next(m for m in CONTAINERS["gateway/gateway"]["volumeMounts"] if m["name"] == "policy")
    volume = next(v for v in PODS["gateway"]["spec"]["volumes"] if v["name"] == "policy")
    assert volume["configMap"]["name"] == generated["name"]
    assert "subPath" not in mount
    path = Path(environment("gateway/gateway")["GATEWAY_POLICY"])
    assert str(path.parent) == mount["mountPath"]
    assert path.name in generated["files"]
    assert generated["options"]["disableNameSuffixHash"] is True


@each_container
def test_containers_may_write_nothing_and_gain_nothing(name: str) -> None:
    pod, container = PODS[name.split("/", maxsplit=1)[0]]["spec"], CONTAINERS[name]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["limits"]["memory"]


@each_container
def test_containers_that_stay_have_probes_on_ports_they_serve(name: str) -> None:
    container = CONTAINERS[name]
    if container in PODS[name.split("/", maxsplit=1)[0]]["spec"].get("initContainers", []):
        return
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe].get("httpGet")
        assert asked is None or (asked["port"] in ports and asked["path"] in {"/health", "/ready"})


@pytest.mark.parametrize("name", PODS)
def test_services_select_the_pods_that_serve_their_ports(name: str) -> None:
    owner = next(o for o in OBJECTS if o["metadata"]["name"] == name and "template" in o["spec"])
    labels = PODS[name]["metadata"]["labels"]
    assert owner["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert [n for n, spec in K8S_SERVICES.items() if spec["selector"].items() <= labels.items()] == [name]
    served = {port["name"] for port in CONTAINERS[f"{name}/{name}"]["ports"]}
    assert {port["targetPort"] for port in K8S_SERVICES[name]["ports"]} <= served


@each_container
def test_addresses_name_services_and_their_ports(name: str) -> None:
    for value in environment(name).values():
        if "://" in value:
            url = urlsplit(value)
            assert url.port in {port["port"] for port in K8S_SERVICES[str(url.hostname)]["ports"]}


def test_kubernetes_sets_no_variable_that_looks_like_a_setting() -> None:
    assert PODS["gateway"]["spec"]["enableServiceLinks"] is False


def test_only_the_gateway_reaches_the_tiers_and_the_store() -> None:
    policies = {o["metadata"]["name"]: o["spec"] for o in OBJECTS if o["kind"] == "NetworkPolicy"}
    assert policies["nobody-else"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    component = {name: pod["metadata"]["labels"]["app.kubernetes.io/component"] for name, pod in PODS.items()}
    for policy, pod in (("tiers", "flash"), ("tiers", "pro"), ("store", "valkey")):
        assert policies[policy]["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": component[pod]}}
        (door,) = policies[policy]["ingress"]
        gateway = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": component["gateway"]}}}
        assert door["from"] == [gateway]
        assert [p["port"] for p in door["ports"]] == [p["containerPort"] for p in CONTAINERS[f"{pod}/{pod}"]["ports"]]


def size(text: str) -> int:
    """Bytes, of Kubernetes' or Valkey's notation."""
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
    return int(number) << {"mb": 20, "Mi": 20, "Gi": 30}[unit]


def test_one_caller_may_send_four_of_the_longest_bodies_at_once() -> None:
    room = size(CONTAINERS["gateway/gateway"]["resources"]["limits"]["memory"]) // PART
    assert room >= 2 * 4 * Settings().max_body, "it takes no more than it leaves"


def test_the_store_has_disk_and_memory_for_its_append_only_file_while_that_is_rewritten() -> None:
    (claim,) = next(o for o in OBJECTS if o["kind"] == "StatefulSet")["spec"]["volumeClaimTemplates"]
    args = CONTAINERS["valkey/valkey"]["args"]
    most = size(args[args.index("--maxmemory") + 1])
    assert size(claim["spec"]["resources"]["requests"]["storage"]) >= 6 * most
    resources = CONTAINERS["valkey/valkey"]["resources"]
    assert 2.5 * most <= size(resources["requests"]["memory"]) == size(resources["limits"]["memory"])


def test_a_leaving_gateway_may_finish_the_longest_answer() -> None:
    spec = PODS["gateway"]["spec"]
    fields = {key: value for key, value in environment("gateway/gateway").items() if key.startswith("GATEWAY_")}
    settings = Settings(**{key.removeprefix("GATEWAY_").lower(): value for key, value in fields.items()})  # type: ignore[arg-type]
    tiers = load_policy(ROOT / "policies" / "default.yaml").tiers
    assert settings.drain >= max(tier.timeouts.total for tier in tiers.values())
    assert spec["terminationGracePeriodSeconds"] > settings.pause + settings.drain


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomizations_render_into_one_namespace(folder: Path) -> None:
    made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    rendered = list(yaml.safe_load_all(made.stdout))
    assert {o["metadata"].get("namespace") for o in rendered if o["kind"] != "Namespace"} == {"tiergate"}
    names = {(o["kind"], o["metadata"]["name"]) for o in rendered}
    assert ("ConfigMap", "policy") in names
    written = {(o["kind"], o["metadata"]["name"]) for o in OBJECTS} | {("ConfigMap", "policy")}
    assert names == written if folder == FOLDERS[-1] else names < written
