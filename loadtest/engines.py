"""What does triage add in front of a real server?   Each prompt is asked through the gateway and of the server itself.

    python -m loadtest.engines FLASH_URL [--model flash-model] [--seconds 30]

FLASH_URL: a vLLM server. Everything is routed to it (threshold 1), so that the two ways differ by the gateway and its
question alone. The time to the first text through the gateway over that without it, in the middle of the pairs: of the
tier by name; by triage with the question after the conversation, before it, and with the answer begun meanwhile.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

from loadtest.__main__ import locust
from loadtest.servers import Sim, running

POLICY = """\
schema: 1
tiers:
  flash:
    model: {model}
    replicas: ["${{FLASH_URL}}"]
    set: {{chat_template_kwargs: {{thinking: false, enable_thinking: false}}}}
  pro: {{extends: flash}}
triage: {{tier: flash, strategy: choice, timeout: 30s, cache: null, threshold: 1.0, {triage}}}
rules: [{{id: triaged, route: {{simple: flash, complex: pro}}}}]
callers: {{default: {{plan: free}}, plans: {{free: {{requests_per_minute: 1000000, concurrency: 10000}}}}}}
"""
WAYS = {
    "the tier by name": ("flash", "speculate: never"),
    "triage, then the answer; question last": ("auto", "speculate: never, layout: suffix"),
    "triage, then the answer; question first": ("auto", "speculate: never, layout: system"),
    "triage beside the answer; question last": ("auto", "speculate: always, layout: suffix"),
}


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("url")
    said.add_argument("--model", default="flash-model")
    said.add_argument("--seconds", type=int, default=30)
    asked = said.parse_args()
    print(f"python {platform.python_version()} {platform.machine()}")
    print("| way | pairs | failed | TTFT p50, ms: gateway, direct | TTFT, of direct | E2E, of direct |\n|" + "---|" * 6)
    for way, (model, triage) in WAYS.items():
        found = measured(asked, model, triage)
        times = ", ".join(f"{found['tiers'][tier]['ttft']['p50']:.0f}" for tier in ("flash", "direct"))
        ratios = " | ".join(f"{found['ratios'][kind]:.2f}" for kind in ("ttft", "e2e"))
        print(f"| {way} | {found['pairs']} | {found['failed']} | {times} | {ratios} |", flush=True)


def measured(asked: argparse.Namespace, model: str, triage: str) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The figures of one run (`figures.summary`)."""
    policy = POLICY.format(model=asked.model, triage=triage)
    flags = ["-u", "1", "-t", f"{asked.seconds}s", "--pace", "0", "--model", model, "--max-error-ratio", "1"]
    direct = ["--direct", asked.url, "--direct-model", asked.model]
    with tempfile.TemporaryDirectory() as place, running(policy, [Sim(asked.url, asked.model)]) as (url, _):
        report = Path(place) / "report.json"
        locust(url, [*flags, *direct, "--report", str(report)], quiet=True)
        found: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads(report.read_text())
        return found


if __name__ == "__main__":
    main()
