"""Are the overlays, as kustomize renders them, valid, closed to strangers, and true to recipes and program?"""

import copy
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from backends.recipes.__main__ import parser, written
from backends.recipes.kubernetes import SEEN
from backends.sim import metrics as simulated
from gateway.cli import app as cli
from gateway.policy import load_policy
from tests.manifests import K8S, KUBECTL, OVERLAYS, ROOT, errors, matches, of_kind, pods, rendered

Json = dict[str, Any]
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl renders the manifests, and is not installed")
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
GPU = [overlay for overlay in OVERLAYS if overlay != "sim"]
FOLDERS = sorted(path.parent for path in K8S.rglob("kustomization.yaml"))
README = (K8S / "README.md").read_text()
FILES = [  # what the recipes print
    ("gpu-single-node", "flash", "h200x4"),
    ("gpu-single-node", "pro", "h200x8"),
    ("gpu-multi-node", "flash", "gb200x4"),
    ("gpu-multi-node", "pro", "gb200x8"),
]
pytestmark = needs_kubectl


def containers(overlay: str) -> list[tuple[str, Json]]:
    return [
        (name, container)
        for name, pod in pods(overlay).items()
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    ]


def tier_pods(overlay: str) -> dict[str, Json]:
    component = "app.kubernetes.io/component"
    return {name: pod for name, pod in pods(overlay).items() if pod["metadata"]["labels"].get(component) == "tier"}


# valid


@each_overlay
def test_every_object_fits_the_schema_of_its_kind(overlay: str) -> None:
    found = {f"{one['kind']} {one['metadata']['name']}": errors(one) for one in rendered(overlay)}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def broken(overlay: str, kind: str, change: Callable[[Json], object]) -> list[str]:
    """What is said of an object that is wrong in one place."""
    one = copy.deepcopy(next(one for one in rendered(overlay) if one["kind"] == kind))
    change(one)
    return errors(one)


@pytest.mark.parametrize(
    ("overlay", "kind", "change"),
    [
        ("sim", "Deployment", lambda one: one["spec"]["template"]["spec"].update(terminationGracePeriod=5)),
        ("sim", "Deployment", lambda one: one["spec"]["template"]["spec"]["containers"][0].update(ports=[{"port": 1}])),
        ("sim", "Deployment", lambda one: one["spec"].update(replicas="2")),
        ("sim", "Service", lambda one: one["spec"].update(selector=None)),
        ("sim", "Service", lambda one: one.update(kind="Servce")),
        ("sim", "Namespace", lambda one: one.update(apiVersion="v2")),
        ("gpu-single-node", "ScaledObject", lambda one: one["spec"]["triggers"][0]["metadata"].update(threshold=5)),
        ("gpu-single-node", "ScaledObject", lambda one: one["spec"].update(minReplicas=1)),
        ("gpu-single-node", "ServiceMonitor", lambda one: one["spec"]["endpoints"][0].update(interval="15")),
        ("gpu-single-node", "PrometheusRule", lambda one: one["spec"]["groups"][0]["rules"][0].pop("expr")),
        ("gpu-multi-node", "LeaderWorkerSet", lambda one: one["spec"]["leaderWorkerTemplate"].pop("workerTemplate")),
        (
            "gpu-multi-node",
            "LeaderWorkerSet",
            lambda one: one["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"].update(container=[]),
        ),
        ("inference-pool", "InferencePool", lambda one: one["spec"].pop("endpointPickerRef")),
        ("inference-pool", "HTTPRoute", lambda one: one["spec"]["rules"][0].update(timeouts={"request": "10 min"})),
        ("inference-pool", "InferencePool", lambda one: one["spec"]["targetPorts"][0].update(number="http")),
        ("inference-pool", "Gateway", lambda one: one["spec"]["listeners"][0].update(protocol="HTTP 2")),
        ("inference-pool", "Gateway", lambda one: one["spec"]["listeners"][0]["allowedRoutes"].update(namespace={})),
    ],
)
def test_a_mistake_is_found(overlay: str, kind: str, change: Callable[[Json], object]) -> None:
    assert broken(overlay, kind, lambda one: None) == []
    assert broken(overlay, kind, change)


@each_overlay
def test_no_kind_takes_a_field_that_it_does_not_name(overlay: str) -> None:
    for one in rendered(overlay):
        if "spec" in one:
            assert errors(one | {"spec": one["spec"] | {"replica": 1}}), one["kind"]
        assert errors(one | {"specs": {}}), one["kind"]


@each_overlay
def test_all_is_in_one_namespace_and_nothing_is_there_twice(overlay: str) -> None:
    assert {one["metadata"].get("namespace") for one in rendered(overlay) if one["kind"] != "Namespace"} == {"tiergate"}
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered(overlay)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomizations_list_exactly_the_files_beside_them(folder: Path) -> None:
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())
    kept = [name for config in told.get("configMapGenerator", []) for name in config.get("files", [])]
    listed = [*told.get("resources", []), *told.get("components", []), *kept]
    assert [name for name in listed if not (folder / name).exists()] == []
    beside = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "rules_test.yaml"}
    assert {name for name in listed if name.endswith(".yaml")} == beside


def test_every_component_is_used() -> None:
    used = {
        (folder / name).resolve()
        for folder in FOLDERS
        for name in yaml.safe_load((folder / "kustomization.yaml").read_text()).get("components", [])
    }
    assert used == {folder.resolve() for folder in (K8S / "components").iterdir()}


# true to recipes and program


@pytest.mark.parametrize(("overlay", "tier", "hardware"), FILES)
def test_model_servers_are_what_the_recipes_print(overlay: str, tier: str, hardware: str) -> None:
    command = ["command", "--tier", tier, "--hardware", hardware, "--format", "k8s"]
    file = K8S / "overlays" / overlay / f"{tier}.yaml"
    assert file.read_text() == written(parser().parse_args(command))
    told = (file.parent / "kustomization.yaml").read_text()
    assert f"#   tiergate backends {shlex.join(command)} > {file.name}\n" in told


@pytest.mark.parametrize("overlay", GPU)
def test_tiers_serve_the_models_that_the_policy_asks_for_with_its_context(overlay: str) -> None:
    tiers = load_policy(ROOT / "policies" / "default.yaml").tiers
    for name, pod in tier_pods(overlay).items():
        (container,) = pod["spec"]["containers"]
        said = shlex.split(" ".join([*container["command"], *container["args"]]))
        tier = tiers[name.partition("-")[0].partition("/")[0]]
        assert tier.model in said
        longest = [int(word.partition("=")[2]) for word in said if word.startswith("--max-model-len=")]
        assert tier.can.context <= min(longest, default=tier.can.context)


@each_overlay
def test_the_policy_is_the_file_and_keeps_its_name_when_it_changes(overlay: str) -> None:
    found = of_kind(overlay, "ConfigMap")["policy"]["data"]
    assert found == {"default.yaml": (ROOT / "policies" / "default.yaml").read_text()}


@each_overlay
def test_a_leaving_server_may_finish_the_longest_answer(overlay: str) -> None:
    tiers = load_policy(ROOT / "policies" / "default.yaml").tiers
    longest = max(tier.timeouts.total for tier in tiers.values())
    for name, pod in pods(overlay).items():
        spec = pod["spec"]
        waits = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if name == "gateway" or (overlay in GPU and name in tier_pods(overlay)):
            assert spec["terminationGracePeriodSeconds"] > longest + waits, name
        if overlay in GPU and name in tier_pods(overlay):
            assert waits == SEEN, f"{name} refuses what is new while others still let it in"


# hardened


@each_overlay
def test_no_pod_runs_as_root_writes_its_image_or_knows_the_cluster(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume], name


@each_overlay
def test_no_container_gains_anything_and_each_has_a_limit(overlay: str) -> None:
    for name, container in containers(overlay):
        hardened = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["securityContext"] == hardened, name
        assert container["resources"]["limits"]["memory"], name
        assert re.search(r":v?\d+\.\d+[\w.-]*$", container["image"]), name


@each_overlay
def test_the_namespace_enforces_what_the_pods_keep_to(overlay: str) -> None:
    labels = of_kind(overlay, "Namespace")["tiergate"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


ALLOWED = {
    "sim": {"gateway"},
    "gpu-single-node": {"gateway", "monitoring/prometheus"},
    "gpu-multi-node": {"gateway", "monitoring/prometheus", "pro"},
    "inference-pool": {"gateway", "monitoring/prometheus", "inference", "picker"},
}


@each_overlay
def test_only_the_known_reach_the_model_servers(overlay: str) -> None:
    found = set()
    for name, pod in tier_pods(overlay).items():
        policies = [one["spec"] for one in of_kind(overlay, "NetworkPolicy").values()]
        mine = [spec for spec in policies if matches(spec["podSelector"], pod["metadata"]["labels"])]
        assert any("Ingress" in spec["policyTypes"] for spec in mine), f"{name} is open to all"
        doors = [door for spec in mine for door in spec.get("ingress", [])]
        assert all(door.get("from") for door in doors), f"{name}: a door for everybody"
        found |= {named(source) for door in doors for source in door["from"]}
    assert found == ALLOWED[overlay]


def named(source: Json) -> str:
    """Who may come in: the last label's value, with the namespace before it."""
    assert source["podSelector"]["matchLabels"], "all pods"
    (who,) = source["podSelector"]["matchLabels"].values()
    where = list(source.get("namespaceSelector", {}).get("matchLabels", {}).values())
    return "/".join([*where, who])


@each_overlay
def test_what_the_gateway_asks_it_may_reach(overlay: str) -> None:
    pod = pods(overlay)["gateway"]
    policies = of_kind(overlay, "NetworkPolicy").values()
    mine = [one["spec"] for one in policies if matches(one["spec"]["podSelector"], pod["metadata"]["labels"])]
    doors = [door for spec in mine for door in spec.get("egress", [])]
    open_ = {
        (label, port["port"])
        for door in doors
        for peer in door["to"]
        for label in peer.get("podSelector", {}).get("matchLabels", {}).values()
        for port in door["ports"]
    }
    for url in urls(pod):
        assert any(port == url.port for _, port in open_), url.netloc
    assert ("store", 6379) in open_


# nothing points at nothing


def urls(pod: Json) -> list[Any]:
    values = [entry.get("value", "") for one in pod["spec"]["containers"] for entry in one.get("env", [])]
    return [urlsplit(value) for value in values if "://" in value]


@each_overlay
def test_addresses_name_services_or_the_inference_gateway_and_their_ports(overlay: str) -> None:
    services = {
        name: {port["port"] for port in one["spec"]["ports"]} for name, one in of_kind(overlay, "Service").items()
    }
    for name, one in of_kind(overlay, "Gateway").items():
        ports = {listener["port"] for listener in one["spec"]["listeners"]}
        services[f"{name}-{one['spec']['gatewayClassName']}"] = ports
    for url in urls(pods(overlay)["gateway"]):
        assert url.port in services[str(url.hostname)]


@each_overlay
def test_services_select_pods_that_serve_their_ports(overlay: str) -> None:
    for name, one in of_kind(overlay, "Service").items():
        wanted = {label: v for label, v in one["spec"]["selector"].items() if "worker-index" not in label}
        chosen = [
            pod
            for maker, pod in pods(overlay).items()
            if wanted.items() <= pod["metadata"]["labels"].items() and not maker.endswith("/worker")
        ]
        assert len(chosen) == 1, name
        served = {port["name"] for port in chosen[0]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= served


@each_overlay
def test_what_scales_guards_and_watches_finds_its_target(overlay: str) -> None:
    workloads = {(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in rendered(overlay)}
    scaled = [*of_kind(overlay, "HorizontalPodAutoscaler").values(), *of_kind(overlay, "ScaledObject").values()]
    for one in scaled:
        target = one["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"], target["name"]) in workloads
    for one in of_kind(overlay, "PodDisruptionBudget").values():
        assert [p for p in pods(overlay).values() if matches(one["spec"]["selector"], p["metadata"]["labels"])]
    for one in of_kind(overlay, "ServiceMonitor").values():
        services = of_kind(overlay, "Service").values()
        found = [s for s in services if matches(one["spec"]["selector"], s["metadata"]["labels"])]
        assert found
        ports = {port["name"] for service in found for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in one["spec"]["endpoints"]} == ports


@pytest.mark.parametrize("overlay", GPU)
def test_what_is_scaled_has_no_number_of_its_own(overlay: str) -> None:
    scaled = [*of_kind(overlay, "HorizontalPodAutoscaler").values(), *of_kind(overlay, "ScaledObject").values()]
    targets = [one["spec"]["scaleTargetRef"] for one in scaled]
    assert sorted(target["name"].removesuffix("-hosts") for target in targets) == ["flash", "gateway", "pro"]
    for target in targets:
        assert "replicas" not in of_kind(overlay, target["kind"])[target["name"]]["spec"]
    assert of_kind(overlay, "HorizontalPodAutoscaler")["gateway"]["spec"]["minReplicas"] >= 2


def test_each_pool_has_its_tier_behind_its_own_port_of_the_inference_gateway() -> None:
    listeners = of_kind("inference-pool", "Gateway")["inference"]["spec"]["listeners"]
    assert {listener["protocol"] for listener in listeners} == {"HTTP"}, "the API takes any name here"
    ports = {listener["name"]: listener["port"] for listener in listeners}
    env = {
        entry["name"]: entry.get("value") for entry in pods("inference-pool")["gateway"]["spec"]["containers"][0]["env"]
    }
    for tier in ("flash", "pro"):
        route = of_kind("inference-pool", "HTTPRoute")[tier]["spec"]
        assert route["parentRefs"] == [{"name": "inference", "sectionName": tier}]
        assert route["rules"][0]["backendRefs"][0]["name"] == tier
        selector = of_kind("inference-pool", "InferencePool")[tier]["spec"]["selector"]
        assert matches(selector, pods("inference-pool")[tier]["metadata"]["labels"])
        assert urlsplit(str(env[f"{tier.upper()}_URL"])).port == ports[tier]


@pytest.mark.parametrize("overlay", GPU)
def test_model_servers_are_scaled_by_a_metric_that_they_have(overlay: str) -> None:
    shown = Path(simulated.__file__).read_text()
    for name, one in of_kind(overlay, "ScaledObject").items():
        query = one["spec"]["triggers"][0]["metadata"]["query"]
        (metric,) = re.findall(r"vllm:(\w+)", query)
        assert metric in shown
        assert f'namespace="tiergate", service="{name}"' in query
        assert name in of_kind(overlay, "Service")


def test_the_operator_s_rules_are_those_for_any_prometheus_and_one_more() -> None:
    folder = K8S / "components"
    ours, *others = yaml.safe_load((folder / "monitoring" / "rules.yaml").read_text())["spec"]["groups"]
    assert ours["name"] == "tiergate.deployment"
    assert others == yaml.safe_load((folder / "dashboards" / "rules.yaml").read_text())["groups"]


# k8s/README.md


def commands(program: str) -> list[list[str]]:
    lines = re.findall(r"^    (.+)$", README, re.MULTILINE)
    said = (shlex.split(line, comments=True) for line in lines)
    return [words[1:] for words in said if words[:1] == [program]]


def test_the_page_applies_overlays_that_are_there_and_names_each() -> None:
    paths = [words[words.index("-k") + 1] for words in commands("kubectl") if "-k" in words]
    paths += [words[1] for words in commands("kubectl") if words[0] == "kustomize"]
    assert {Path(path).name for path in paths} <= set(OVERLAYS) | {"policies"}
    assert [path for path in paths if not (ROOT / path).is_dir()] == []
    for folder in FOLDERS:
        assert f"`{folder.relative_to(K8S)}`" in README


def test_the_page_s_own_overlay_renders_with_its_namespace_its_images_and_its_secret(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(text.replace("..", os.path.relpath(ROOT, tmp_path), 1))
    gateway = pods(str(tmp_path))["gateway"]["spec"]
    for container in (*gateway["containers"], *gateway["initContainers"]):
        assert container["image"] == "REGISTRY/tiergate:0.1.0"
        store = {"secretKeyRef": {"name": "gateway", "key": "store"}}
        assert {"name": "GATEWAY_REDIS_URL", "valueFrom": store} in container["env"]
    assert {one["metadata"].get("namespace", "mine") for one in rendered(str(tmp_path))} == {"mine"}
    named = re.findall(r'namespace="(\w+)"', str(rendered(str(tmp_path))))
    assert named == ["mine"] * 3, "by the queries of Flash and Pro and by GatewayGone"


def test_the_page_s_commands_are_known_to_the_program() -> None:
    found = commands("tiergate")
    assert found
    for words in found:
        if words[0] == "backends":
            parser().parse_args(words[1:])
            continue
        known, rest = typer.main.get_command(cli), words
        while hasattr(known, "resolve_command"):
            _, known, rest = known.resolve_command(None, rest)
        known.make_context("page", rest).close()
