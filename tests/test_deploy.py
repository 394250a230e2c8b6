"""Do Dockerfile, compose file and load test fit each other and the program?"""

import ast
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from backends.recipes.fit import Wish
from backends.recipes.formats import compose
from backends.recipes.hardware import hardware
from backends.sim.settings import parser, settings
from gateway.cli import app as cli
from gateway.cli.demo import TIERS
from gateway.doctor.store import store as examined
from gateway.policy import load_policy
from gateway.settings import Settings
from gateway.store import Line, Store
from loadtest.clusters import Node
from loadtest.servers import free_port
from tests.gateway.identity import CERTIFICATE, KEY, pem
from tests.stores import limits, on

JSON = dict[str, Any]
ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
(CHECK,) = re.findall(r'"(import http.client.+)"\]', DOCKERFILE.replace("\\\n", ""))
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
PROMTOOL = shutil.which("promtool")
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
COMPOSE: JSON = yaml.safe_load(VARIABLE.sub(lambda found: found[2] or "", COMPOSE_TEXT))
SERVICES: dict[str, JSON] = COMPOSE["services"]
IMAGE_ENV = dict(re.findall(r"(GATEWAY_\w+)=(\S+)", DOCKERFILE))
PROFILES = {
    "gpu": {"vllm-flash", "vllm-pro"},
    "obs": {"prometheus", "grafana", "otel-collector", "jaeger"},
    "load": {"locust"},
}
LISTENING = {  # inside; of images that are not ours by their documentation
    "gateway": {8080},
    "flash": {8000},
    "pro": {8000},
    "prometheus": {9090},
    "jaeger": {4317, 16686},
}
LINE = Line("flash", "answer", estimated=False, prompt=9, cached=0, completion=9, money=1000)
ANSWER = b"x" * 16_000
each_service = pytest.mark.parametrize("name", SERVICES)


def environment(name: str) -> JSON:
    """What a service gets; a variable without a value is handed on from outside."""
    return dict(SERVICES[name].get("environment", {}))


# Dockerfile


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1:] == ["65532:65532"]


def test_the_environment_is_built_with_the_python_that_runs_it() -> None:
    stages = re.findall(r"^FROM (python:\S+)", DOCKERFILE, re.MULTILINE)
    assert len(stages) == 2
    assert len(set(stages)) == 1


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_dockerfile_passes_hadolint() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: make install puts it beside the tests")
    found = subprocess.run([program, "-"], input=DOCKERFILE, capture_output=True, text=True, check=False)
    assert found.stdout + found.stderr == ""


def test_byte_code_is_compiled_in_the_build_and_none_is_written_later() -> None:
    build, run = DOCKERFILE.split("FROM python:")[1:]
    assert "UV_COMPILE_BYTECODE=1" in build
    assert "PYTHONDONTWRITEBYTECODE=1" in run
    assert "--require-hashes" in build


# Dockerfile and compose file


def test_images_are_pinned_by_version() -> None:
    named = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    named += [service["image"] for service in SERVICES.values()]
    assert [image for image in named if not re.search(r":v?\d+\.\d+[\w.-]*$", image)] == []


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "tiergate" in service["image"]])
def test_services_run_commands_that_the_program_knows(name: str) -> None:
    known, rest = typer.main.get_command(cli), SERVICES[name]["command"]
    if rest[0] == "sim":
        parser().parse_args(rest[1:])
        return
    while hasattr(known, "resolve_command"):
        _, known, rest = known.resolve_command(None, rest)
    known.make_context(name, list(rest)).close()


@each_service
def test_variables_of_the_gateway_are_settings_with_right_values(name: str) -> None:
    ours = {key: value for key, value in environment(name).items() if key.startswith("GATEWAY_")} | IMAGE_ENV
    fields = {key.removeprefix("GATEWAY_").lower(): value for key, value in ours.items()}
    assert set(fields) <= set(Settings.model_fields)
    Settings(**{key: value for key, value in fields.items() if value is not None})


def test_the_policy_asks_for_the_variables_that_name_the_tiers() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", (ROOT / "policies" / "default.yaml").read_text()))
    assert wanted == {key for key in environment("gateway") if not key.startswith(("GATEWAY_", "OTEL_"))}


# docker-compose.yml


def test_the_compose_file_fits_the_compose_specification() -> None:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(COMPOSE)


def test_every_variable_of_the_compose_file_has_a_default_and_is_explained() -> None:
    lines = COMPOSE_TEXT.splitlines()
    head = "\n".join(line for line in lines[: lines.index("name: tiergate")])
    used = [found for line in lines if not line.startswith("#") for found in VARIABLE.findall(line)]
    assert [name for name, default in used if not default] == []
    assert [name for name, _ in used if name not in head] == []


@each_service
def test_published_ports_are_bound_to_loopback(name: str) -> None:
    assert [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")] == []


@each_service
def test_services_are_read_only_without_root_or_capabilities_and_fill_no_disk(name: str) -> None:
    service = SERVICES[name]
    assert service["logging"] == {"driver": "local"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)


@each_service
def test_services_wait_for_what_they_need(name: str) -> None:
    for target, wait in SERVICES[name].get("depends_on", {}).items():
        needed = SERVICES[target]
        if wait["condition"] == "service_completed_successfully":
            assert needed["restart"] == "no"
        elif target == "gateway":
            assert ("healthcheck" in needed, "HEALTHCHECK" in DOCKERFILE) == (False, True), "the image's knows TLS"
        else:
            assert "test" in needed["healthcheck"], f"{target} is never healthy"
        always = not {"profiles", "scale"} & set(needed)
        assert wait.get("required", True) is always, f"{target} may be absent"


@pytest.mark.parametrize("tier", ["flash", "pro"])
def test_simulator_and_vllm_stand_in_for_each_other_and_never_run_together(tier: str) -> None:
    simulated, real = SERVICES[tier], SERVICES[f"vllm-{tier}"]
    assert real["networks"]["tiers"]["aliases"] == [tier]
    assert simulated["ports"] == real["ports"]
    assert "${SIMULATORS:-1}" in COMPOSE_TEXT.partition(f"\n  {tier}:")[2].partition("\n\n")[0]
    assert environment("gateway")[f"{tier.upper()}_URL"] == f"http://{tier}:8000"
    assert "profiles" not in simulated
    assert real["profiles"] == ["gpu"]


@pytest.mark.parametrize("tier", ["flash", "pro"])
def test_tiers_serve_the_models_that_the_policy_asks_for(tier: str) -> None:
    wanted = load_policy(ROOT / "policies" / "default.yaml").tiers[tier].model
    assert settings(parser().parse_args(SERVICES[tier]["command"][1:])).model == wanted
    assert SERVICES[f"vllm-{tier}"]["command"][0] == wanted


@pytest.mark.parametrize(("tier", "first"), [("flash", 0), ("pro", 4)])
def test_vllm_is_started_as_the_recipe_for_this_host_says(tier: str, first: int) -> None:
    assert SERVICES[f"vllm-{tier}"] == compose(Wish(tier, hardware("b300x4")), first)
    said = (
        f"tiergate backends command --tier {tier} --hardware b300x4 --format compose"
        + f" --first-gpu {first}" * bool(first)
    )
    assert f"#   {said}\n" in COMPOSE_TEXT


@pytest.mark.parametrize(("profile", "names"), PROFILES.items())
def test_a_profile_brings_its_services_and_no_others(profile: str, names: set[str]) -> None:
    assert {name for name, service in SERVICES.items() if service.get("profiles") == [profile]} == names


def test_without_a_profile_there_is_a_gateway_with_store_and_simulated_tiers() -> None:
    always = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert always == {"gateway", "first-key", "valkey", "flash", "pro"}


def test_the_demo_starts_the_same_as_processes() -> None:
    always = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert {"gateway", "valkey", *TIERS} == always - {"first-key"}  # the demo makes its key itself
    assert environment("gateway").keys() >= {f"{tier.upper()}_URL" for tier in TIERS}


@each_service
def test_ports_are_published_once_but_for_what_stands_in_for_another(name: str) -> None:
    others = [
        port
        for other, service in SERVICES.items()
        if other.removeprefix("vllm-") != name.removeprefix("vllm-")
        for port in service.get("ports", [])
    ]
    assert not set(SERVICES[name].get("ports", [])) & set(others)


@each_service
def test_what_a_service_mounts_is_here_and_read_only_or_a_named_volume(name: str) -> None:
    for source, _, mode in (volume.partition(":") for volume in SERVICES[name].get("volumes", [])):
        if source.startswith("."):
            assert (ROOT / source).is_dir()
            assert mode.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_the_gateway_goes_by_a_policy_of_a_folder_here_which_it_follows() -> None:
    service = SERVICES["gateway"]
    (mount,) = service["volumes"]
    source, place, _ = mount.split(":")
    policy = Path(service["environment"]["GATEWAY_POLICY"])
    assert str(policy.parent) == place
    assert load_policy(ROOT / source / policy.name, {}).name == "default"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Node]:
    """The store as the compose file starts it."""
    node = Node(free_port(), tmp_path, SERVICES["valkey"]["command"][1:])
    node.start()
    yield node
    node.close()


def test_the_doctor_has_nothing_to_say_of_the_store(store: Node) -> None:
    found, _ = asyncio.run(examined(Settings(redis_url=f"redis://127.0.0.1:{store.port}/0")))
    assert [one.told for one in found if one.fix not in {"", "run it nearer"}] == []  # a busy machine answers late
    assert store.ask("CONFIG", "GET", "save") == [b"save", b""], "a snapshot beside the append-only file"


def test_a_full_store_forgets_answers_and_never_what_callers_spent(store: Node) -> None:
    callers = [f"c{number}" for number in range(20)]

    async def spend(shared: Store) -> None:
        for caller in callers:
            held = await shared.admit(caller, limits(), None)
            await shared.settle(caller, held.lease or "", (LINE,))

    async def remember(shared: Store) -> None:
        for number in range(20):
            await asyncio.gather(*(shared.remember("ann", b"%d/%d" % (number, n), ANSWER, 600.0) for n in range(100)))

    url = f"redis://127.0.0.1:{store.port}/0?socket_timeout=10"
    on(url, spend)
    store.ask("CONFIG", "SET", "maxmemory", store.ask("INFO", "memory")["used_memory"] + 200 * len(ANSWER))
    on(url, remember)
    assert len(store.ask("KEYS", "tg1:{ann}:entry:*")) in range(50, 500), "the store was not filled"
    kept = {name for caller in callers for name in (f"tg5:{{{caller}}}:account", f"tg3:{{{caller}}}:ledger")}
    assert kept - {name.decode() for name in store.ask("KEYS", "tg[35]:*")} == set()


def test_the_load_test_runs_with_the_locust_of_the_lock_file() -> None:
    (locked,) = re.findall(r"^locust==(\S+)", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE)
    assert SERVICES["locust"]["image"] == f"locustio/locust:{locked}"
    (mounted,) = SERVICES["locust"]["volumes"]
    assert mounted == f"./loadtest:{SERVICES['locust']['working_dir']}/loadtest:ro"
    assert (ROOT / SERVICES["locust"]["command"][1]).is_file()


# what observes


def mounted(name: str, inside: str) -> Path:
    """What a path inside of a service is here."""
    for source, target, *_ in (volume.split(":") for volume in SERVICES[name]["volumes"]):
        if source.startswith(".") and inside.startswith(target):
            return ROOT.joinpath(source, inside.removeprefix(target).lstrip("/"))
    raise AssertionError(f"{name} mounts nothing at {inside}")


def config_of_prometheus() -> Path:
    (flag,) = [flag for flag in SERVICES["prometheus"]["command"] if flag.startswith("--config.file=")]
    return mounted("prometheus", flag.partition("=")[2])


def config_of_collector() -> str:
    (flag,) = SERVICES["otel-collector"]["command"]
    return str(environment("otel-collector")[flag.removeprefix("--config=env:")])


def provisioned() -> Path:
    return mounted("grafana", environment("grafana")["GF_PATHS_PROVISIONING"])


def test_what_observes_asks_services_on_ports_that_they_have() -> None:
    sources = (provisioned() / "datasources" / "tiergate.yaml").read_text()
    for text in (config_of_prometheus().read_text(), config_of_collector(), sources):
        asked = set(re.findall(r"\b([a-z-]+):(\d{4,5})\b", text))
        assert asked
        for service, port in asked:
            assert service in SERVICES
            assert int(port) in LISTENING[service], f"nothing says that {service} listens on {port}"


def test_prometheus_scrapes_the_gateway_and_both_tiers() -> None:
    config = yaml.safe_load(config_of_prometheus().read_text())
    found = {target for job in config["scrape_configs"] for one in job["static_configs"] for target in one["targets"]}
    assert found == {"gateway:8080", "flash:8000", "pro:8000"}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus has it)")
def test_prometheus_understands_its_configuration_and_finds_its_rules() -> None:
    config = config_of_prometheus()
    asked = [str(PROMTOOL), "check", "config", "--syntax-only", str(config)]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    rules = yaml.safe_load(config.read_text())["rule_files"]
    assert [name for name in rules if not mounted("prometheus", name).is_file()] == []


def test_traces_go_where_the_collector_takes_them_and_on_to_jaeger() -> None:
    config = yaml.safe_load(config_of_collector())
    port = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert environment("gateway")["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://otel-collector:{port}"
    assert config["exporters"]["otlp"]["endpoint"].startswith("jaeger:")
    for kind in ("receivers", "processors", "exporters"):
        assert set(config["service"]["pipelines"]["traces"][kind]) == set(config[kind])


def test_grafana_finds_its_sources_and_boards_where_they_are_mounted() -> None:
    assert {path.name for path in provisioned().iterdir()} == {"datasources", "dashboards"}
    boards = yaml.safe_load((provisioned() / "dashboards" / "tiergate.yaml").read_text())["providers"][0]["options"]
    assert list(mounted("grafana", boards["path"]).glob("*.json"))


class Health(BaseHTTPRequestHandler):
    """Answers with the status that its server is told."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path in {"/health", "/ready"} else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Health) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("name", ["flash", "pro", "vllm-flash", "vllm-pro", "Dockerfile"])
def test_health_checks_tell_a_healthy_server_from_another(
    name: str, status: int, server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "Dockerfile":
        code, port = CHECK, "8080"
        monkeypatch.setenv("GATEWAY_PORT", str(server.server_port))
    else:
        service = SERVICES[name]
        _, program, flag, code = service["healthcheck"]["test"]
        assert (program, flag) in {("python", "-c"), ("python3", "-c")}
        port = service["ports"][0].rpartition(":")[2]
        assert f"127.0.0.1', {port}," in code, "the check asks another port than the one that is served"
    monkeypatch.setattr(Health, "status", status)
    with pytest.raises(SystemExit) as ended:
        exec(code.replace(f"', {port},", f"', {server.server_port},"), {})
    assert bool(ended.value.code) is (status != 200)


def test_the_images_check_passes_where_the_gateway_speaks_tls_and_serves_named_hosts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in ("key", pem("PRIVATE KEY", KEY)), ("cert", pem("CERTIFICATE", CERTIFICATE)):
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(f"GATEWAY_TLS_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("GATEWAY_HOSTS", "llm.example, localhost")
    monkeypatch.setenv("GATEWAY_PORT", str(free_port()))
    check = [sys.executable, "-c", CHECK]
    with subprocess.Popen([sys.executable, "-m", "gateway", "serve"], cwd=ROOT, stderr=subprocess.DEVNULL) as served:
        try:
            started = time.monotonic()
            while subprocess.run(check, check=False, capture_output=True).returncode:
                assert time.monotonic() < started + 30
                time.sleep(0.1)
        finally:
            served.terminate()


# the load test


def test_the_load_test_knows_the_gateway_by_http_only() -> None:
    known = {
        "locustfile.py": {"loadtest.answers", "loadtest.figures"},
        "figures.py": {"loadtest.answers"},
        "answers.py": set(),
    }
    for file, ours in known.items():
        tree = ast.parse((ROOT / "loadtest" / file).read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name for name in names if name.split(".")[0] in ("gateway", "backends", "loadtest")} == ours


def test_the_prompt_mix_has_every_kind_with_easy_and_hard_ones() -> None:
    prompts = [json.loads(line) for line in (ROOT / "loadtest" / "prompts.jsonl").read_text().splitlines()]
    mix = {(prompt["kind"], prompt["label"]) for prompt in prompts}
    assert mix == {(k, v) for k in ("chat", "rag", "code", "maths", "agent") for v in ("simple", "complex")}
    assert all(prompt["body"]["messages"] and prompt["body"]["max_tokens"] <= 256 for prompt in prompts)
    assert all("tools" in prompt["body"] for prompt in prompts if prompt["kind"] == "agent")
