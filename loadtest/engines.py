"""What does triage add in front of a real server?   Long prompts that nobody sent before, asked in every way.

    python -m loadtest.engines FLASH_URL [--model flash-model] [--rounds 30] [--characters 4000]

FLASH_URL: a vLLM server that nobody else asks. Every prompt ends there (threshold 1), so that the ways differ by the
gateway, its question, and what of the prefill the two calls share. Milliseconds to the first text.
"""

import argparse
import contextlib
import json
import platform
import random
import statistics
import time
import urllib.request

from loadtest.answers import quantile
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
callers: {{default: {{plan: free}}, plans: {{free: {{requests_per_minute: 1000000, concurrency: 10000, may: [pro]}}}}}}
"""
DIRECT = "the server itself"
NAMED = "the tier by name"
WAYS = {
    "triage, then the answer; question last": "speculate: never, layout: suffix",
    "triage, then the answer; question first": "speculate: never, layout: system",
    "triage beside the answer; question last": "speculate: always, layout: suffix",
    "triage beside the answer; question first": "speculate: always, layout: system",
}
WORDS = ("harbour", "crane", "ship", "cable", "morning", "ledger", "storm", "lantern", "pilot", "freight")
OFF = {"thinking": False, "enable_thinking": False}


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("url")
    said.add_argument("--model", default="flash-model")
    said.add_argument("--rounds", type=int, default=30)
    said.add_argument("--characters", type=int, default=4000)
    asked = said.parse_args()
    server = Sim(asked.url, asked.model)
    with contextlib.ExitStack() as stack:
        ways = {DIRECT: (asked.url, asked.model)}
        for way, triage in WAYS.items():
            policy = POLICY.format(model=asked.model, triage=triage)
            ways[way] = (stack.enter_context(running(policy, [server]))[0], "auto")
        ways[NAMED] = (ways[next(iter(WAYS))][0], "flash")
        report(measured(ways, asked.rounds, asked.characters))


def measured(ways: dict[str, tuple[str, str]], rounds: int, characters: int) -> dict[str, list[float]]:
    """Milliseconds of each way in each round; the first round, which compiles and connects, is left out."""
    chance = random.Random(time.time())  # what was sent in another run is in the server's cache
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way in chance.sample(list(ways), len(ways)):
            text = " ".join(chance.choices(WORDS, k=characters // 6))[:characters]
            found[way].append(first_text(*ways[way], f"{chance.random()} {text}"))
    return {way: times[1:] for way, times in found.items()}


def first_text(url: str, model: str, text: str) -> float:
    """Milliseconds until something was said. Raises StopIteration when nothing was."""
    asked = {"model": model, "stream": True, "max_tokens": 8, "temperature": 0, "chat_template_kwargs": OFF,
             "messages": [{"role": "user", "content": text}]}  # fmt: skip
    head = {"content-type": "application/json"}
    started = time.perf_counter()
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(asked).encode(), head)
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = (json.loads(line[5:]) for line in answer if line.startswith(b"data: {"))
        next(event for event in events if event["choices"][0]["delta"].get("content") or finished(event))
        return (time.perf_counter() - started) * 1000


def finished(event: dict[str, list[dict[str, object]]]) -> bool:
    return event["choices"][0]["finish_reason"] is not None


def report(found: dict[str, list[float]]) -> None:
    print(f"python {platform.python_version()} {platform.machine()}, {len(found[DIRECT])} rounds\n")
    print("| way | p50 ms | p99 ms | of the server itself, in the middle of the rounds |\n|---|---|---|---|")
    for way, times in found.items():
        ratio = statistics.median(a / b for a, b in zip(times, found[DIRECT], strict=True))
        print(f"| {way} | {quantile(times, 0.5):.0f} | {quantile(times, 0.99):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
