"""Do Dockerfile, compose file and load test fit each other and the program?"""

import ast
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from backends.sim.settings import parser, settings
from gateway.cli import app as cli
from gateway.policy import load_policy
from gateway.settings import Settings

JSON = dict[str, Any]
ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
COMPOSE: JSON = yaml.safe_load(VARIABLE.sub(lambda found: found[2] or "", COMPOSE_TEXT))
SERVICES: dict[str, JSON] = COMPOSE["services"]
IMAGE_ENV = dict(re.findall(r"(GATEWAY_\w+)=(\S+)", DOCKERFILE))
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
    while hasattr(known, "commands"):
        known, rest = known.commands[rest[0]], rest[1:]
    known.make_context(name, list(rest)).close()


@each_service
def test_variables_of_the_gateway_are_settings_with_right_values(name: str) -> None:
    ours = {key: value for key, value in environment(name).items() if key.startswith("GATEWAY_")} | IMAGE_ENV
    fields = {key.removeprefix("GATEWAY_").lower(): value for key, value in ours.items()}
    assert set(fields) <= set(Settings.model_fields)
    Settings(**{key: value for key, value in fields.items() if value is not None})


def test_the_policy_asks_for_the_variables_that_name_the_tiers() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", (ROOT / "policies" / "default.yaml").read_text()))
    assert wanted == {key for key in environment("gateway") if not key.startswith("GATEWAY_")}


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
def test_services_are_read_only_without_root_or_capabilities(name: str) -> None:
    service = SERVICES[name]
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
@pytest.mark.parametrize("name", ["gateway", "flash", "pro", "vllm-flash", "vllm-pro", "Dockerfile"])
def test_health_checks_tell_a_healthy_server_from_another(
    name: str, status: int, server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "Dockerfile":
        code, port = re.findall(r'"(import http.client.+)"\]', DOCKERFILE.replace("\\\n", ""))[0], "8080"
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


# the load test


def test_the_load_test_knows_the_gateway_by_http_only() -> None:
    tree = ast.parse((ROOT / "loadtest" / "locustfile.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} & {"gateway", "backends"} == set()


def test_the_prompt_mix_has_every_kind_with_easy_and_hard_ones() -> None:
    prompts = [json.loads(line) for line in (ROOT / "loadtest" / "prompts.jsonl").read_text().splitlines()]
    mix = {(prompt["kind"], prompt["label"]) for prompt in prompts}
    assert mix == {(k, v) for k in ("chat", "rag", "code", "maths", "agent") for v in ("simple", "complex")}
    assert all(prompt["body"]["messages"] and prompt["body"]["max_tokens"] <= 256 for prompt in prompts)
    assert all("tools" in prompt["body"] for prompt in prompts if prompt["kind"] == "agent")
