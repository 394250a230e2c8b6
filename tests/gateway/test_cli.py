"""Does the command line hold no more than what was asked of it?"""

import gc
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backends.recipes.__main__ import parser
from gateway import __version__
from gateway.__main__ import main
from gateway.cli import ROOMS, app
from gateway.cli.backends import ELSEWHERE
from gateway.cli.command import command

LEFT_OUT = (
    "gateway.cli.demo",
    "gateway.cli.replay",
    "gateway.doctor",
    "fastapi",
    "httpx2",
    "jsonschema",
    "rich",
    "valkey",
)
SCRIPT = f"""
import logging, os, sys
from typer.main import get_command
from gateway.__main__ import main
from gateway.cli import app
commands = get_command(app)
assert {{commands.get_command(None, name).name for name in commands.list_commands(None)}} >= {{"serve"}}
print(*[name for name in sys.modules if name.startswith("gateway.") and not name.startswith("gateway.cli")])
assert commands.resolve_command(None, ["serve"])[1].name == "serve"
print(*[name for name in {LEFT_OUT!r} if name in sys.modules])

from gateway.cli.serve import _loop
reading, writing = os.pipe()
os.dup2(writing, sys.stderr.fileno())
async def main():
    for _ in range(1000):
        logging.warning("x" * 99)
_loop(main())
print("ended")
os.close(reading)
"""

FILES = """
import json, os, sys
from gateway.__main__ import main
said = sys.argv.pop()
try:
    main()
finally:
    opened = os.open(said, os.O_WRONLY)
    os.write(opened, json.dumps([opened, *map(os.get_inheritable, range(3))]).encode())
"""


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What a process says that loads the command `serve`, and then logs more than the reader of its log takes."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return ran.stdout.splitlines()


def test_who_asks_which_commands_there_are_imports_none(told: list[str]) -> None:
    assert told[0].split() == ["gateway.__main__"]


def test_who_serves_holds_nothing_of_the_other_commands(told: list[str]) -> None:
    assert told[1].split() == []


def test_who_serves_does_not_wait_for_who_reads_the_log(told: list[str]) -> None:
    assert told[2:] == ["ended"]


@pytest.mark.parametrize("name", ROOMS)
def test_what_is_said_of_a_command_beside_others_it_says_itself(name: str) -> None:
    room, line = ROOMS[name]
    assert " ".join((command(room, name).help or "").partition("\n\n")[0].split()) == line


def test_no_file_of_the_program_takes_the_place_of_a_closed_standard_file(tmp_path: Path) -> None:
    said = tmp_path / "said"
    said.touch()
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", FILES, "--version", str(said)]
    subprocess.run(command, check=True, timeout=60)
    assert json.loads(said.read_text()) == [3, True, True, True]  # those who are started find them open, too


@pytest.mark.parametrize(("command", "looks"), [("policy", False), ("serve", True)])
def test_nobody_looks_for_garbage_in_records_that_are_read_once(
    monkeypatch: pytest.MonkeyPatch, command: str, looks: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["tiergate", command, "--help"])
    hup = signal.getsignal(signal.SIGHUP)
    try:
        with pytest.raises(SystemExit):
            main()
        assert gc.isenabled() == looks
    finally:
        signal.signal(signal.SIGHUP, hup)
        gc.enable()


def test_the_program_tells_its_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"tiergate {__version__}\n")


@pytest.mark.parametrize("port", ["0", "65536"])
def test_the_demo_has_a_port_that_callers_can_find(port: str) -> None:
    done = CliRunner().invoke(app, ["demo", "--port", port])
    assert (done.exit_code, done.stderr.count("--port")) == (2, 1)


def test_who_mistypes_a_command_is_told_which_was_meant() -> None:
    done = CliRunner().invoke(app, ["polcy"])
    assert (done.exit_code, "Did you mean 'policy'?" in done.stderr) == (2, True)


def test_the_help_of_backends_names_those_that_are_programs_of_their_own() -> None:
    verbs = parser().format_usage().partition("{")[2].partition("}")[0].split(",")
    assert set(verbs) == {"list", "command", "size", *ELSEWHERE}


def test_the_simulator_lists_its_own_flags() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "gateway", "sim", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--time-to-first-token" in told.stdout
