"""make load: a short Locust run against simulated tiers and a gateway of its own, then the gateway beside no gateway.

    python -m loadtest [--outage classifier|pro|store] [LOCUST FLAGS]

With flags, or an outage (of the middle third: the classifier's verdicts or Pro's answers fail by 503, the store stands
still), only that one run.
"""

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.servers import DEFAULT, Sim, children, gateway, pid_of, policy, sim

FILE = Path(__file__).parent / "locustfile.py"
ROOT = FILE.parent.parent
SLO = ["--slo", "ttft=1000,tpot=50,itl_p99=200,pro.ttft=2000"]
SHORT = ["-u", "8", "-r", "8", "-t", "15s", *SLO]
BOTH = ["-u", "4", "-r", "4", "-t", "15s", "--pace", "0.5", "--model", "flash", *SLO]
CONFIG = (
    "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode(), "
    "{'content-type': 'application/json'}, method=sys.argv[3]), timeout=5)"
)
FAULTS = {"classifier": '{"status": 503, "only": "triage"}', "pro": '{"status": 503}'}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, add_help=False)
    asked.add_argument("--outage", choices=(*FAULTS, "store"))
    own, flags = asked.parse_known_args()
    with sim("flash") as flash, sim("pro") as pro, gateway(DEFAULT, flash, pro) as url:
        if own.outage:
            broken = outage(own.outage, {"classifier": flash, "pro": pro}, url)
            return locust(url, [*(flags or ["-u", "8", "-r", "8", "-t", "30s", *SLO]), *broken])
        if flags:
            return locust(url, flags)
        ended = locust(url, SHORT)
        with gateway(policy(), flash, pro) as unbound:
            return max(ended, locust(unbound, [*BOTH, "--direct", flash.url, "--direct-model", flash.model]))


def locust(url: str, flags: Sequence[str]) -> int:
    """Its exit code; Locust imports loadtest.figures from where it is started."""
    command = ["-m", "locust", "-f", str(FILE), "--headless", "--only-summary", "--host", url, *flags]
    return subprocess.run([sys.executable, *command], check=False, cwd=ROOT).returncode


def outage(name: str, tiers: dict[str, Sim], url: str) -> list[str]:
    """Locust's flags that break something and mend it."""
    if name == "store":
        store = next(pid for pid, command in children(pid_of(url)).items() if "valkey-server" in command)
        commands = [["kill", f"-{int(number)}", str(store)] for number in (signal.SIGSTOP, signal.SIGCONT)]
    else:
        call = [sys.executable, "-c", CONFIG, f"{tiers[name].url}/admin/config"]
        commands = [[*call, FAULTS[name], "POST"], [*call, "", "DELETE"]]
    broken, mended = map(shlex.join, commands)
    return ["--break", broken, "--mend", mended, "--max-error-ratio", "1"]


if __name__ == "__main__":
    raise SystemExit(main())
