"""What does holding starts back cost?   TTFT without it and with it, of answers let out and of those that escalate.

    python -m loadtest.holdback [--rounds 200] [--weak 0.2]

One run, one machine, all ways interleaved request by request; in a weak round Flash is unsure of every token, for all
ways alike. The tiers are simulated at the speed of published figures (backends/sim/settings.py).
"""

import argparse
import asyncio
import contextlib
import json
import platform
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from backends.sim.settings import TIERS
from gateway.http1 import Client
from loadtest.servers import Sim, gateway, policy, sim
from loadtest.ttft import WORDS, first

OF_TEXT = "refusal: true, repetition: true, schema_violation: true, empty: true"
SIGNS = f"mean_logprob: {{max: -1.6}}, {OF_TEXT}"
WAYS = {
    "none": None,
    "text only, 24 tokens": f"{{tiers: flash, to: pro, tokens: 24, escalate_when: {{{OF_TEXT}}}}}",
    "log-probabilities, 24 tokens": f"{{tiers: flash, to: pro, tokens: 24, escalate_when: {{{SIGNS}}}}}",
    "log-probabilities, 8 tokens": f"{{tiers: flash, to: pro, tokens: 8, escalate_when: {{{SIGNS}}}}}",
    "log-probabilities, 24 or 20 ms": f"{{tiers: flash, to: pro, wait: 20ms, escalate_when: {{{SIGNS}}}}}",
}
WARM = 5  # rounds that open connections and warm code up


@dataclass
class Seen:
    """Seconds to the first event: of good starts, of weak ones that were let out, of those that Pro answered."""

    good: list[float] = field(default_factory=list)
    weak: list[float] = field(default_factory=list)
    escalated: list[float] = field(default_factory=list)
    needless: int = 0  # good starts that Pro answered


def body(model: str, turn: int) -> bytes:
    """A request whose first words differ from all others, so that no prefix is in the KV cache yet."""
    text = f"Note {turn} for {model}. " + WORDS * 16 + " Say in 100 words which cake it is."
    told = {"model": "auto", "stream": True, "max_tokens": 48, "messages": [{"role": "user", "content": text}]}
    return json.dumps(told).encode()


async def measure(urls: dict[str, str], flash: Sim, rounds: int, share: float) -> dict[str, Seen]:
    client, chance = Client(), random.Random(7)
    seen = {name: Seen() for name in urls}
    for turn in range(rounds + WARM):
        weak = chance.random() < share
        await asyncio.to_thread(flash.config, weak="unsure" if weak else None)
        for name, url in urls.items():
            seconds, tier = await first(client, url, body(name, turn))
            if turn >= WARM:
                count(seen[name], seconds, weak, tier == "pro")
    client.close()
    return seen


def count(seen: Seen, seconds: float, weak: bool, escalated: bool) -> None:
    (seen.escalated if escalated else seen.weak if weak else seen.good).append(seconds)
    seen.needless += escalated and not weak


@contextlib.contextmanager
def servers() -> Iterator[tuple[dict[str, str], Sim]]:
    with contextlib.ExitStack() as stack:
        flash, pro = stack.enter_context(sim("flash")), stack.enter_context(sim("pro"))
        base = policy().replace("{simple: flash, complex: pro}", "flash")
        texts = {name: base + (f"holdback: {rules}\n" if rules else "") for name, rules in WAYS.items()}
        urls = {name: stack.enter_context(gateway(text, flash, pro)) for name, text in texts.items()}
        urls["Pro, asked at once"] = stack.enter_context(
            gateway(base.replace("route: flash", "route: pro"), flash, pro)
        )
        yield urls, flash


def spread(times: list[float]) -> str:
    if len(times) < 2:
        return "-"
    return f"{statistics.median(times) * 1000:.0f} / {statistics.quantiles(times, n=100)[-1] * 1000:.0f}"


def report(seen: dict[str, Seen]) -> None:
    base = seen["none"].good
    print(
        "\n| start kept back | escalated | of good starts | TTFT kept, p50 / p99 ms | added p50, p99 ms | escalated |"
    )
    print("|---|---|---|---|---|---|")
    for name, one in seen.items():
        whole = len(one.good) + len(one.weak) + len(one.escalated)
        added = "-"
        if len(one.good) > 1:
            late = statistics.quantiles(one.good, n=100)[-1] - statistics.quantiles(base, n=100)[-1]
            added = f"{(statistics.median(one.good) - statistics.median(base)) * 1000:.0f}, {late * 1000:.0f}"
        share = f"{len(one.escalated) / whole:.2f}"
        print(f"| {name} | {share} | {one.needless} | {spread(one.good)} | {added} | {spread(one.escalated)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="TTFT with and without hold-back.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--weak", type=float, default=0.2, help="the part of Flash's starts that is weak")
    asked = parser.parse_args()
    tier = TIERS["flash"]
    print(f"{platform.machine()}, Python {platform.python_version()}; simulated Flash: {tier.inter_token_latency} ms")
    print(f"per output token; {asked.rounds} requests each, {asked.weak:.0%} of the starts weak")
    with servers() as (urls, flash):
        report(asyncio.run(measure(urls, flash, asked.rounds, asked.weak)))


if __name__ == "__main__":
    main()
