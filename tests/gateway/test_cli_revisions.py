"""`tiergate policy status | revisions | reload | rollback` on a gateway that runs."""

import asyncio
import json
import re
import secrets
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from loadtest.servers import Process, Sim, free_port, running, until
from tests.gateway.serving import plain, scripted
from tests.tiers import policy_text

ADMIN = secrets.token_hex(32)


class House(NamedTuple):
    url: str
    file: Path
    process: Process

    def run(self, *arguments: str, key: str = ADMIN) -> Result:
        env = {"GATEWAY_URL": self.url, "GATEWAY_ADMIN_KEY": key, "NO_COLOR": "1"}
        return CliRunner().invoke(app, ["policy", *arguments], env=env, color=True)  # it strips no escapes


@pytest.fixture(scope="module")
def house(flash_server: Sim, pro_server: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    file = tmp_path_factory.mktemp("house") / "p.yaml"
    file.write_text(policy_text(flash_server, pro_server))
    with running(file, (flash_server, pro_server), ADMIN_KEY=ADMIN) as (url, process):
        yield House(url, file, process)


def test_a_policy_is_written_told_rolled_back_and_counts_again(house: House, flash: Sim, pro: Sim) -> None:
    assert house.run("status").stdout.startswith("test r1 (")
    layer = {"intercept": 0.0, "weights": {"score": 1.0}, "means": {"score": 0.0}, "scales": {"score": 1.0}}
    fitted = json.dumps({"schema": 1, "layer": layer, "edges": [0.5]})
    house.file.with_name("fitted.json").write_text(fitted)
    second = policy_text(flash, pro, revision="r2", triage={"tier": "flash", "calibration": "fitted.json"})
    house.file.write_text(second)
    assert house.run("reload").exit_code == 0
    assert house.run("revisions").stdout.startswith("* ")
    newest, oldest = json.loads(house.run("revisions", "--json").stdout)
    assert (newest["revision"], newest["current"], oldest["revision"]) == ("r2", True, "r1")
    assert house.run("revisions", newest["digest"]).stdout == second
    assert house.run("revisions", newest["digest"], "--calibration").stdout == fitted
    assert house.run("revisions", oldest["digest"], "--calibration").stdout == "", "it named none"
    back = house.run("rollback")
    assert back.stdout == f"in force: {oldest['digest']}\n"
    assert "still says otherwise" in back.stderr
    status = house.run("status")
    assert "test r1" in status.stdout
    assert "by a rollback" in status.stdout
    assert "still says otherwise" in status.stderr
    assert house.run("rollback", "--undo").stdout == f"in force: {newest['digest']}\n"
    house.file.write_text("schema: 1")
    wrong = house.run("reload", "--json")
    assert (wrong.exit_code, json.loads(wrong.stdout)["ok"]) == (1, False)
    assert f"{house.file}:1:1: tiers: missing" in wrong.stderr
    assert house.run("status").exit_code == 1
    house.file.write_text("[")
    assert f"{house.file}:2:1: not YAML: " in house.run("reload").stderr
    house.file.write_text('"x\\e[2J": 1')
    for command in ("reload", "status"):
        told = house.run(command).stderr
        assert f"{house.file}:1:1: x\\x1b[2J: unknown key" in told
        assert "\x1b" not in told
    house.file.write_text(second)
    assert house.run("reload").exit_code == 0


def test_a_gateway_that_refuses_or_does_not_answer_is_told_on_stderr(house: House, flash: Sim) -> None:
    for found, told in (
        (house.run("status", key="wrong" * 9), "refuses (401): Incorrect admin key"),
        (house.run("rollback", "0123456789ab"), "refuses (404): No revision"),
        (house.run("status", key=""), "set GATEWAY_ADMIN_KEY"),
        (house.run("status", "--url", f"http://127.0.0.1:{free_port()}"), "no connection"),
        (house.run("status", "--url", flash.url), "answers 404, but not as a gateway does"),
        (house.run("status", "--url", "nowhere"), "not an http or https URL"),
    ):
        assert (found.exit_code, found.stdout) == (1, "")
        assert told in found.stderr


@pytest.mark.parametrize("said", [b"{}", b"[]", b'"ok"'])
async def test_who_answers_any_path_is_not_taken_for_a_gateway(house: House, said: bytes) -> None:
    async with scripted(plain(said)) as (url, _):
        found = await asyncio.to_thread(house.run, "status", "--url", url)
    assert "answers 200, but not as a gateway does" in found.stderr


def test_sighup_has_the_file_read_again(house: House) -> None:
    before = tried(house.url)
    house.process.send_signal(signal.SIGHUP)
    until(lambda: tried(house.url) == before + 1)


def tried(url: str) -> int:
    """How often a policy was."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        found = re.findall(rb"^gateway_policy_reloads_total{.*} ([0-9.]+)", answer.read(), re.MULTILINE)
    return int(sum(map(float, found)))
