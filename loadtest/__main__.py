"""make load: a short Locust run against simulated tiers and a gateway of its own.

python -m loadtest [LOCUST FLAGS]
"""

import subprocess
import sys
from pathlib import Path

from loadtest.servers import gateway, sim

HERE = Path(__file__).parent
SHORT = ["-u", "8", "-r", "8", "-t", "15s"]


def main() -> int:
    policy = str(HERE.parent / "policies" / "default.yaml")
    with (
        sim("flash", "deepseek-ai/DeepSeek-V4-Flash") as flash,
        sim("pro", "deepseek-ai/DeepSeek-V4-Pro") as pro,
        gateway(policy, flash, pro) as url,
    ):
        command = ["locust", "-f", str(HERE / "locustfile.py"), "--headless", "--host", url, *(sys.argv[1:] or SHORT)]
        return subprocess.run([sys.executable, "-m", *command], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
