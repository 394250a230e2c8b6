"""Does the command line hold no more than what was asked of it?"""

import subprocess
import sys

LEFT_OUT = (
    "gateway.cli.demo",
    "gateway.cli.replay",
    "gateway.doctor",
    "fastapi",
    "httpx2",
    "jsonschema",
    "redis",
    "rich",
)
SCRIPT = f"""
import sys
from typer.main import get_command
from gateway.cli import app
assert get_command(app).get_command(None, "serve").name == "serve"
print(*[name for name in {LEFT_OUT!r} if name in sys.modules])
"""


def test_who_serves_holds_nothing_of_the_other_commands() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == []
