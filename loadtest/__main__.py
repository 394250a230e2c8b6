"""make load: a short Locust run against simulated tiers and a gateway of its own.

python -m loadtest [LOCUST FLAGS]
"""

import subprocess
import sys
from pathlib import Path

from loadtest.servers import DEFAULT, gateway, sim

HERE = Path(__file__).parent
SHORT = ["-u", "8", "-r", "8", "-t", "15s"]


def main() -> int:
    with sim("flash") as flash, sim("pro") as pro, gateway(DEFAULT, flash, pro) as url:
        command = ["locust", "-f", str(HERE / "locustfile.py"), "--headless", "--host", url, *(sys.argv[1:] or SHORT)]
        return subprocess.run([sys.executable, "-m", *command], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
