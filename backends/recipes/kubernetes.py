"""Which Kubernetes objects serve a tier?   A Deployment on one host, a LeaderWorkerSet over several; a Service."""

from typing import Any

from backends.recipes.fit import Wish
from backends.recipes.formats import words
from backends.recipes.hardware import Impossible
from backends.recipes.servers import PORT, ROCM, SHUTDOWN, Server, servers

Json = dict[str, Any]
TIER = {"app.kubernetes.io/component": "tier"}  # what network policies and Prometheus select by
SEEN = 5  # seconds until every proxy has taken a terminating pod out of its endpoints


def objects(wish: Wish) -> list[Json]:
    """A tier's objects but for the claim `models`. Raises Impossible for other engines and for prefill and decode
    apart."""
    made = servers(wish)
    if wish.engine != "vllm" or wish.strategy == "pd":
        raise Impossible(
            "Kubernetes manifests are written for vLLM that prefills and decodes in one place: --format shell"
        )
    if len(made) == 1:
        return [_service(wish.tier), _deployment(wish.tier, made[0])]
    return [_service(wish.tier, leader=True), _set(wish.tier, made, wish.hardware.nodes)]


def _labels(tier: str) -> Json:
    return {"app.kubernetes.io/name": tier}


def _service(tier: str, leader: bool = False) -> Json:
    selector = _labels(tier) | ({"leaderworkerset.sigs.k8s.io/worker-index": "0"} if leader else {})
    ports = [{"name": "http", "port": PORT, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": tier, "labels": _labels(tier) | TIER},
        "spec": {"selector": selector, "ports": ports},
    }


def _deployment(tier: str, server: Server) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": tier, "labels": _labels(tier) | TIER},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": _labels(tier)},
            "strategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},  # there are no GPUs for a surge pod
            "template": _pod(tier, server, list(server.argv[:2]), list(server.argv[2:])),
        },
    }


def _set(tier: str, made: list[Server], nodes: int) -> Json:
    """A LeaderWorkerSet: one group of pods, a host each, restarted together when one fails. It sets the LWS_ variables
    in their arguments."""
    pods = [_pod(tier, server, ["sh", "-c"], ["exec " + " ".join(words(server.argv))]) for server in made]
    template = {"size": nodes, "restartPolicy": "RecreateGroupOnPodRestart", "leaderTemplate": pods[0]}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": f"{tier}-hosts", "labels": _labels(tier) | TIER},  # it makes a Service of this name, too
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",  # a leader is ready when its workers are
            "leaderWorkerTemplate": template | {"workerTemplate": pods[1]},
        },
    }


def _pod(tier: str, server: Server, command: list[str], args: list[str]) -> Json:
    return {
        "metadata": {"labels": _labels(tier) | TIER},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": SEEN + SHUTDOWN + 15,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 2000,  # the image's own: torch asks for the name of the user it runs as
                "runAsGroup": 0,
                "fsGroup": 2000,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "tolerations": [{"key": _gpu(server), "operator": "Exists", "effect": "NoSchedule"}],
            "containers": [_container(tier, server, command, args)],
            "volumes": [
                {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


def _container(tier: str, server: Server, command: list[str], args: list[str]) -> Json:
    gpus, folders = {_gpu(server): str(len(server.gpus))}, {"models": "/models", "shm": "/dev/shm", "tmp": "/tmp"}  # noqa: S108
    return {
        "name": tier,
        "image": server.image,
        "command": command,
        "args": args,
        "env": _env(server),
        **(_answers() if server.port else {}),
        "lifecycle": {"preStop": {"sleep": {"seconds": SEEN}}},  # a leader's workers refuse what is new from SIGTERM on
        "resources": {"requests": {"cpu": "8", "memory": "64Gi"} | gpus, "limits": {"memory": "256Gi"} | gpus},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in folders.items()],
    }


def _gpu(server: Server) -> str:
    return "amd.com/gpu" if server.image == ROCM else "nvidia.com/gpu"


def _env(server: Server) -> list[Json]:
    """The environment: weights and compiled kernels are cached on the models' volume; gated weights need a token."""
    token = {"name": "hugging-face", "key": "token", "optional": True}
    kept = {"HF_HOME": "/models", "VLLM_CACHE_ROOT": "/models/vllm", "HOME": "/tmp"}  # noqa: S108
    known = [{"name": name, "value": value} for name, value in (kept | server.env).items()]
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}}, *known]


def _answers() -> Json:
    """Port and probes of a server with HTTP. Downloading the weights may take up to two hours."""
    asked = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": asked | {"periodSeconds": 10, "failureThreshold": 720},
        "readinessProbe": asked | {"periodSeconds": 5, "timeoutSeconds": 3},
        "livenessProbe": asked | {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
    }
