"""`tiergate config show` tells what holds and why, and never a secret; the shell completes commands."""

import json
import os
import subprocess
import sys

from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.settings import Settings

SECRET = "hunter2-hunter2-hunter2-hunter2!"


def show(*more: str, **env: str) -> Result:
    return CliRunner().invoke(
        app, ["config", "show", *more], env={f"GATEWAY_{name}": value for name, value in env.items()}
    )


def test_every_setting_is_shown_with_where_it_comes_from() -> None:
    found = json.loads(show("--json", PORT="9090", HOSTS="a, b").stdout)
    told = {one["name"]: (one["value"], one["origin"]) for one in found}
    assert told.keys() == {f"GATEWAY_{name.upper()}" for name in Settings.model_fields}
    assert told["GATEWAY_PORT"] == (9090, "environment GATEWAY_PORT")
    assert told["GATEWAY_HOSTS"] == (["a", "b"], "environment GATEWAY_HOSTS")
    assert told["GATEWAY_HOST"] == ("127.0.0.1", "default")


def test_what_has_its_default_may_be_left_out() -> None:
    assert show("--set", PORT="9090").stdout.split() == ["GATEWAY_PORT", "9090", "environment", "GATEWAY_PORT"]
    assert show("--set", PORT="").stdout == "", "an empty variable counts as unset"
    assert show("--set", REDIS_URL="embedded").stdout.split()[1] == "embedded"


def test_no_secret_is_shown() -> None:
    url = f"redis://user:{SECRET}@h:1/0"
    for more in ((), ("--json",)):
        found = show(*more, API_KEY=SECRET, ADMIN_KEY="f3a91c07d2b84e65" + SECRET, REDIS_URL=url)
        assert found.exit_code == 0
        assert "hunter2" not in found.stdout
        assert "redis://***@h:1/0" in found.stdout
        assert f"({len(SECRET)} characters)" in found.stdout


def test_a_setting_that_does_not_hold_is_told_by_its_name_on_stderr() -> None:
    found = show(PORT="seven", ADMIN_KEY=SECRET[:9])
    assert (found.exit_code, found.stdout) == (1, "")
    assert "GATEWAY_PORT: Input should be a valid integer" in found.stderr
    assert "GATEWAY_ADMIN_KEY: it has 9 characters" in found.stderr
    assert "hunter2" not in found.stderr


def test_who_serves_is_told_of_a_variable_that_is_nearly_a_setting() -> None:
    env = {**os.environ, "GATEWAY_REDIS": "redis://h", "GATEWAY_PORT_8080_TCP": "tcp://h"}
    command = [sys.executable, "-m", "gateway", "serve", "--workers", "2"]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert found.stderr.splitlines() == [
        "GATEWAY_REDIS is no setting; GATEWAY_REDIS_URL, if that is meant",
        "several workers need a store that they share: give --redis URL or --redis embedded",
    ]


def test_the_shell_completes_commands_and_options() -> None:
    def completed(line: str) -> str:
        words = {"_TIERGATE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        return CliRunner().invoke(app, [], env=words, prog_name="tiergate").stdout

    assert completed("tiergate policy ro").split() == ["rollback"]
    assert "--json" in completed("tiergate doctor --").split()
